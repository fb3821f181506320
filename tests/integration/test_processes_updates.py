"""Updates of several processes: memory that suffices on one of them only, and a critic of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from envrl.experiments import run as composition
from envrl.experiments.processes import _help as helping
from envrl.experiments.settings import EnvSettings
from envrl.policy.model import Policy, load_policy
from process_runs import Done, configured, require_equal_weights, run

pytestmark = [pytest.mark.usefixtures("own_places"), pytest.mark.slow]

MOST_TOKENS = 400
"""What fits into the memory of a process that has little: the longest row there can be, but not several."""
PPO: dict[str, Any] = {
    "loss.algorithm": "ppo",
    "loss.ppo.gamma": 0.9,
    "loss.ppo.gae_lambda": 0.8,
    # So large that the second iteration's advantages are those of a critic that knows something.
    "loss.ppo.value_lr": 0.1,
    "train.iterations": 3,
    "evaluation.dynamics": 0,
}


def with_little_memory(*arguments: Any, **options: Any) -> Policy:
    """The policy, of which an update over many tokens fails as on a device that is full."""
    policy = load_policy(*arguments, **options)

    def before(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[0].shape[:-1].numel()
        if torch.is_grad_enabled() and tokens > MOST_TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    policy.causal.get_decoder().layers[0].register_forward_pre_hook(before)
    return policy


def _helper_with_little_memory(config: Any, place: Any, address: Any, told: Any) -> None:
    """A helping process; it is started by its name."""
    with patch("envrl.experiments.run.load_policy", with_little_memory):
        helping(config, place, address, told)


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
        monkeypatch.setattr("envrl.experiments.processes._help", _helper_with_little_memory)
    capfd.readouterr()
    divided = run(tmp_path, configured(2))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: memory")]
    assert len(said) == 1, said
    require_equal_weights(roomy, divided)
    assert roomy.metrics["train/oom_splits"] == 0
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
