"""From token rows to the micro-batches of an iteration's updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from envrl.policy.batch import Denominators, RolloutBatch, RowBatch, RowKind, TurnBatch
from envrl.rollout.rows import TokenRow
from envrl.rollout.settings import BatchSettings
from envrl.types import Role


def row_batch(rows: Sequence[TokenRow], pad_id: int) -> RowBatch | None:
    """Pads rows on the right to the longest; None without rows."""
    if not rows:
        return None
    width = max(len(r.token_ids) for r in rows)
    shape = (len(rows), width)
    ids = np.full(shape, pad_id, dtype=np.int64)
    roles = np.zeros(shape, dtype=np.uint8)
    logprobs = np.zeros(shape, dtype=np.float32)
    advantages = np.zeros(shape, dtype=np.float32)
    for i, row in enumerate(rows):
        n = len(row.token_ids)
        ids[i, :n] = row.token_ids
        roles[i, :n] = np.frombuffer(row.roles, dtype=np.uint8)
        logprobs[i, :n] = row.logprobs
        if row.kind is RowKind.POLICY and row.advantages:
            for turn, advantage in zip(row.turns, row.advantages, strict=True):
                answer = slice(turn.start, turn.start + turn.length)
                advantages[i, answer] = np.where(roles[i, answer] == Role.ACTION, advantage, 0.0)
    return RowBatch(
        torch.from_numpy(ids),
        torch.from_numpy(roles),
        torch.from_numpy(logprobs),
        torch.from_numpy(advantages),
        torch.tensor([int(r.kind) for r in rows]),
        torch.tensor([r.policy_version for r in rows]),
        _turn_batch(rows),
    )


def _turn_batch(rows: Sequence[TokenRow]) -> TurnBatch | None:
    """The turns a critic is asked about; None if there are none."""
    asked = [
        (i, turn.start - 1, value, target)
        for i, row in enumerate(rows)
        if row.returns
        for turn, value, target in zip(row.turns, row.values, row.returns, strict=True)
    ]
    if not asked:
        return None
    numbers, positions, values, targets = zip(*asked, strict=True)
    return TurnBatch(
        torch.tensor(numbers), torch.tensor(positions), torch.tensor(values), torch.tensor(targets)
    )


def denominators(policy: Sequence[TokenRow], questions: Sequence[TokenRow]) -> Denominators:
    """Target counts of one update (see :class:`Denominators`); a row's first token is never a target."""
    everything = [*policy, *questions]
    id_rows = [r for r in questions if r.kind is RowKind.INVERSE_DYNAMICS]
    sp_rows = [r for r in everything if r.kind is not RowKind.INVERSE_DYNAMICS]
    return Denominators(
        action_tokens=float(sum(r.count(Role.ACTION) for r in policy)),
        sp_tokens=float(sum(r.count(Role.OBSERVATION) for r in sp_rows)),
        id_tokens=float(sum(r.count(Role.ACTION) for r in id_rows)),
        id_rows=float(len(id_rows)),
        policy_rows=float(sum(r.count(Role.ACTION) > 0 for r in policy)),
        turns=float(sum(len(r.returns) for r in policy)),
    )


def split_evenly(rows: Sequence[TokenRow], parts: int) -> list[list[TokenRow]]:
    """Sorts rows by length and cuts them into ``parts`` runs of about equal padded size."""
    ordered = sorted(rows, key=lambda r: len(r.token_ids))
    total = sum(len(r.token_ids) for r in ordered)
    chunks: list[list[TokenRow]] = [[] for _ in range(parts)]
    seen = 0
    for row in ordered:
        chunks[min(parts - 1, seen * parts // max(1, total))].append(row)
        seen += len(row.token_ids)
    return chunks


def make_batches(
    policy: Sequence[TokenRow],
    questions: Sequence[TokenRow],
    settings: BatchSettings,
    pad_id: int,
    iteration: int,
    rng: np.random.Generator,
) -> list[RolloutBatch]:
    """Micro-batches of all updates of an iteration: ``epochs * updates * micro_batches`` of them.

    Trajectories are dealt out to the updates in random order; a question goes with its trajectory's
    update. Micro-batches change memory and speed, not the loss.
    """
    batches: list[RolloutBatch] = []
    trajectories = sorted({r.trajectory for r in [*policy, *questions]})
    for _ in range(settings.epochs):
        order = rng.permutation(len(trajectories))
        update_of = {trajectories[i]: n % settings.updates for n, i in enumerate(order.tolist())}
        for update in range(settings.updates):
            mine = [r for r in policy if update_of[r.trajectory] == update]
            asked = [r for r in questions if update_of[r.trajectory] == update]
            counts = denominators(mine, asked)
            parts = zip(
                split_evenly(mine, settings.micro_batches),
                split_evenly(asked, settings.micro_batches),
                strict=True,
            )
            for part, asked_part in parts:
                batches.append(
                    RolloutBatch(
                        row_batch(part, pad_id),
                        row_batch(asked_part, pad_id),
                        counts,
                        iteration,
                        first_of_iteration=len(batches) < settings.micro_batches,
                    )
                )
    return batches
