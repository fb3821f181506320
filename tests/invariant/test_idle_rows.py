"""Rows from which the policy has nothing to learn are left out of updates, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pytest
import torch

from envrl.experiments.credit import advantage_function
from envrl.experiments.idle_rows import leaves_out_idle_rows
from envrl.losses.schedules import Schedule
from envrl.losses.terms import LossTerm, scaled_sum
from envrl.policy.batch import Phase, RolloutBatch, RowBatch, RowKind, TargetCounts
from envrl.policy.ranks import Ranks
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.rollout.collate import make_batches
from envrl.rollout.rows import TokenRow
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.rollout.turns import Turn
from envrl.training.accounts import Accounts
from envrl.training.module import EnvRLModule
from envrl.training.objectives.base import Objective, Targets
from envrl.training.settings import LossSettings, ObjectiveSettings, OptimSettings
from envrl.types import Game, Observation, Role, StepResult
from small_runs import RunPlan, SmallRun, fit, small_run, weights
from support import COLOURS, game, policy_of, word_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning")

GAMES = tuple(game(word) for word in ("red", "green", "blue"))
BARE = LossSettings(entropy_coefficient=0.0)
"""The policy's loss alone."""


class CoinEnv:
    """Two turns, each rewarded by what was written; in the games of ``hopeless`` never."""

    hopeless: ClassVar[tuple[str, ...]] = ()

    def reset(self, game: Game, seed: int) -> Observation:
        self._word, self._left = game.spec, 2
        return Observation(self._word, (self._word,))

    def step(self, action: str) -> StepResult:
        self._left -= 1
        reward = 0.0 if self._word in self.hopeless else (len(action) % 5) ** 0.5
        info = {"won": False, "task_score": 0.0}
        return StepResult(Observation(self._word, (self._word,)), reward, self._left == 0, False, info)

    def close(self) -> None:
        pass


class OneHopeless(CoinEnv):
    hopeless = ("red",)


class AllHopeless(CoinEnv):
    hopeless = ("red", "green", "blue")


def plan(skip: bool, **changes: Any) -> RunPlan:
    policy = PolicySettings(model=str(word_checkpoint(COLOURS)), lora=LoraSettings(enabled=False))
    layout = changes.pop("layout", "transcript")
    start = RunPlan(
        policy,
        GAMES,
        OneHopeless,
        RolloutSettings(layout, games=3, episodes_per_game=6, format_penalty=0.0),
        AuxiliaryRows(sp_rows="policy" if layout == "transcript" else "questions"),
        BatchSettings(micro_batches=2, skip_flat=skip),
        BARE,
        iterations=1,
        measure=False,
        diagnose_every=0,
    )
    return replace(start, **changes)


class Watch(L.Callback):
    """Keeps the gradient of every update, and the policy rows of every micro-batch."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.rows: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: RolloutBatch, number: int) -> None:
        self.rows.append(0 if batch.policy is None else len(batch.policy.token_ids))

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        found = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in module.parameters()]
        self.gradients.append(torch.cat(found).clone())


def ran(wanted: RunPlan) -> tuple[SmallRun, Watch, list[dict[str, float]]]:
    run, watch = small_run(wanted), Watch()
    return run, watch, fit(run, wanted.iterations, watch)


@pytest.mark.parametrize("layout", ["transcript", "steps"])
@pytest.mark.parametrize(
    "loss",
    [
        BARE,
        replace(BARE, normalisation="episodes"),
        replace(BARE, algorithm="gigpo"),
        replace(BARE, algorithm="rloo"),
        replace(BARE, aggregation="rows"),
        replace(BARE, aggregation="constant", row_tokens=7),
    ],
    ids=["grpo", "episodes", "gigpo", "rloo", "rows", "constant"],
)
def test_the_gradient_is_that_of_all_rows(loss: LossSettings, layout: str) -> None:
    whole, without = (ran(plan(skip, loss=loss, layout=layout)) for skip in (False, True))
    share = without[0].collected[0].metrics["rollout/left_out_share"]
    assert whole[0].collected[0].metrics["rollout/left_out_share"] == 0.0
    assert 0.2 < share < 0.9
    assert sum(without[1].rows) == round((1 - share) * sum(whole[1].rows))
    (wanted,), (found,) = whole[1].gradients, without[1].gradients
    scale = float(wanted.abs().max())
    assert scale > 1e-3
    assert float((found - wanted).abs().max()) < 1e-5 * max(1.0, scale)
    (all_metrics,), (metrics,) = whole[2], without[2]
    assert metrics["train/loss_policy"] == pytest.approx(all_metrics["train/loss_policy"], abs=1e-6)
    assert metrics["train/grad_norm"] == pytest.approx(all_metrics["train/grad_norm"], rel=1e-4)


class Hopeless(L.Callback):
    """From the second iteration on every episode has the same return."""

    def on_train_epoch_end(self, *_: Any) -> None:
        CoinEnv.hopeless = AllHopeless.hopeless


def test_an_update_without_rows_goes_on_by_momentum_and_weight_decay() -> None:
    """As an update does whose every advantage is 0: bit by bit, over two of them."""
    ends = []
    for skip in (False, True):
        wanted = plan(skip, make_env=CoinEnv, iterations=3, optim=OptimSettings(lr=1e-2, weight_decay=0.1))
        run = small_run(wanted)
        start = weights(run)
        try:
            metrics = fit(run, 3, Hopeless())
        finally:
            CoinEnv.hopeless = ()
        shares = [e.metrics["rollout/left_out_share"] for e in run.collected]
        assert shares == ([0.0, 1.0, 1.0] if skip else [0.0, 0.0, 0.0])
        assert run.module.updates_done == 3
        assert metrics[2]["train/loss"] == metrics[2]["train/grad_norm"] == 0.0
        assert ("train/entropy" in metrics[2]) != skip
        ends.append(weights(run))
        assert any(not torch.equal(start[name], weight) for name, weight in ends[-1].items())
    assert all(torch.equal(ends[0][name], weight) for name, weight in ends[1].items())


def test_an_update_without_rows_before_any_other_only_decays() -> None:
    wanted = plan(True, make_env=AllHopeless, optim=OptimSettings(lr=1e-2, weight_decay=0.1))
    run = small_run(wanted)
    start = weights(run)
    fit(run, 1)
    for name, weight in weights(run).items():
        torch.testing.assert_close(weight, start[name] * (1 - 1e-3), msg=name)


@pytest.mark.parametrize(
    "loss",
    [
        replace(BARE, entropy_coefficient=0.01),
        replace(BARE, kl_coefficient=0.1),
        replace(BARE, algorithm="ppo"),
        replace(BARE, sp=Schedule("constant", 0.1)),
        replace(BARE, objectives=(ObjectiveSettings("echo", Schedule("switch", 0.1)),)),
        replace(BARE, objectives=(ObjectiveSettings("paw"),)),
    ],
    ids=["entropy", "kl", "ppo", "sp", "echo", "paw"],
)
def test_a_term_that_needs_every_row_gets_every_row(loss: LossSettings) -> None:
    run, watch, _ = ran(plan(True, loss=loss))
    assert run.collected[0].metrics["rollout/left_out_share"] == 0.0
    assert sum(watch.rows) == 18


@dataclass(frozen=True)
class Masked(Objective):
    """Reads what it likes."""

    name: ClassVar[str] = "masked"

    def mask(self, rows: RowBatch) -> torch.Tensor:
        return rows.roles[:, 1:] == Role.PROMPT

    def term(self, targets: Targets, counts: TargetCounts) -> LossTerm:
        return LossTerm(scaled_sum(-targets.logprobs, counts.tokens), {})


@dataclass(frozen=True)
class Asking(Masked):
    """Reads questions only."""

    mask = Objective.mask


def test_who_needs_every_row() -> None:
    def left_out(auxiliary: AuxiliaryRows | None = None, **loss: Any) -> bool:
        return leaves_out_idle_rows(replace(BARE, **loss), auxiliary or AuxiliaryRows(), BatchSettings())

    def own(kind: str, weight: float = 0.1) -> dict[str, Sequence[ObjectiveSettings]]:
        return {"objectives": (ObjectiveSettings(f"{__name__}:{kind}", Schedule("constant", weight)),)}

    assert left_out()
    assert not leaves_out_idle_rows(BARE, AuxiliaryRows(), BatchSettings(skip_flat=False))
    sp = {"sp": Schedule("constant", 0.1)}
    assert not left_out(**sp)
    assert left_out(AuxiliaryRows(sp_rows="questions"), **sp)
    assert left_out(AuxiliaryRows(shuffle_targets=True), **sp)
    assert left_out(id=Schedule("constant", 0.1))
    assert not left_out(**own("Masked"))
    assert left_out(**own("Masked", 0.0))
    assert left_out(**own("Asking"))


def drawn_rows(rng: np.random.Generator) -> list[TokenRow]:
    """Eight episodes in two groups, of which the first is flat; every other token was written."""
    rows = []
    for number in range(8):
        length = int(rng.integers(6, 14))
        roles = bytes([Role.PROMPT, Role.PROMPT, *[Role.ACTION, Role.OBSERVATION] * (length // 2)])
        ids = tuple(rng.integers(2, 17, size=len(roles)).tolist())
        logprobs = tuple(-3 + 0.3 * rng.standard_normal(len(roles)))
        score = 1.0 if number < 4 else float(number % 2)
        turns = (Turn(2, len(roles) - 2),)
        rows.append(
            TokenRow(
                RowKind.POLICY, ids, roles, logprobs, score, group=number // 4, trajectory=number, turns=turns
            )
        )
    credit = advantage_function(BARE)(rows, None)
    return [replace(r, advantages=a) for r, a in zip(rows, credit.advantages, strict=True)]


def sums(rows: Sequence[TokenRow], skip: bool, aggregation: str) -> dict[str, float]:
    """What an update of four micro-batches reports, the KL measured too."""
    torch.manual_seed(0)
    module = EnvRLModule(
        policy_of(word_checkpoint(), lora=LoraSettings(enabled=False)),
        replace(BARE, aggregation=aggregation),
        OptimSettings(),
        iterations=5,
        micro_batches=4,
        diagnose_every=1,
    )
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    settings = BatchSettings(micro_batches=4)
    rng = np.random.default_rng(0)
    for number, batch in enumerate(make_batches(rows, [], settings, 0, 0, rng, skip_idle=skip)):
        module.training_step(batch, number)
    return dict(module._accounts.sums)


@pytest.mark.parametrize("aggregation", ["tokens", "rows"])
def test_what_is_measured_is_a_mean_over_the_rows_that_take_part(aggregation: str) -> None:
    rows = drawn_rows(np.random.default_rng(1))
    whole, without = (sums(rows, skip, aggregation) for skip in (False, True))
    alone = sums([r for r in rows if r.group == 1], False, aggregation)
    of_policy = {"loss", "loss_policy"}
    assert {"entropy", "kl", "ratio_mean", "clip_share", "approx_kl", "sp_ce", "loss_kl"} <= without.keys()
    for name in without.keys() - of_policy:
        assert without[name] == pytest.approx(alone[name], rel=1e-5, abs=1e-7), name
    assert without["entropy"] != pytest.approx(whole["entropy"], rel=1e-4)
    # The loss is still divided by what the whole update holds.
    for name in of_policy:
        assert without[name] == pytest.approx(whole[name], rel=1e-5)
        assert without[name] != pytest.approx(alone[name], rel=1e-2)


def test_a_mean_is_over_the_updates_that_measured_it() -> None:
    """Of four updates of two micro-batches, shared by two processes, the third has nothing to measure."""
    parts = []
    for rank in range(2):
        accounts = Accounts(1)
        for update in range(4):
            accounts.begin(Phase.POLICY)
            # Only one process has rows in the second one.
            has_rows = update == 0 or update == 3 or (update == 1 and rank == 1)
            accounts.add({"loss": 1.0, **({"entropy": 1.5 if update != 1 else 3.0} if has_rows else {})})
        parts.append(accounts)
    assert Accounts.joined(parts).means() == {"loss": 2.0, "entropy": 3.0}


def test_two_shares_of_which_one_is_empty_add_up_to_the_whole() -> None:
    """What two processes compute, of an update in which a single row has something to teach."""
    rows = drawn_rows(np.random.default_rng(1))
    taught = [replace(r, advantages=(0.0,)) if n != 5 else r for n, r in enumerate(rows)]
    gradients, accounts = [], []
    for skip, ranks in ((False, (0,)), (True, (0, 1))):
        torch.manual_seed(0)
        whole = make_batches(
            taught, [], BatchSettings(micro_batches=2), 0, 0, np.random.default_rng(0), skip_idle=skip
        )
        assert [b.policy is None for b in whole] == [False, skip]
        total, parts = torch.zeros(0), []
        for rank in ranks:
            policy = policy_of(word_checkpoint(), lora=LoraSettings(enabled=False))
            of_rank = Ranks(rank, len(ranks))
            module = EnvRLModule(
                policy, BARE, OptimSettings(), iterations=5, micro_batches=2, diagnose_every=0, ranks=of_rank
            )
            for number, batch in enumerate(whole[rank :: len(ranks)]):
                (module.training_step(batch, number) / 2).backward()
            mine = [
                torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in policy.parameters()
            ]
            total = torch.cat(mine) if rank == 0 else total + torch.cat(mine)
            parts.append(module._accounts)
        gradients.append(total)
        accounts.append(Accounts.joined(parts).means())
    assert float(gradients[0].abs().max()) > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert accounts[1]["loss_policy"] == pytest.approx(accounts[0]["loss_policy"], rel=1e-5)
    assert accounts[1]["ratio_mean"] > 0
