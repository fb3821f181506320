"""Micro-batches change memory and speed, not the update."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envrl.losses.schedules import Schedule
from envrl.policy.batch import RowKind
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.rollout.collate import make_batches
from envrl.rollout.rows import TokenRow
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.rollout.turns import Turn
from envrl.training.module import EnvRLModule
from envrl.training.settings import LossSettings, OptimSettings
from envrl.types import Role
from small_runs import RunPlan, small_run
from support import IdentityEnv, game, policy_of, word_checkpoint

LOSS = LossSettings(
    sp=Schedule("constant", 0.5),
    id=Schedule("constant", 0.7),
    kl_coefficient=0.1,
    entropy_coefficient=0.01,
)


def random_rows(rng: np.random.Generator) -> tuple[list[TokenRow], list[TokenRow]]:
    """Nine episodes of very different lengths, and questions about them."""

    def row(kind: RowKind, trajectory: int, length: int) -> TokenRow:
        roles = [Role.PROMPT, Role.PROMPT, *rng.choice([1, 2, 3], size=length).tolist()]
        if kind is not RowKind.POLICY:
            wanted = Role.OBSERVATION if kind is RowKind.STATE_PREDICTION else Role.ACTION
            roles = [Role.PROMPT] * (length - 1) + [wanted] * 3
        return TokenRow(
            kind,
            tuple(rng.integers(2, 17, size=len(roles)).tolist()),
            bytes(roles),
            tuple(-3 + 0.3 * rng.standard_normal(len(roles))),
            trajectory=trajectory,
            turns=(Turn(0, len(roles)),),
            advantages=(float(rng.standard_normal()),),
        )

    policy = [row(RowKind.POLICY, n, int(rng.integers(3, 30))) for n in range(9)]
    questions = [
        row(kind, n, int(rng.integers(3, 12)))
        for n in range(9)
        for kind in (RowKind.INVERSE_DYNAMICS, RowKind.STATE_PREDICTION)
    ]
    return policy, questions


# 40 micro-batches of 9 episodes: some hold no rows at all.
@pytest.mark.parametrize("parts", [2, 4, 40])
@pytest.mark.parametrize("read_off", [True, False])
def test_loss_metrics_and_gradients_are_those_of_one_batch(parts: int, read_off: bool) -> None:
    policy_rows, questions = random_rows(np.random.default_rng(5))
    if read_off:
        # State prediction comes from the policy rows or from questions, never from both.
        questions = [r for r in questions if r.kind is RowKind.INVERSE_DYNAMICS]
    results = []
    for micro_batches in (1, parts):
        policy = policy_of(word_checkpoint(), lora=LoraSettings(enabled=False))
        module = EnvRLModule(
            policy,
            LOSS,
            OptimSettings(),
            iterations=5,
            micro_batches=micro_batches,
            diagnose_every=1,
        )
        batches = make_batches(
            policy_rows if read_off else [_without_observations(r) for r in policy_rows],
            questions,
            BatchSettings(micro_batches=micro_batches),
            0,
            0,
            np.random.default_rng(0),
        )
        assert len(batches) == micro_batches
        for number, batch in enumerate(batches):
            # What the trainer does: it divides by the number of micro-batches.
            (module.training_step(batch, number) / micro_batches).backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
        results.append((dict(module._accounts.sums), gradient, module._gradients.metrics()))
    (sums, gradient, alignment), (sums_parts, gradient_parts, alignment_parts) = results
    assert sums_parts == pytest.approx(sums, rel=1e-4, abs=1e-6)
    assert alignment_parts == pytest.approx(alignment, rel=1e-3, abs=1e-5)
    # Float32 sums in another order: 1e-5 of the largest entry.
    scale = float(gradient.abs().max())
    assert scale > 1e-3
    assert float((gradient - gradient_parts).abs().max()) < 1e-5 * max(1.0, scale)


def _without_observations(row: TokenRow) -> TokenRow:
    return replace(row, roles=row.roles.replace(bytes([Role.OBSERVATION]), bytes([Role.PROMPT])))


@pytest.mark.parametrize("packed", [True, False])
def test_micro_batches_hold_what_saves_most(packed: bool) -> None:
    """Rows that begin alike where these beginnings are computed once, else rows of like length."""
    run = small_run(
        RunPlan(
            PolicySettings(str(word_checkpoint()), packed=packed),
            tuple(game(name) for name in "abc"),
            IdentityEnv,
            rollout=RolloutSettings(layout="steps", games=3, episodes_per_game=4),
            auxiliary=AuxiliaryRows(sp_rows="questions"),
            batch=BatchSettings(micro_batches=3),
        )
    )
    batches = run.source.collect(0, 0).batches
    for kind in ("policy", "questions"):
        parts = [rows for batch in batches if (rows := getattr(batch, kind)) is not None]
        rows = [
            tuple(ids[:n].tolist())
            for part in parts
            for ids, n in zip(part.token_ids, part.lengths.tolist(), strict=True)
        ]
        assert len(parts) == 3
        assert len(set(rows)) > 6
        assert (rows == sorted(rows)) is packed
        assert ([len(row) for row in rows] == sorted(map(len, rows))) is not packed
