"""Whole runs with objectives beside the paper's two, controls, extra updates and adaptive weights."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from envrl.losses.schedules import Schedule
from envrl.policy.batch import Phase
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.rollout.source import Wanted
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


class Moved(L.Callback):
    """Takes down how many weights each update of two micro-batches moved, and what kind of update it was."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, Phase, int]] = []
        self._before: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx % 2 == 0:
            self._before = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx % 2 == 1:
            now = dict(module.named_parameters())
            moved = sum(not torch.equal(now[name], old) for name, old in self._before.items())
            self.updates.append((trainer.current_epoch, batch.phase, moved))


@pytest.mark.parametrize("lora", [False, True])
def test_an_update_whose_objectives_have_no_weight_any_more_moves_nothing(lora: bool) -> None:
    """With momentum from updates before, a weight with a gradient of 0 would go on."""
    ends = Schedule("switch", 0.3, switch_at=0.5)
    policy = PolicySettings(model=str(word_checkpoint(COLOURS)), lora=LoraSettings(enabled=lora))
    run = small_run(
        plan(
            policy=policy,
            loss=LossSettings(sp=ends, id=ends),
            batch=BatchSettings(micro_batches=2, alternate=1),
            measure=True,
            iterations=4,
        )
    )
    seen = Moved()
    fit(run, 4, seen)
    moved = {(epoch, phase): count for epoch, phase, count in seen.updates}
    assert len(moved) == 8
    whole = len(weights(run))
    assert [moved[epoch, Phase.POLICY] for epoch in range(4)] == [moved[0, Phase.POLICY]] * 4
    assert moved[0, Phase.POLICY] > 1
    # LoRA's second factors are 0 before the first update, so that the first factors have no gradient.
    assert moved[1, Phase.AUXILIARY] == whole
    assert [moved[epoch, Phase.AUXILIARY] for epoch in (2, 3)] == [0, 0]


def test_what_is_measured_for_diagnosis_does_not_decide_when_objectives_are_given_up() -> None:
    loss = LossSettings(sp=Schedule(weight=0.0), id=CONSTANT, stop=StopSettings(window=1))
    auxiliary = AuxiliaryRows(sp_rows="questions")
    seen = []
    for measure in (False, True):
        run = small_run(plan(loss=loss, auxiliary=auxiliary, measure=measure, iterations=1))
        if not measure:
            run.source._learning = replace(
                run.source._learning, wanted=lambda iteration: Wanted(False, True, ())
            )
        metrics = fit(run, 1)[0]
        assert ("train/sp_ce" in metrics) is measure
        seen.append(run.module._weights._stop.state_dict()["seen"])
    assert len(seen[0]) == 1
    # Other questions in the same pass change last digits; those of another objective change the second.
    assert seen[0][0] == pytest.approx(seen[1][0], abs=1e-5)
