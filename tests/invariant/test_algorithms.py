"""Whole runs of every algorithm with a real trainer on the small policy, in both layouts."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from envrl.policy.batch import RowKind
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.rollout.collate import make_batches
from envrl.rollout.measures import is_flat
from envrl.rollout.rows import TokenRow
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.rollout.turns import Turn
from envrl.tracking.metrics import check_name
from envrl.training.callbacks import RandomStateCallback
from envrl.training.module import EnvRLModule
from envrl.training.settings import GigpoSettings, LossSettings, OptimSettings, PpoSettings
from envrl.types import Role
from small_runs import RunPlan, SmallRun, fit, small_run, weights
from support import COLOURS, IdentityEnv, adapters, game, policy_of, word_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning")

GAMES = tuple(game(word) for word in ("red", "green", "blue"))
FULL = LoraSettings(enabled=False)
OWN = {
    "grpo": (),
    "rloo": (),
    "gigpo": ("rollout/step_group_size", "rollout/lone_step_share"),
    "reinforce++": ("rollout/score_mean",),
    "ppo": ("rollout/value_mean", "rollout/explained_variance"),
}


def plan(lora: LoraSettings = FULL, **changes: object) -> RunPlan:
    """Three-turn episodes of a random policy: rewards differ, so every iteration has a gradient."""
    policy = PolicySettings(model=str(word_checkpoint(COLOURS)), lora=lora)
    auxiliary = AuxiliaryRows(sp_rows="questions")
    start = RunPlan(
        policy, GAMES, lambda: IdentityEnv(turns=3), auxiliary=auxiliary, measure=False, diagnose_every=0
    )
    return replace(start, **changes)


def same(a: SmallRun, b: SmallRun) -> bool:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("layout", ["transcript", "steps"])
@pytest.mark.parametrize("algorithm", OWN)
def test_two_iterations_of_every_algorithm(algorithm: str, layout: str) -> None:
    wanted = plan(
        loss=LossSettings(algorithm=algorithm),
        rollout=RolloutSettings(layout=layout, games=3, episodes_per_game=4),
        diagnose_every=1,
    )
    run = small_run(wanted)
    start = weights(run)
    metrics = fit(run, 2)
    assert any(not torch.equal(start[name], weight) for name, weight in weights(run).items())
    for trained, collected in zip(metrics, run.collected, strict=True):
        assert all(math.isfinite(value) for value in trained.values())
        assert all(math.isfinite(collected.metrics[name]) for name in OWN[algorithm])
        for name in (*trained, *collected.metrics):
            check_name(name)
        assert ("train/loss_value" in trained) == (algorithm == "ppo")
        assert ("train/grad_norm/value" in trained) == (algorithm == "ppo")
    others = {name for own in OWN.values() for name in own} - set(OWN[algorithm])
    assert not others & run.collected[0].metrics.keys()


@pytest.mark.parametrize("layout", ["transcript", "steps"])
def test_gigpo_without_the_step_level_is_bitwise_a_run_of_grpo(layout: str) -> None:
    wanted = plan(rollout=RolloutSettings(layout=layout, games=3, episodes_per_game=4))
    grpo = small_run(wanted)
    none = LossSettings(algorithm="gigpo", gigpo=GigpoSettings(omega=0.0))
    gigpo, with_steps = (
        small_run(replace(wanted, loss=loss)) for loss in (none, LossSettings(algorithm="gigpo"))
    )
    for run in (grpo, gigpo, with_steps):
        fit(run, 2)
    assert same(grpo, gigpo)
    assert not same(grpo, with_steps)


@pytest.mark.parametrize("lora", [adapters(rank=2), FULL], ids=["adapters", "full"])
def test_a_resumed_run_of_ppo_is_bitwise_the_uninterrupted_one(tmp_path: Path, lora: LoraSettings) -> None:
    wanted = plan(lora=lora, loss=LossSettings(algorithm="ppo"), iterations=4, batch=BatchSettings(updates=2))
    whole, first, second = (small_run(wanted) for _ in range(3))
    curve = fit(whole, 4)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=True)
    start = fit(first, 2, RandomStateCallback(), saver)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {"critic.weight", "critic.bias"} <= saved["state_dict"].keys()
    rest = fit(second, 4, RandomStateCallback(), checkpoint_path=tmp_path / "last.ckpt")
    assert {"critic.weight", "critic.bias"} <= weights(whole).keys()
    assert same(second, whole)
    assert not same(first, whole)
    assert [*start, *rest] == curve
    assert [e.metrics["rollout/value_mean"] for e in (*first.collected, *second.collected)] == [
        e.metrics["rollout/value_mean"] for e in whole.collected
    ]


def test_the_critic_has_its_own_learning_rate_and_norm() -> None:
    slow = small_run(
        plan(
            loss=LossSettings(algorithm="ppo", ppo=PpoSettings(value_lr=1e-4)),
            optim=OptimSettings(lr=1e-2, weight_decay=0.0),
        )
    )
    before = weights(slow)
    fit(slow, 1)
    moved = {name: float((w - before[name]).abs().max()) for name, w in weights(slow).items()}
    # The first step of AdamW is the learning rate, whatever the gradient.
    assert moved.pop("critic.bias") == pytest.approx(1e-4, rel=1e-2)
    assert moved.pop("critic.weight") == pytest.approx(1e-4, rel=1e-2)
    assert max(moved.values()) == pytest.approx(1e-2, rel=1e-2)
    # Episodes won are worth 10, so its gradient is far longer than the norm that both are cut to.
    optimiser = slow.module.optimizers().optimizer
    policy, critic = ([p.grad for p in g["params"] if p.grad is not None] for g in optimiser.param_groups)
    for gradients in (policy, critic):
        norm = float(torch.stack([g.norm() for g in gradients]).norm())
        assert 0 < norm <= 1.0 + 1e-4


def test_ppo_learns_what_episodes_are_worth_and_to_repeat_the_word() -> None:
    run = small_run(
        plan(
            make_env=lambda: IdentityEnv(turns=1),
            rollout=RolloutSettings(games=3, episodes_per_game=32),
            batch=BatchSettings(updates=2, micro_batches=1),
            loss=LossSettings(
                algorithm="ppo", entropy_coefficient=0.01, ppo=PpoSettings(value_lr=0.05, value_clip=None)
            ),
            optim=OptimSettings(lr=1e-2, weight_decay=0.0),
            max_new_tokens=1,
            iterations=30,
        )
    )
    fit(run, 30)
    success = [e.metrics["rollout/success_rate"] for e in run.collected]
    assert np.mean(success[:2]) < 0.3
    assert np.mean(success[-3:]) > 0.8
    said = run.collected[-1].metrics["rollout/value_mean"]
    assert said == pytest.approx(run.collected[-1].metrics["rollout/return"] * 10, abs=2.0)


MANY = tuple(game(word) for word in ("red", "green", "blue", "won", ">", "?", "red green", "blue red"))


def refilled(rounds: int, iterations: int = 3) -> RunPlan:
    rollout = RolloutSettings(games=3, episodes_per_game=4, refill_rounds=rounds)
    return plan(games=MANY, rollout=rollout, iterations=iterations)


def test_flat_groups_are_replaced_by_other_games() -> None:
    without, once, often = (small_run(refilled(rounds)).source for rounds in (0, 1, 9))
    first, second, third = (source.collect(0, 0) for source in (without, once, often))
    flat = [n for n, group in enumerate(first.groups) if is_flat(group)]
    assert flat
    assert "rollout/refilled_groups" not in first.metrics
    assert second.metrics["rollout/refilled_groups"] == len(flat)
    for number, (old, new) in enumerate(zip(first.groups, second.groups, strict=True)):
        assert (old == new) == (number not in flat)
    played = {g.game.game_id for g in first.groups}
    assert not played & {second.groups[n].game.game_id for n in flat}
    # More rounds go on until none is flat or every game was played.
    assert sum(map(is_flat, third.groups)) < len(flat)
    assert third.episodes == 4 * (3 + third.metrics["rollout/refilled_groups"]) <= 4 * len(MANY)
    # What is measured on episodes is measured on games that were not picked for their outcome.
    names = ("rollout/success_rate", "rollout/episode_length", "rollout/return")
    assert [third.metrics[n] for n in names] == [first.metrics[n] for n in names]
    assert third.metrics["rollout/zero_variance_share"] <= first.metrics["rollout/zero_variance_share"]


def test_replacing_groups_is_the_same_again_and_after_a_break(tmp_path: Path) -> None:
    whole, first, second = (small_run(refilled(2)) for _ in range(3))
    curve = fit(whole, 3)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last", save_on_train_epoch_end=True)
    start = fit(first, 1, RandomStateCallback(), saver)
    rest = fit(second, 3, RandomStateCallback(), checkpoint_path=tmp_path / "last.ckpt")
    assert [*start, *rest] == curve
    assert same(second, whole)
    assert sum(e.metrics["rollout/refilled_groups"] for e in whole.collected) > 0
    assert second.datamodule.episodes_played == whole.datamodule.episodes_played
    assert whole.datamodule.episodes_played == sum(e.episodes for e in whole.collected) > 36


def rows_with_turns(rng: np.random.Generator) -> list[TokenRow]:
    """Seven episodes of one to five answers, with all that a critic wants."""
    made = []
    for number in range(7):
        roles: list[int] = []
        turns = []
        for _ in range(int(rng.integers(1, 6))):
            roles += [Role.PROMPT] * int(rng.integers(1, 5))
            turns.append(Turn(len(roles), int(rng.integers(1, 4))))
            roles += [Role.ACTION] * turns[-1].length
        made.append(
            TokenRow(
                RowKind.POLICY,
                tuple(rng.integers(2, 17, size=len(roles)).tolist()),
                bytes(roles),
                tuple(-3 + 0.3 * rng.standard_normal(len(roles))),
                trajectory=number,
                turns=tuple(turns),
                advantages=tuple(rng.standard_normal(len(turns)).tolist()),
                values=tuple(rng.standard_normal(len(turns)).tolist()),
                returns=tuple(3 * rng.standard_normal(len(turns))),
            )
        )
    return made


@pytest.mark.parametrize("aggregation", ["tokens", "rows", "constant"])
def test_micro_batches_change_no_aggregation_and_no_critic(aggregation: str) -> None:
    rows = rows_with_turns(np.random.default_rng(2))
    loss = LossSettings(
        algorithm="ppo", aggregation=aggregation, row_tokens=9, kl_coefficient=0.1, entropy_coefficient=0.01
    )
    results = []
    for parts in (1, 3, 20):
        policy = policy_of(word_checkpoint(), lora=FULL)
        module = EnvRLModule(
            policy, loss, OptimSettings(), iterations=5, micro_batches=parts, diagnose_every=1
        )
        assert module.critic is not None
        with torch.no_grad():
            module.critic.weight.fill_(0.1)
        batches = make_batches(rows, [], BatchSettings(micro_batches=parts), 0, 0, np.random.default_rng(0))
        for number, batch in enumerate(batches):
            (module.training_step(batch, number) / parts).backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        results.append((dict(module._accounts.sums), gradient))
    for sums, gradient in results[1:]:
        assert sums == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
        scale = float(results[0][1].abs().max())
        assert scale > 1e-3
        assert float((gradient - results[0][1]).abs().max()) < 1e-5 * max(1.0, scale)


def test_aggregations_of_the_modules_loss_by_hand() -> None:
    """At ratio 1 the loss of a token is minus its advantage, whatever the policy."""
    rows = [
        TokenRow(
            RowKind.POLICY,
            (2, 5, 6, 7),
            bytes([1, 2, 2, 2]),
            (0.0,) * 4,
            turns=(Turn(1, 3),),
            advantages=(2.0,),
        ),
        TokenRow(
            RowKind.POLICY,
            (2, 5),
            bytes([1, 2]),
            (0.0,) * 2,
            trajectory=1,
            turns=(Turn(1, 1),),
            advantages=(-7.0,),
        ),
    ]
    found = {}
    for aggregation in ("tokens", "rows", "constant"):
        policy = policy_of(word_checkpoint(), lora=FULL)
        loss = LossSettings(aggregation=aggregation, row_tokens=5, entropy_coefficient=0.0)
        module = EnvRLModule(policy, loss, OptimSettings(), iterations=1, micro_batches=1, diagnose_every=0)
        (batch,) = make_batches(rows, [], BatchSettings(micro_batches=1), 0, 0, np.random.default_rng(0))
        assert batch.policy is not None
        with torch.no_grad():
            scores = policy.logits(policy.hidden_states(batch.policy.token_ids)).log_softmax(-1)
        recorded = torch.zeros_like(batch.policy.sampled_logprobs)
        recorded[:, 1:] = scores[:, :-1].gather(-1, batch.policy.token_ids[:, 1:, None])[..., 0]
        policy_rows = replace(batch.policy, sampled_logprobs=recorded)
        found[aggregation] = float(module.training_step(replace(batch, policy=policy_rows), 0).detach())
    # −(3·2 − 7)/4; −(2 − 7)/2; −(6/5 − 7/5)/2.
    expected = {"tokens": 0.25, "rows": 2.5, "constant": 0.1}
    assert found == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}
