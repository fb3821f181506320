"""Whole runs with objectives beside the paper's two, controls, extra updates and adaptive weights."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from envrl.losses.schedules import Schedule
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.tracking.metrics import check_name
from envrl.training.callbacks import RandomStateCallback
from envrl.training.settings import BalanceSettings, LossSettings, ObjectiveSettings, StopSettings
from small_runs import RunPlan, SmallRun, fit, small_run, weights
from support import COLOURS, IdentityEnv, game, word_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning")

GAMES = tuple(game(word) for word in ("red", "green", "blue"))
CONSTANT = Schedule("constant", 0.3)
BOTH = LossSettings(sp=CONSTANT, id=CONSTANT)


def plan(**changes: object) -> RunPlan:
    policy = PolicySettings(model=str(word_checkpoint(COLOURS)), lora=LoraSettings(enabled=False))
    base = RunPlan(policy, GAMES, lambda: IdentityEnv(turns=3), diagnose_every=0, measure=False)
    return replace(base, **changes)


def with_objective(use: str, weight: float, **options: object) -> LossSettings:
    return LossSettings(objectives=(ObjectiveSettings(use, Schedule("constant", weight), options),))


def same(a: SmallRun, b: SmallRun) -> bool:
    first, second = weights(a), weights(b)
    return all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("layout", ["transcript", "steps"])
@pytest.mark.parametrize("use", ["paw", "echo"])
def test_objectives_in_the_policys_rows_learn_from_both_layouts(use: str, layout: str) -> None:
    rollout = RolloutSettings(layout=layout, games=3, episodes_per_game=4)
    auxiliary = AuxiliaryRows(sp_rows="questions")
    base = plan(rollout=rollout, auxiliary=auxiliary)
    bare, zero = small_run(base), small_run(replace(base, loss=with_objective(use, 0.0)))
    run = small_run(replace(base, loss=with_objective(use, 0.5), diagnose_every=1))
    fit(bare, 2)
    fit(zero, 2)
    metrics = fit(run, 2)
    assert same(zero, bare)
    assert not same(run, bare)
    for one in metrics:
        assert all(np.isfinite(value) for value in one.values())
        assert one[f"train/lambda/{use}"] == 0.5
        # Random over ten words: log(10) = 2.3 nats.
        assert 1.0 < one[f"train/ce/{use}"] < 4.0
        for name in one:
            check_name(name)
    # The first iteration plays before any update, so the policy's own numbers are those of the bare run.
    assert run.collected[0].groups == bare.collected[0].groups


def test_micro_batches_change_nothing_for_marked_tokens() -> None:
    """As many updates, cut differently: sums in another order."""
    runs = [
        small_run(plan(loss=with_objective("echo", 0.5), batch=BatchSettings(micro_batches=parts)))
        for parts in (1, 3)
    ]
    one, three = (fit(run, 1)[0] for run in runs)
    assert three == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert one["train/loss_echo"] > 1.0


@pytest.mark.parametrize(
    "auxiliary",
    [
        AuxiliaryRows(control="drop_action"),
        AuxiliaryRows(control="matched_tokens"),
        AuxiliaryRows(sp_rows="questions", control="shuffle_episode"),
        AuxiliaryRows(sp_rows="questions", data="random"),
    ],
    ids=["drop", "matched", "episode", "random"],
)
def test_controls_train_on_something_else_and_play_the_same(auxiliary: AuxiliaryRows) -> None:
    true = plan(loss=BOTH, measure=True, auxiliary=AuxiliaryRows(sp_rows=auxiliary.sp_rows))
    control = replace(true, auxiliary=auxiliary)
    runs = [small_run(true), small_run(control)]
    first, second = (fit(run, 1)[0] for run in runs)
    assert runs[0].collected[0].groups == runs[1].collected[0].groups
    assert first["train/loss_policy"] == second["train/loss_policy"]
    assert first["train/sp_ce"] != second["train/sp_ce"]
    assert not same(*runs)


def test_alternating_updates_are_the_policys_and_the_objectives_alone() -> None:
    batch = BatchSettings(updates=2, micro_batches=2, alternate=2)
    base = plan(loss=replace(BOTH, kl_coefficient=0.1), measure=True)
    run = small_run(replace(base, batch=batch))
    metrics = fit(run, 2)
    assert run.module.updates_done == 6
    assert [t.phase.value for t in run.collected[0].batches] == ["policy"] * 4 + ["auxiliary"] * 2
    # One update of the objectives an iteration: its mean is that update's, not a third of it.
    assert 1.0 < metrics[0]["train/sp_ce"] < 4.0
    assert metrics[0]["train/loss_sp"] == metrics[0]["train/sp_ce"]
    control = small_run(replace(base, batch=replace(batch, extra="policy")))
    theirs = fit(control, 2)
    assert control.module.updates_done == 6
    assert not {"train/sp_ce", "train/id_ce"} & theirs[0].keys()
    assert not same(run, control)
    # Until the first extra update both are the same run.
    assert run.collected[0].groups == control.collected[0].groups


@pytest.mark.parametrize("kind", ["gradient_norm", "uncertainty", "reward"])
def test_adaptive_weights_survive_a_resume_exactly(tmp_path: Path, kind: str) -> None:
    loss = replace(BOTH, balance=BalanceSettings(kind), stop=StopSettings(window=2))
    wanted = plan(loss=loss, measure=True, iterations=4)
    whole = small_run(wanted)
    curve = fit(whole, 4)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=True)
    start = fit(small_run(wanted), 2, RandomStateCallback(), saver)
    second = small_run(wanted)
    rest = fit(second, 4, RandomStateCallback(), checkpoint_path=tmp_path / "last.ckpt")
    assert [*start, *rest] == curve
    assert same(second, whole)
    factors = [one["train/weight_factor/sp"] for one in curve]
    assert len(set(factors)) > 1
    assert [one["train/lambda_sp"] for one in curve] == pytest.approx([0.3 * f for f in factors])
    assert not same(whole, _fixed(wanted))


def test_a_checkpoint_without_adaptive_weights_goes_on(tmp_path: Path) -> None:
    """As one written before there were any: nothing of it is missing in a run of fixed weights."""
    wanted = plan(loss=BOTH, measure=True, iterations=3)
    curve = fit(small_run(wanted), 3)
    fit(
        small_run(wanted), 1, ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=True)
    )
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del content["auxiliary_weights"]
    torch.save(content, tmp_path / "old.ckpt")
    assert fit(small_run(wanted), 3, checkpoint_path=tmp_path / "old.ckpt") == curve[1:]


def _fixed(wanted: RunPlan) -> SmallRun:
    run = small_run(replace(wanted, loss=BOTH))
    fit(run, 4)
    return run


def test_diagnosis_changes_nothing_in_a_run_with_adaptive_weights() -> None:
    """Gradients are then measured in every iteration and still count in every second one only."""
    loss = replace(BOTH, balance=BalanceSettings("gradient_norm", every=2, keep=0.0))
    runs = [small_run(plan(loss=loss, measure=True, iterations=3, diagnose_every=every)) for every in (0, 1)]
    plain, diagnosed = (fit(run, 3) for run in runs)
    assert same(*runs)
    assert [m["train/lambda_sp"] for m in plain] == [m["train/lambda_sp"] for m in diagnosed]
    assert "train/grad_norm/sp" in diagnosed[1].keys() - plain[1].keys()
    assert plain[1]["train/lambda_sp"] == plain[2]["train/lambda_sp"] > 0


def test_balanced_gradients_have_the_length_that_was_asked_for() -> None:
    """The weight is the ratio of lengths: λ · ‖own gradient‖ = 0.3 · ‖policy's‖, of the iteration before."""
    loss = replace(BOTH, balance=BalanceSettings("gradient_norm", keep=0.0, most=1e6))
    metrics = fit(small_run(plan(loss=loss, measure=True, iterations=3)), 3)
    assert metrics[0]["train/lambda_sp"] == 0.0
    for before, after in pairwise(metrics):
        for name in ("sp", "id"):
            weighted = after[f"train/lambda_{name}"] * before[f"train/grad_norm/{name}"]
            assert weighted == pytest.approx(0.3 * before["train/grad_norm/policy"], rel=1e-5)
