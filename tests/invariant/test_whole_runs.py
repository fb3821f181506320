"""Whole runs with a real trainer: weight 0, staleness, exact resume, and a game that can be learnt."""

import random
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from envrl.errors import ConfigFault, PolicyFault
from envrl.losses.schedules import Schedule
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.training.callbacks import RandomStateCallback
from envrl.training.settings import LossSettings, OptimSettings
from small_runs import RunPlan, SmallRun, fit, small_run, weights
from support import COLOURS, IdentityEnv, adapters, game, word_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning")

GAMES = tuple(game(word) for word in ("red", "green", "blue"))
FULL = LoraSettings(enabled=False)


def plan(lora: LoraSettings = FULL, four_bit: bool = False, **changes: object) -> RunPlan:
    """Three-turn episodes of a random policy: rewards differ, so every iteration has a gradient."""
    policy = PolicySettings(model=str(word_checkpoint(COLOURS)), lora=lora, load_in_4bit=four_bit)
    return replace(RunPlan(policy, GAMES, lambda: IdentityEnv(turns=3)), **changes)


def same(a: SmallRun, b: SmallRun) -> bool:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def moved(run: SmallRun) -> bool:
    start = weights(small_run(run.plan))
    return any(not torch.equal(start[name], weight) for name, weight in weights(run).items())


QUESTIONS = AuxiliaryRows(sp_rows="questions")
SHUFFLED = AuxiliaryRows(shuffle_targets=True)


@pytest.mark.parametrize(
    "auxiliary", [AuxiliaryRows(), QUESTIONS, SHUFFLED], ids=["read", "asked", "shuffled"]
)
def test_weight_zero_is_bitwise_the_run_without_the_term(auxiliary: AuxiliaryRows) -> None:
    """With the terms measured in every iteration, and with neither their rows nor their measurement."""
    zero = LossSettings(sp=Schedule("cosine", 0.0), id=Schedule("constant", 0.0))
    measured = small_run(plan(auxiliary=auxiliary, loss=zero, diagnose_every=1))
    bare = small_run(plan(auxiliary=auxiliary, diagnose_every=0, measure=False))
    metrics, bare_metrics = fit(measured, 2), fit(bare, 2)
    assert same(measured, bare)
    assert moved(measured)
    assert {"train/sp_ce", "train/id_ce", "train/kl"} <= metrics[1].keys()
    assert not {"train/id_ce", "train/kl"} & bare_metrics[1].keys()
    assert metrics[1]["train/loss"] == bare_metrics[1]["train/loss"]
    weighted = replace(zero, id=Schedule("constant", 0.1))
    with_term = small_run(plan(auxiliary=auxiliary, loss=weighted))
    fit(with_term, 2)
    assert not same(with_term, bare)


@pytest.mark.parametrize("layout", ["transcript", "steps"])
def test_iterations_are_played_by_the_weights_they_train(layout: str) -> None:
    rollout = RolloutSettings(layout=layout, games=3, episodes_per_game=2)
    batch = BatchSettings(updates=2, micro_batches=2, epochs=2)
    run = small_run(plan(rollout=rollout, batch=batch, iterations=3, auxiliary=QUESTIONS))
    metrics = fit(run, 3)
    versions = [
        {t.generation.policy_version for g in e.groups for tr in g.trajectories for t in tr.transitions}
        for e in run.collected
    ]
    # Two updates in each of two epochs.
    assert versions == [{0}, {4}, {8}]
    assert run.module.updates_done == 12
    assert run.datamodule.episodes_played == 18
    assert [m["iteration"] for m in metrics] == [0.0, 1.0, 2.0]


def test_the_first_update_sees_no_gap_between_sampler_and_trainer() -> None:
    run = small_run(plan(lora=adapters(rank=2), iterations=3))
    gaps = [m["train/logprob_gap"] for m in fit(run, 3)]
    assert moved(run)
    assert max(gaps) < 1e-5


class Endless(IterableDataset):
    """The rollouts without a length: the trainer then fetches one batch ahead of the update."""

    def __init__(self, run: SmallRun) -> None:
        self._run = run

    def __iter__(self):
        for _ in range(3):
            yield from self._run.source.collect(0, self._run.module.updates_done).batches


def test_a_loader_that_fetches_ahead_is_found_out() -> None:
    run = small_run(plan(batch=BatchSettings(micro_batches=1)))
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(PolicyFault, match="updates ago"):
        trainer.fit(run.module, DataLoader(Endless(run), batch_size=None))


@pytest.mark.parametrize(
    ("lora", "batch", "quantised"),
    [
        (adapters(rank=2), BatchSettings(micro_batches=2), False),
        (FULL, BatchSettings(updates=2, micro_batches=1), False),
        (adapters(rank=2), BatchSettings(micro_batches=2), True),
    ],
    ids=["adapters", "full", "qlora"],
)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    tmp_path: Path, lora: LoraSettings, batch: BatchSettings, quantised: bool
) -> None:
    loss = LossSettings(sp=Schedule("cosine", 0.2), id=Schedule("linear", 0.2, length=3), kl_coefficient=0.05)
    wanted = plan(lora=lora, batch=batch, loss=loss, iterations=4, four_bit=quantised)
    if quantised:
        # With an optimiser that keeps its own state in 8 bits too.
        wanted = replace(wanted, optim=replace(wanted.optim, eight_bit=True))
        try:
            small_run(wanted).module.configure_optimizers()
        except (PolicyFault, ConfigFault) as fault:
            pytest.skip(f"not supported here: {fault}")
    whole = small_run(wanted)
    curve = fit(whole, 4)

    first = small_run(wanted)
    saver = ModelCheckpoint(
        dirpath=tmp_path, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    start = fit(first, 2, RandomStateCallback(), saver)
    second = small_run(wanted)
    rest = fit(second, 4, RandomStateCallback(), checkpoint_path=tmp_path / "last.ckpt")
    assert same(second, whole)
    assert moved(whole)
    assert not same(first, whole)
    assert [*start, *rest] == curve
    assert second.module.updates_done == whole.module.updates_done == 4 * batch.updates
    assert second.datamodule.episodes_played == whole.datamodule.episodes_played == 48
    played = [e.groups for e in whole.collected]
    assert [e.groups for e in (*first.collected, *second.collected)] == played


def test_a_resumed_runs_kl_still_refers_to_the_start(tmp_path: Path) -> None:
    """With every parameter trained and the KL only measured, the reference is a copy of the weights."""
    wanted = plan(iterations=4, diagnose_every=2)
    curve = fit(small_run(wanted), 4)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=True)
    fit(small_run(wanted), 1, saver)
    rest = fit(small_run(wanted), 4, checkpoint_path=tmp_path / "last.ckpt")
    assert rest[1]["train/kl"] == curve[2]["train/kl"] > 1e-6


def test_checkpoints_hold_trained_weights_only(tmp_path: Path) -> None:
    run = small_run(plan(lora=adapters(rank=2)))
    fit(run, 1, ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=True))
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["state_dict"].keys() == weights(run).keys()
    assert content["updates_done"] == 1


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    keeper = RandomStateCallback()
    random.gauss(0, 1)  # leaves half of a pair behind, which is part of the state
    np.random.standard_normal()  # noqa: NPY002
    torch.save(keeper.state_dict(), tmp_path / "state.pt")

    def draw() -> tuple[object, ...]:
        return (
            torch.rand(3).tolist(),
            np.random.standard_normal(3).tolist(),  # noqa: NPY002
            [random.gauss(0, 1) for _ in range(3)],
        )

    expected = draw()
    assert draw() != expected
    keeper.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


class Everything(IdentityEnv):
    """Fails at every step."""

    def step(self, action: str):
        raise RuntimeError("no electricity")


def test_an_iteration_in_which_every_environment_fails_is_no_crash() -> None:
    run = small_run(plan(make_env=Everything))
    metrics = fit(run, 2)
    assert run.collected[0].metrics["rollout/fault_rate"] == 1.0
    assert metrics[1]["train/loss"] == 0.0


def success(run: SmallRun) -> list[float]:
    return [e.metrics["rollout/success_rate"] for e in run.collected]


def test_grpo_learns_to_repeat_the_word_it_is_shown() -> None:
    """Three words, ten tokens: 10 % by chance; saying always the same word wins a third."""
    run = small_run(
        plan(
            make_env=lambda: IdentityEnv(turns=1),
            rollout=RolloutSettings(games=3, episodes_per_game=32),
            batch=BatchSettings(updates=2, micro_batches=1),
            loss=LossSettings(entropy_coefficient=0.01),
            optim=OptimSettings(lr=1e-2, weight_decay=0.0),
            max_new_tokens=1,
            iterations=30,
            diagnose_every=0,
            measure=False,
        )
    )
    fit(run, 30)
    curve = success(run)
    assert np.mean(curve[:2]) < 0.3
    assert np.mean(curve[-3:]) > 0.8
