"""A tiny study from the real command: its results, its MLflow runs, and that it can be killed at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from mlflow.entities import Run
from peft import PeftModel
from transformers import AutoModelForCausalLM

from envrl.analysis.records import RunRecord, load_record, load_records
from envrl.experiments import ablate, evaluate, export, train
from envrl.tracking.store import client, open_store
from studies import ARMS, FinishedStudy, call, command, kill_when, write_study, write_yaml
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")

EVALUATED = [0, 2, 3]
TIMES = ("seconds", "tokens_per_second", "system/")


def runs_in_mlflow(root: Path, experiment: str = "tiny") -> list[Run]:
    """All runs of the experiment, parent first."""
    mlflow_client = client(open_store(root))
    found = mlflow_client.get_experiment_by_name(experiment)
    runs = mlflow_client.search_runs([found.experiment_id])
    return sorted(runs, key=lambda r: (r.data.tags.get("mlflow.parentRunId", ""), r.info.run_name))


def artifacts(root: Path, run: Run, folder: str = "") -> set[str]:
    listed = client(open_store(root)).list_artifacts(run.info.run_id, folder)
    return {entry.path.removeprefix(f"{folder}/") for entry in listed}


def curves(root: Path, run: Run) -> dict[str, dict[int, float]]:
    """Metric → step → value, without anything that measures time; no metric has two points at a step."""
    mlflow_client = client(open_store(root))
    points = {name: mlflow_client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    found = {name: {m.step: m.value for m in history} for name, history in points.items()}
    assert [name for name, history in points.items() if len(history) != len(found[name])] == []
    return {name: curve for name, curve in found.items() if not any(word in name for word in TIMES)}


def outcome(root: Path, arm: str, seed: int = 0, study: str = "tiny") -> dict[str, Any]:
    """Everything a run has left that must not depend on whether it was interrupted."""
    folder = root / "studies" / study / "runs" / arm / f"seed_{seed}"
    record = load_record(folder / "record.json")
    run = client(open_store(root)).get_run(record.mlflow_run_id)
    state = torch.load(folder / "last.ckpt", weights_only=True)
    return {
        "status": (record.status, record.error, run.info.status),
        "evaluations": record.evaluations,
        "training": record.training_success,
        "curves": curves(root, run),
        "weights": {name: value.tolist() for name, value in state["state_dict"].items()},
    }


def assert_same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compares two outcomes; names the curves that differ instead of printing all of them."""
    first, second = mine.pop("curves"), theirs.pop("curves")
    names = sorted({*first, *second})
    assert {n: first.get(n) for n in names if first.get(n) != second.get(n)} == {}
    assert first.keys() == second.keys()
    assert mine == theirs


def test_the_command_ends_well_and_says_what_matters(finished: FinishedStudy) -> None:
    assert finished.done.returncode == 0, finished.done.stderr
    assert finished.done.stderr == ""
    lines = finished.done.stdout.splitlines()
    assert lines[0].startswith("study tiny: 2 runs, 4 training games, panel of 6 games (")
    assert any(
        line.startswith("both seed 0") and "iteration 3/3" in line and "left" in line for line in lines
    )
    assert any(line.startswith("grpo ") for line in lines), "the table has a row for each arm"
    assert f"  {finished.folder / 'report.md'}" in lines
    assert f"  {finished.folder / 'report.html'}" in lines
    assert all(ord(c) >= 32 or c == "\n" for c in finished.done.stdout), "no control characters in a pipe"


def test_results_have_the_promised_shape(finished: FinishedStudy) -> None:
    results = json.loads((finished.folder / "results.json").read_text())
    records = load_records(finished.folder)
    assert results["panel"] == records[0].panel_hash
    assert list(results["arms"]) == ["grpo", "both"]
    for name, arm in results["arms"].items():
        (record,) = [r for r in records if r.arm == name]
        assert arm["seeds"] == 1
        assert arm["curve"] == [e.success_rate for e in record.evaluations]
        assert len(arm["curve"]) == 3
        assert arm["initial"] == arm["curve"][0]
        assert arm["final"] == arm["curve"][-1]
        low, high = arm["ci95"]
        assert 0 <= low <= arm["final"] <= high <= 1
        assert set(arm["per_family"]) == {o.family for o in record.evaluations[0].outcomes}
        assert arm["iterations_to_baseline"] in (None, *EVALUATED)


def test_records_hold_every_game_of_every_evaluation(finished: FinishedStudy) -> None:
    for record in load_records(finished.folder):
        assert record.status == "finished"
        assert [e.iteration for e in record.evaluations] == EVALUATED
        assert {len(e.outcomes) for e in record.evaluations} == {6}
        assert len({tuple(o.game_id for o in e.outcomes) for e in record.evaluations}) == 1
        assert len(record.training_success) == 3
        assert record.config["loss"]["sp"]["weight"] == (0.2 if record.arm == "both" else 0.0)


def test_mlflow_holds_one_parent_and_one_child_for_each_run(finished: FinishedStudy) -> None:
    parent, *children = runs_in_mlflow(finished.root)
    assert parent.info.run_name == "tiny"
    assert [run.info.run_name for run in children] == ["both/seed_0", "grpo/seed_0"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    panel = json.loads((finished.folder / "results.json").read_text())["panel"]
    for run in (parent, *children):
        tags = run.data.tags
        assert (tags["env"], tags["algorithm"], tags["panel"]) == ("alfworld", "grpo", panel)
        assert tags["git_commit"]
    assert [(r.data.tags["arm"], r.data.tags["seed"]) for r in children] == [("both", "0"), ("grpo", "0")]
    assert children[0].data.params["loss.id.weight"] == "0.2"
    assert artifacts(finished.root, parent) == {
        "curves.png", "curves_by_family.png", "differences.png", "environment.yaml", "report.html",
        "report.md", "results.json", "study.json",
    }  # fmt: skip


def test_runs_keep_what_they_were_made_with(finished: FinishedStudy) -> None:
    for run in runs_in_mlflow(finished.root)[1:]:
        assert artifacts(finished.root, run) == {
            "adapter", "checkpoints", "config.yaml", "environment.yaml", "panel.json", "transcripts",
        }  # fmt: skip
        assert artifacts(finished.root, run, "checkpoints") == {"last.ckpt"}
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= artifacts(
            finished.root, run, "adapter"
        )
        assert artifacts(finished.root, run, "transcripts") == {
            f"iteration_000{number}.md" for number in EVALUATED
        }
        transcript = client(open_store(finished.root)).download_artifacts(
            run.info.run_id, "transcripts/iteration_0000.md"
        )
        assert Path(transcript).read_text().count("## ") == 2


def test_metrics_begin_before_training(finished: FinishedStudy) -> None:
    plain, both = (curves(finished.root, run) for run in reversed(runs_in_mlflow(finished.root)[1:]))
    families = {name for name in plain if name.startswith("eval/success_rate/")}
    assert len(families) == 6
    for metrics in (plain, both):
        for name in {"eval/success_rate", "eval/inadmissible_rate", *families}:
            assert sorted(metrics[name]) == EVALUATED
        for name in (
            "rollout/success_rate", "rollout/zero_variance_share", "rollout/format_invalid_rate",
            "rollout/episode_length", "train/loss", "train/entropy", "train/clip_share", "train/logprob_gap",
            "train/lambda_sp", "train/lambda_id", "train/grad_norm",
        ):  # fmt: skip
            assert sorted(metrics[name]) == [0, 1, 2], name
        # Measured every two iterations, also where the objective has weight 0.
        assert sorted(metrics["train/kl"]) == [0, 2]
    # State prediction is read off rows that are run anyway; inverse dynamics needs rows of its own.
    assert sorted(plain["train/sp_ce"]) == [0, 1, 2]
    assert sorted(plain["train/id_exact_match"]) == [0, 2]
    assert sorted(both["train/sp_ce"]) == sorted(both["train/id_exact_match"]) == [0, 1, 2]
    assert both["train/lambda_sp"] == pytest.approx({0: 0.2, 1: 0.15, 2: 0.05})
    assert set(plain["train/lambda_id"].values()) == {0.0}
    assert sorted(both["train/grad_cosine/id"]) == [0, 2]


def test_no_resume_refuses_a_study_that_has_begun(
    finished: FinishedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--study", str(finished.file), "--root", str(finished.root)]
    assert ablate.main([*arguments, "--no-resume"]) == 2
    assert "has 2 runs of this study already; give it another --name" in capsys.readouterr().err


def test_finished_runs_are_kept(finished: FinishedStudy, capsys: pytest.CaptureFixture[str]) -> None:
    runs = finished.folder / "runs"
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file()}
    ids = {run.info.run_id for run in runs_in_mlflow(finished.root)}
    results = (finished.folder / "results.json").read_text()
    assert ablate.main(["--study", str(finished.file), "--root", str(finished.root)]) == 0
    assert "2 finished runs are kept" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file()} == before
    assert {run.info.run_id for run in runs_in_mlflow(finished.root)} == ids
    assert (finished.folder / "results.json").read_text() == results


def test_the_best_adapter_is_registered_and_loads_from_there(finished: FinishedStudy, tmp_path: Path) -> None:
    mlflow_client = client(open_store(finished.root))
    records = load_records(finished.folder)
    best = max(r.evaluations[-1].success_rate for r in records)
    (model,) = mlflow_client.search_registered_models()
    (version,) = mlflow_client.search_model_versions(f"name='{model.name}'")
    assert model.aliases == {"best": version.version}
    # Of equal ones the first: `grpo` before `both`.
    first = next(r for r in (records[1], records[0]) if r.evaluations[-1].success_rate == best)
    assert version.run_id == first.mlflow_run_id
    assert (version.tags["study"], version.tags["arm"], version.tags["seed"]) == ("tiny", first.arm, "0")
    assert version.tags["panel"] == first.panel_hash
    mlflow.set_tracking_uri(mlflow_client.tracking_uri)
    try:
        path = mlflow.artifacts.download_artifacts(f"models:/{model.name}@best", dst_path=str(tmp_path))
    finally:
        mlflow.set_tracking_uri(None)
    assert not [p.name for p in Path(path).rglob("*") if p.suffix in (".bin", ".pkl", ".pt")], "no pickle"
    base = AutoModelForCausalLM.from_pretrained(checkpoint())
    loaded = PeftModel.from_pretrained(base, path)
    state = torch.load(finished.folder / "runs" / first.arm / "seed_0" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    mine = {name: value for name, value in loaded.named_parameters() if "lora_" in name}
    theirs = {name: value for name, value in state.items() if "lora_" in name}
    assert len(mine) == len(theirs) > 0
    assert sorted(v.sum().item() for v in mine.values()) == sorted(v.sum().item() for v in theirs.values())


def test_episodes_are_traces_and_games_are_datasets(finished: FinishedStudy) -> None:
    mlflow_client = client(open_store(finished.root))
    for run in runs_in_mlflow(finished.root)[1:]:
        found = mlflow_client.search_traces(
            locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=500
        )
        assert sorted(t.info.tags["iteration"] for t in found) == ["0", "0", "2", "2", "3", "3"]
        panel, training = run.inputs.dataset_inputs
        assert panel.dataset.digest == run.data.tags["panel"]
        assert (panel.dataset.name, training.dataset.name) == ("generated-valid_seen", "training games")


def test_a_trained_run_evaluates_to_its_own_last_point(
    finished: FinishedStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished.folder / "runs" / "both" / "seed_0"
    out = tmp_path / "outcomes.json"
    assert evaluate.main(["--run", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "6 games" in said
    assert "95 % interval" in said
    record = load_record(run / "record.json")
    content = json.loads(out.read_text())
    assert content.pop("panel") == record.panel_hash
    assert content == json.loads(record.evaluations[-1].model_dump_json())
    assert evaluate.main(["--run", str(run), "--games", "3", "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["outcomes"]) == 3


def test_an_exported_policy_plays_like_the_run_it_is_from(
    finished: FinishedStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out, played = finished.folder / "runs" / "both" / "seed_0", tmp_path / "policy", tmp_path / "a.json"
    assert export.main(["--run", str(run), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote the model of {run} after 3 iterations to {out}\n"
    arguments = ["--config", str(run / "config.yaml"), "--policy.model", str(out), "--out", str(played)]
    assert evaluate.main(arguments) == 0
    last = load_record(run / "record.json").evaluations[-1]
    outcomes = json.loads(played.read_text())["outcomes"]
    assert outcomes == [json.loads(o.model_dump_json()) for o in last.outcomes]
    assert export.main(["--run", str(run), "--out", str(out)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    alone = tmp_path / "adapter"
    assert export.main(["--run", str(run), "--out", str(alone), "--adapter"]) == 0
    weights = "adapter_model.safetensors"
    assert (alone / weights).read_bytes() == (run / "adapter" / weights).read_bytes()


def test_a_run_without_adapters_or_checkpoint_is_not_exported(
    finished: FinishedStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(["--run", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "is no folder of a trained run" in capsys.readouterr().err
    config = yaml.safe_load((finished.folder / "runs" / "both" / "seed_0" / "config.yaml").read_text())
    config["policy"]["lora"]["enabled"] = False
    write_yaml(tmp_path / "config.yaml", config)
    assert export.main(["--run", str(tmp_path), "--out", str(tmp_path / "x"), "--adapter"]) == 2
    assert "has no adapters; leave out --adapter" in capsys.readouterr().err
    assert export.main(["--run", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_refused(
    finished: FinishedStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished.folder / "runs" / "both" / "seed_0"
    assert evaluate.main(["--run", str(run), "--policy.lora.rank", "3"]) == 2
    assert "does not fit the model" in capsys.readouterr().err
    assert evaluate.main(["--run", str(run), "--policy.lora.enabled", "false"]) == 2
    assert "does not fit the model" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert evaluate.main(["--run", str(tmp_path)]) == 2
    assert "holds no checkpoint (last.ckpt)" in capsys.readouterr().err
    (tmp_path / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:1000])
    assert evaluate.main(["--run", str(tmp_path)]) == 2
    assert "is broken" in capsys.readouterr().err


def iteration_of(root: Path, arm: str, seed: int = 0) -> int:
    """Iterations a run says it has completed; -1 before it began."""
    try:
        path = root / "studies" / "tiny" / "runs" / arm / f"seed_{seed}" / "progress.json"
        return int(json.loads(path.read_text())["iteration"])
    except (OSError, ValueError):
        return -1


def workers_alive(root: Path) -> list[str]:
    """Processes that hold a file below ``root``, such as the worker of a study."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            open_files = [os.readlink(fd) for fd in (process / "fd").iterdir()]
        except OSError:
            continue
        found += [process.name for name in open_files if name.startswith(f"{root}/")]
    return found


def test_a_study_that_was_killed_goes_on_to_the_same_end(finished: FinishedStudy, tmp_path: Path) -> None:
    """The command alone is killed: its worker must not go on by itself and disturb the next command."""
    root = tmp_path / "mlruns"
    arguments = command("ablate", "--study", finished.file, "--root", root)
    kill_when(arguments, lambda: iteration_of(root, "grpo") >= 1)
    deadline = time.monotonic() + 30
    while workers_alive(root) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers_alive(root) == []
    folder = root / "studies" / "tiny"
    assert load_record(folder / "runs" / "grpo" / "seed_0" / "record.json").status == "running"
    assert not (folder / "results.json").exists()
    assert not (folder / "runs" / "both").exists()
    assert {run.info.status for run in runs_in_mlflow(root)} == {"RUNNING"}

    assert ablate.main(["--study", str(finished.file), "--root", str(root)]) == 0
    for arm in ARMS:
        assert_same(outcome(root, arm), outcome(finished.root, arm))
    assert outcome(root, "grpo")["status"] == ("finished", None, "FINISHED")
    assert [run.info.run_name for run in runs_in_mlflow(root)] == ["tiny", "both/seed_0", "grpo/seed_0"]
    assert {run.info.status for run in runs_in_mlflow(root)} == {"FINISHED"}
    same = ("arms", "panel", "comparisons")
    mine, theirs = (json.loads((f / "results.json").read_text()) for f in (folder, finished.folder))
    for results in (mine, theirs):
        for arm in results["arms"].values():
            arm.pop("seconds")
    assert {k: mine[k] for k in same} == {k: theirs[k] for k in same}


KILLED_AT = """
import os, signal, sys
from envrl.experiments import train
{patch}
sys.exit(train.main(sys.argv[1:]))
"""
BEFORE_CHECKPOINT = """
from envrl.training.callbacks import CheckpointCallback
saved = CheckpointCallback.on_train_epoch_end
def die(self, trainer, module):
    if trainer.current_epoch + 1 == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    saved(self, trainer, module)
CheckpointCallback.on_train_epoch_end = die
"""
AFTER_CHECKPOINT = BEFORE_CHECKPOINT.replace("    saved(self, trainer, module)\n", "").replace(
    "    if trainer", "    saved(self, trainer, module)\n    if trainer"
)
BEFORE_THE_END = """
from envrl.experiments.runner import Runner
Runner._log_endings = lambda self: os.kill(os.getpid(), signal.SIGKILL)
"""
BEFORE_ITS_ID_IS_KNOWN = """
from envrl.experiments.runner import Runner
update = Runner._update
def die(self, **changes):
    if "mlflow_run_id" in changes:
        os.kill(os.getpid(), signal.SIGKILL)
    update(self, **changes)
Runner._update = die
"""


@pytest.mark.parametrize(
    ("patch", "evaluated", "completed"),
    [
        pytest.param(BEFORE_CHECKPOINT, [0, 2], 1, id="between evaluation and checkpoint"),
        pytest.param(AFTER_CHECKPOINT, [0, 2], 2, id="right after a checkpoint"),
        pytest.param(BEFORE_THE_END, [0, 2, 3], 3, id="after the last checkpoint", marks=pytest.mark.slow),
        pytest.param(
            BEFORE_ITS_ID_IS_KNOWN, [], None, id="before its MLflow id is known", marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_killed_at_an_awkward_moment_goes_on_to_the_same_end(
    patch: str, evaluated: list[int], completed: int | None, finished: FinishedStudy, tmp_path: Path
) -> None:
    root = tmp_path / "mlruns"
    config = finished.folder / "runs" / "both" / "seed_0" / "config.yaml"
    options = ["--config", str(config), "--root", str(root), "--name", "tiny"]
    kill_when_dead([sys.executable, "-c", KILLED_AT.format(patch=patch), *options])
    folder = root / "studies" / "tiny" / "runs" / "run" / "seed_0"
    record = load_record(folder / "record.json")
    assert record.status == "running"
    assert [e.iteration for e in record.evaluations] == evaluated
    if completed is None:
        assert not (folder / "last.ckpt").exists()
        assert record.mlflow_run_id is None
    else:
        state = torch.load(folder / "last.ckpt", weights_only=True)
        assert state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == completed

    assert train.main(options) == 0
    assert_same(outcome(root, "run"), outcome(finished.root, "both"))
    assert len(runs_in_mlflow(root)) == 1


def kill_when_dead(arguments: Sequence[str]) -> None:
    """Runs a command that kills itself."""
    import subprocess

    done = subprocess.run(arguments, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == -9, done.stderr


@pytest.mark.fault(
    "one arm of a study can't be trained",
    "all other runs are made, and the report and the console name the arm and why",
)
def test_a_failing_arm_stops_no_other_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: FinishedStudy
) -> None:
    """The arm's adapters fit no layer, which only loading the model can tell."""
    arms = {"grpo": {"train.iterations": 1}, "odd": {"policy.lora.targets": "knee_proj"}}
    file = write_study(tmp_path, checkpoint(), arms=arms)
    root = tmp_path / "mlruns"
    assert ablate.main(["--study", str(file), "--root", str(root)]) == 1
    said = capsys.readouterr().out
    assert "odd seed 0 failed: policy.lora.targets 'knee_proj'" in said
    folder = root / "studies" / "tiny"
    assert json.loads((folder / "results.json").read_text())["missing"][0].startswith(
        "odd, seed 0: failed (policy.lora.targets 'knee_proj'"
    )
    assert "knee_proj" in (folder / "report.md").read_text()
    parent, *children = runs_in_mlflow(root)
    assert (parent.info.status, [c.info.run_name for c in children]) == ("FAILED", ["grpo/seed_0"])
    assert children[0].info.status == "FINISHED"


def test_a_study_is_run_by_one_command_at_a_time(
    finished: FinishedStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from envrl.experiments import resume

    monkeypatch.setattr(resume, "_LOCK_WAIT_S", 0.2)
    with resume.alone(finished.folder):
        assert ablate.main(["--study", str(finished.file), "--root", str(finished.root)]) == 2
    assert "another process works in" in capsys.readouterr().err
    assert {run.info.status for run in runs_in_mlflow(finished.root)} == {"FINISHED"}


@pytest.mark.fault(
    "the command of a study, or the whole machine, goes down with two runs under way",
    "the same command goes on from the checkpoints and ends with the same numbers",
)
@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True], ids=["the command", "the machine"])
def test_runs_side_by_side_can_be_killed_too(
    whole_group: bool, finished: FinishedStudy, tmp_path: Path
) -> None:
    content = yaml.safe_load(finished.file.read_text())
    file = write_yaml(tmp_path / "study.yaml", {**content, "jobs": 2})
    root = tmp_path / "mlruns"
    kill_when(
        command("ablate", "--study", file, "--root", root),
        lambda: min(iteration_of(root, arm) for arm in ARMS) >= 1,
        whole_group=whole_group,
    )
    done = call("ablate", "--study", file, "--root", root)
    assert done.returncode == 0, done.stderr
    for arm in ARMS:
        assert_same(outcome(root, arm), outcome(finished.root, arm))
    assert len(runs_in_mlflow(root)) == 3


@pytest.mark.slow
@pytest.mark.fault(
    "a worker process of a study is killed, as the system does when memory is short",
    "the study says so, goes on from the checkpoints by itself and ends with the same numbers",
)
def test_a_killed_worker_is_replaced_and_said(finished: FinishedStudy, tmp_path: Path) -> None:
    content = yaml.safe_load(finished.file.read_text())
    file, root = write_yaml(tmp_path / "study.yaml", {**content, "jobs": 2}), tmp_path / "mlruns"
    process = subprocess.Popen(
        command("ablate", "--study", file, "--root", root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while min(iteration_of(root, arm) for arm in ARMS) < 1:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        (worker,) = set(workers_alive(root / "studies" / "tiny" / "runs" / "both"))
        os.kill(int(worker), signal.SIGKILL)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert out.count("a worker process died; its run goes on from its checkpoint") == 1
    assert "failed" not in out
    for arm in ARMS:
        assert_same(outcome(root, arm), outcome(finished.root, arm))
    assert {run.info.status for run in runs_in_mlflow(root)} == {"FINISHED"}
    assert len(runs_in_mlflow(root)) == 3


@pytest.mark.slow
def test_ctrl_c_ends_a_study_in_order(finished: FinishedStudy, tmp_path: Path) -> None:
    import signal
    import subprocess

    root = tmp_path / "mlruns"
    process = subprocess.Popen(
        command("ablate", "--study", finished.file, "--root", root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while iteration_of(root, "grpo") < 1:
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip() == "interrupted; run the same command again to go on from the last checkpoint"
    assert {run.info.status for run in runs_in_mlflow(root)} == {"KILLED"}
    assert ablate.main(["--study", str(finished.file), "--root", str(root)]) == 0
    for arm in ARMS:
        assert_same(outcome(root, arm), outcome(finished.root, arm))


def test_records_of_other_runs_are_left_out_of_the_report(
    finished: FinishedStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate.main(["--study", str(finished.file), "--root", str(finished.root), "--arms", "both"]) == 0
    capsys.readouterr()
    assert list(json.loads((finished.folder / "results.json").read_text())["arms"]) == ["both"]
    assert ablate.main(["--study", str(finished.file), "--root", str(finished.root)]) == 0
    assert list(json.loads((finished.folder / "results.json").read_text())["arms"]) == ["grpo", "both"]


def test_a_record_is_what_the_checkpoint_covers() -> None:
    from envrl.experiments.resume import covered_by

    record = RunRecord.model_validate(
        {
            "arm": "a", "seed": 0, "status": "failed", "error": "disk full", "panel_hash": "p",
            "evaluations": [{"iteration": i, "outcomes": []} for i in (0, 2, 4)],
            "training_success": [0.1, 0.2, 0.3, 0.4],
        }
    )  # fmt: skip
    at_three = covered_by(record, 3)
    assert [e.iteration for e in at_three.evaluations] == [0, 2]
    assert at_three.training_success == (0.1, 0.2, 0.3)
    assert (at_three.status, at_three.error) == ("running", None)
    without = covered_by(record, None)
    assert (without.evaluations, without.training_success) == ((), ())


@pytest.mark.slow
def test_the_notebook_draws_a_real_study(finished: FinishedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    path = Path(__file__).resolve().parents[2] / "notebooks" / "success_rate_curves.ipynb"
    monkeypatch.setenv("ENVRL_MLRUNS", str(finished.root))
    monkeypatch.setenv("ENVRL_EXPERIMENT", "tiny")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert [o for o in outputs if o.output_type == "stream"] == []
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    shown = "\n".join(str(o.get("data", {}).get("text/plain", "")) for o in outputs)
    assert "both" in shown
    assert "grpo" in shown
