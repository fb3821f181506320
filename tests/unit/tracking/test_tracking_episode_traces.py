"""Episodes as traces in a real store: readable, linked to their run, replaced when logged again."""

from envrl.tracking import runs
from envrl.tracking.store import Store, client
from tracking_servers import episode_of_one_turn

TAGS = {"env": "alfworld", "algorithm": "grpo", "arm": "grpo", "seed": "0", "panel": "abc"}


def test_an_episode_is_a_trace_of_its_run_with_a_span_for_each_turn(store: Store) -> None:
    played = [episode_of_one_turn("go"), episode_of_one_turn("eat", won=False)]
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS) as run_id:
        # Twice: a run that was killed after its evaluation and before its checkpoint makes it again.
        for _ in range(2):
            runs.log_episodes(
                store, run_id, played, lambda ids: f"<{len(ids)}>", arm="grpo", seed=0, iteration=10
            )
    experiment = client(store).get_run(run_id).info.experiment_id
    found = client(store).search_traces(locations=[experiment], run_id=run_id)
    assert len(found) == 2
    (won,) = [trace for trace in found if trace.info.tags["won"] == "true"]
    assert won.info.trace_metadata["mlflow.sourceRun"] == run_id
    tags = {"arm": "grpo", "seed": "0", "iteration": "10", "return": "1", "task_type": "look_at_obj_in_light"}
    assert tags.items() <= won.info.tags.items()
    assert won.info.request_preview == "iteration 10 · look_at_obj_in_light · Your task is to: look."
    assert won.info.token_usage == {"input_tokens": 2, "output_tokens": 3, "total_tokens": 5}
    root, turn = won.data.spans
    assert (root.name, root.parent_id, turn.parent_id) == ("episode", None, root.span_id)
    assert root.inputs["game"] == "abc123"
    assert (root.outputs["won"], root.outputs["return"], root.outputs["turns"]) == (True, 1.0, 1)
    assert turn.name == "turn 1: go"
    assert turn.inputs == {
        "observation": "A room.\nYour task is to: look.",
        "admissible actions": ["go", "look"],
        "prompt": "<2>",
    }
    assert turn.outputs == {
        "written": "<3>",
        "action": "go",
        "admissible": True,
        "format valid": True,
        "reward": 1.0,
        "next observation": "Done – fertig.",
        "tokens": 3,
        "log-probability": -1.75,
        "finish": "end",
    }


def test_only_the_traces_of_that_evaluation_are_replaced(store: Store) -> None:
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS) as run_id:
        for iteration in (0, 10, 10):
            played = [episode_of_one_turn("go")]
            runs.log_episodes(store, run_id, played, str, arm="grpo", seed=0, iteration=iteration)
    experiment = client(store).get_run(run_id).info.experiment_id
    found = client(store).search_traces(locations=[experiment], run_id=run_id)
    assert sorted(trace.info.tags["iteration"] for trace in found) == ["0", "10"]
