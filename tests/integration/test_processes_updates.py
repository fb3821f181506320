"""Updates of several processes: memory that suffices on one of them only, and a critic of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envrl.experiments import run as composition
from envrl.experiments.settings import EnvSettings
from envrl.tracking.store import client
from process_runs import (
    Done,
    configured,
    helper_with_little_memory,
    place_in,
    require_equal_weights,
    run,
    with_little_memory,
)

pytestmark = [pytest.mark.usefixtures("own_places"), pytest.mark.slow]

PPO: dict[str, Any] = {
    "loss.algorithm": "ppo",
    "loss.ppo.gamma": 0.9,
    "loss.ppo.gae_lambda": 0.8,
    # So large that the second iteration's advantages are those of a critic that knows something.
    "loss.ppo.value_lr": 0.1,
    "train.iterations": 3,
    "evaluation.dynamics": 0,
}


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One process with memory enough."""
    return run(tmp_path_factory.mktemp("roomy"), configured())


@pytest.mark.fault(
    "memory does not suffice for an update on one of a run's processes",
    "that process alone makes its micro-batch in smaller parts; the weights are those of one process",
)
@pytest.mark.parametrize("starved", [0, 1], ids=["the first", "the second"])
def test_one_process_makes_its_micro_batches_in_parts(
    starved: int,
    roomy: Done,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if starved == 0:
        monkeypatch.setattr(composition, "load_policy", with_little_memory)
    else:
        monkeypatch.setattr("envrl.experiments.processes._help", helper_with_little_memory)
    capfd.readouterr()
    divided = run(tmp_path, configured(2))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: memory")]
    assert len(said) == 1, said
    require_equal_weights(roomy, divided)
    assert roomy.metrics["train/oom_splits"] == 0
    run_id = divided.record.mlflow_run_id
    assert run_id is not None
    splits = client(place_in(tmp_path).store).get_metric_history(run_id, "train/oom_splits")
    assert sum(point.value for point in splits) > 0
    assert divided.record.training_success == roomy.record.training_success


def test_a_critic_learns_the_same_in_two_processes(tmp_path: Path) -> None:
    alone, two = (run(tmp_path / str(n), configured(n, **PPO)) for n in (1, 2))
    require_equal_weights(alone, two)
    critic = {name: weight for name, weight in alone.weights.items() if name.startswith("critic.")}
    assert set(critic) == {"critic.weight", "critic.bias"}
    assert all(float(weight.abs().max()) > 1e-3 for weight in critic.values())
    learnt = ("rollout/value_mean", "rollout/explained_variance", "train/loss_value", "train/grad_norm")
    assert abs(alone.metrics["rollout/value_mean"]) > 1e-3
    for name in learnt:
        assert two.metrics[name] == pytest.approx(alone.metrics[name], rel=2e-3, abs=1e-5), name


IDLE: dict[str, Any] = {
    "env.name": "coin_games:Coins",
    "env.max_steps": 2,
    **{f"env.{name}": getattr(EnvSettings(), name) for name in ("receptacles", "objects_per_receptacle")},
    "env.train_games": None,
    "rollout.refill_rounds": 0,
    "rollout.episodes_per_game": 4,
    "loss.sp.weight": 0.0,
    "loss.balance.kind": "none",
    "loss.kl_coefficient": 0.0,
    "loss.entropy_coefficient": 0.0,
    "evaluation.dynamics": 0,
}
"""Half of the groups teach nothing, and no other term reads their rows."""


def test_rows_that_teach_nothing_are_left_out_of_every_share(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", configured(1, **IDLE, **{"batch.skip_flat": False}))
    alone, two = (run(tmp_path / str(n), configured(n, **IDLE)) for n in (1, 2))
    assert whole.metrics["rollout/left_out_share"] == 0
    assert 0 < alone.metrics["rollout/left_out_share"] < 1
    require_equal_weights(whole, alone)
    require_equal_weights(alone, two)
    told = ("rollout/left_out_share", "train/entropy", "train/ratio_mean", "train/loss_policy", "train/kl")
    for name in (*told, "train/grad_norm", "train/loss"):
        assert two.metrics[name] == pytest.approx(alone.metrics[name], rel=2e-3, abs=1e-5), name
    assert alone.metrics["train/grad_norm"] > 1e-3
