"""Updates whose loss or gradient is not finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from envrl.errors import ConfigFault, PolicyFault
from envrl.losses.schedules import Schedule
from envrl.policy.batch import RowBatch
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.policy.states import RowStates
from envrl.rollout.settings import BatchSettings
from envrl.training.settings import BalanceSettings, LossSettings, OptimSettings
from small_runs import RunPlan, SmallRun, fit, small_run, weights
from support import COLOURS, IdentityEnv, game, word_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning")

MICRO = 2


def run_of(updates: int = 3, most: int = 5, **changes: Any) -> SmallRun:
    """All weights are trained, in updates of two micro-batches."""
    policy = PolicySettings(model=str(word_checkpoint(COLOURS)), lora=LoraSettings(enabled=False))
    plan = RunPlan(
        policy,
        tuple(game(word) for word in ("red", "green", "blue")),
        lambda: IdentityEnv(turns=3),
        batch=BatchSettings(updates=updates, micro_batches=MICRO),
        optim=OptimSettings(lr=1e-2, max_skipped_updates=most),
        diagnose_every=0,
        measure=False,
    )
    return small_run(replace(plan, **changes))


def spoil_loss(run: SmallRun, due: Callable[[int], bool], value: float) -> None:
    """Makes hidden states of chosen forward passes (one a micro-batch) useless, from the beginning 0."""
    policy, calls = run.module.policy, iter(range(10_000))
    original = policy.states

    def spoilt(rows: RowBatch) -> RowStates:
        states = original(rows)
        return replace(states, flat=states.flat * (value if due(next(calls)) else 1.0))

    policy.states = spoilt  # type: ignore[method-assign]


def spoil_gradient(run: SmallRun, due: Callable[[int], bool], value: float) -> None:
    """Leaves every loss as it is, and spoils one weight's gradient in chosen micro-batches."""
    calls = iter(range(10_000))
    weight = next(p for p in run.module.policy.parameters() if p.requires_grad and p.dim() == 1)
    weight.register_hook(lambda gradient: gradient * (value if due(next(calls)) else 1.0))


class Snapshots(L.Callback):
    """Trained weights and the optimiser's state after every update."""

    def __init__(self, run: SmallRun) -> None:
        self._run = run
        self.taken: list[tuple[dict[str, torch.Tensor], dict[str, Any]]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.taken.append((weights(self._run), copy.deepcopy(trainer.optimizers[0].state_dict())))


def identical(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    return bool(a == b)


@pytest.mark.fault(
    "the loss or the gradient of an update is NaN or infinite",
    "the update is left out and counted; weights and optimiser stay bitwise as they were; the next is made",
)
@pytest.mark.parametrize(
    ("spoil", "value", "micro"),
    [
        (spoil_loss, math.nan, 0),
        (spoil_loss, math.inf, 1),
        (spoil_gradient, math.nan, 1),
        (spoil_gradient, -math.inf, 0),
    ],
)
def test_an_update_that_is_not_finite_is_left_out(
    spoil: Callable[[SmallRun, Callable[[int], bool], float], None],
    value: float,
    micro: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = run_of()
    spoil(run, lambda call: call == MICRO + micro, value)
    snapshots = Snapshots(run)
    (metrics,) = fit(run, 1, snapshots)
    assert "warning: iteration 0: an update was left out" in capsys.readouterr().err
    first, second, third = snapshots.taken[MICRO - 1 :: MICRO]
    assert identical(first, second)
    assert not identical(second[0], third[0])
    assert metrics["train/skipped_updates"] == 1
    assert run.module.updates_done == 2
    assert all(math.isfinite(value) for value in metrics.values())
    assert {"train/loss", "train/grad_norm", "train/ratio_mean"} <= metrics.keys()
    # The mean over two updates; divided by the three that there were to be it would be about 2/3.
    assert metrics["train/ratio_mean"] == pytest.approx(1.0, abs=0.2)


@pytest.mark.fault(
    "update after update is NaN or infinite",
    "the run stops after optim.max_skipped_updates of them and names the iteration and what to change",
)
@pytest.mark.parametrize(("most", "made"), [(0, 0), (2, 2)])
def test_too_many_in_a_row_stop_the_run(most: int, made: int) -> None:
    run = run_of(updates=1, most=most, iterations=9)
    start = weights(run)
    spoil_loss(run, lambda call: True, math.nan)
    with pytest.raises(PolicyFault, match=rf"^iteration {made}: .*max_skipped_updates={most} .*optim\.lr"):
        fit(run, 9)
    assert len(run.collected) == made + 1
    assert identical(start, weights(run))
    assert run.module.updates_done == 0


def test_a_good_update_in_between_begins_the_count_anew(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(updates=4, most=1)
    spoil_loss(run, lambda call: (call // MICRO) % 2 == 0, math.nan)
    (metrics,) = fit(run, 1)
    assert capsys.readouterr().err.count("(1 in a row, 1 at most)") == 2
    assert metrics["train/skipped_updates"] == 2
    assert run.module.updates_done == 2


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    begun = run_of(updates=1, most=1, iterations=2)
    spoil_loss(begun, lambda call: True, math.nan)
    saver = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=1)
    fit(begun, 1, saver)
    resumed = run_of(updates=1, most=1, iterations=2)
    spoil_loss(resumed, lambda call: True, math.nan)
    with pytest.raises(PolicyFault, match=r"^iteration 1: .* 2 updates one after the other"):
        fit(resumed, 2, saver, checkpoint_path=tmp_path / "last.ckpt")


def test_what_was_left_out_teaches_adaptive_weights_nothing() -> None:
    loss = LossSettings(
        sp=Schedule("constant", 0.1),
        id=Schedule("constant", 0.1),
        balance=BalanceSettings(kind="uncertainty"),
    )
    run = run_of(loss=loss, measure=True, diagnose_every=1)
    # The first update, the only one whose losses count: with it left out the second one's do.
    spoil_loss(run, lambda call: call < 2 * MICRO, math.nan)
    (metrics,) = fit(run, 1)
    assert metrics["train/skipped_updates"] == 1
    assert all(math.isfinite(value) for value in metrics.values())
    kept = run.module._weights.state_dict()["log_variances"]
    assert all(math.isfinite(value) and value != 0 for value in kept.values())


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ConfigFault, match=r"optim\.max_skipped_updates is -1"):
        OptimSettings(max_skipped_updates=-1)
