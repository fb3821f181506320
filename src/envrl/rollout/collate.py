"""From token rows to the micro-batches of an iteration's updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch

from envrl.policy.batch import (
    Denominators,
    Outcome,
    Phase,
    RolloutBatch,
    RowBatch,
    RowKind,
    TurnBatch,
)
from envrl.rollout.objectives import RowObjective, target_counts
from envrl.rollout.rows import TokenRow
from envrl.rollout.settings import BatchSettings
from envrl.types import Role

_NOTHING = Outcome()


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
        torch.tensor([len(r.token_ids) for r in rows]),
        _turn_batch(rows),
        {name: _marks(rows, name, shape) for name in sorted({name for r in rows for name in r.marks})},
    )


def _marks(rows: Sequence[TokenRow], name: str, shape: tuple[int, int]) -> torch.Tensor:
    """Weights of an objective's targets; 0 in rows that have none."""
    marks = np.zeros(shape, dtype=np.float32)
    for i, row in enumerate(rows):
        if name in row.marks:
            marks[i, : len(row.token_ids)] = row.marks[name]
    return torch.from_numpy(marks)


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


def denominators(
    policy: Sequence[TokenRow], questions: Sequence[TokenRow], idle: Sequence[TokenRow] = ()
) -> Denominators:
    """Target counts of one update (see :class:`Denominators`); a row's first token is never a target.

    Args:
        policy: Policy rows in its micro-batches.
        questions: Its other rows.
        idle: Policy rows that are left out. They count in what the policy's loss is divided by, not among
            what objectives measure, which have no weight on them.
    """
    acting, everything = [*policy, *idle], [*policy, *questions]
    id_rows = [r for r in questions if r.kind is RowKind.INVERSE_DYNAMICS]
    sp_rows = [r for r in everything if r.kind in (RowKind.POLICY, RowKind.STATE_PREDICTION)]
    return Denominators(
        action_tokens=float(sum(r.count(Role.ACTION) for r in acting)),
        sp_tokens=float(sum(r.count(Role.OBSERVATION) for r in sp_rows)),
        id_tokens=float(sum(r.count(Role.ACTION) for r in id_rows)),
        id_rows=float(len(id_rows)),
        policy_rows=float(sum(r.count(Role.ACTION) > 0 for r in acting)),
        turns=float(sum(len(r.returns) for r in policy)),
        left_out=len(idle),
        idle_tokens=float(sum(r.count(Role.ACTION) for r in idle)),
        idle_rows=float(sum(r.count(Role.ACTION) > 0 for r in idle)),
    )


def by_length(row: TokenRow) -> int:
    """Order in which rows of a micro-batch need the least filler."""
    return len(row.token_ids)


def by_content(row: TokenRow) -> tuple[int, ...]:
    """Order in which rows that begin alike come together, where such beginnings are computed once."""
    return row.token_ids


def split_evenly(
    rows: Sequence[TokenRow], parts: int, sort_by: Callable[[TokenRow], Any]
) -> list[list[TokenRow]]:
    """Sorts rows and cuts them into ``parts`` runs of about as many tokens."""
    ordered = sorted(rows, key=sort_by)
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
    *,
    objectives: Sequence[RowObjective] = (),
    outcome: Outcome = _NOTHING,
    skip_idle: bool = False,
    sort_by: Callable[[TokenRow], Any] = by_length,
) -> list[RolloutBatch]:
    """Micro-batches of all updates of an iteration, ``settings.batches_in(iteration)`` of them.

    Trajectories are dealt out to the updates in random order; a question goes with its trajectory's
    update. Micro-batches change memory and speed, not the loss. With ``settings.alternate`` the ordinary
    updates are the policy's alone and every n-th of them is followed by an extra one on its rows.

    Args:
        policy: Policy rows.
        questions: Rows of other kinds.
        settings: Updates, epochs, micro-batches.
        pad_id: Filler to the right of a row.
        iteration: Number of the iteration, from 0.
        rng: Deals out trajectories.
        objectives: Objectives beside the paper's two, whose targets are to be counted.
        outcome: What the episodes came to.
        skip_idle: Leave out policy rows that add nothing to the policy's loss. What its sums are divided by
            stays as it is; what is measured is counted without them.
        sort_by: What rows are sorted by before they are cut into micro-batches.
    """

    def cut(rows: Sequence[TokenRow]) -> list[list[TokenRow]]:
        return split_evenly(rows, settings.micro_batches, sort_by)

    batches: list[RolloutBatch] = []
    trajectories = sorted({r.trajectory for r in [*policy, *questions]})
    ordinary = Phase.JOINT if settings.alternate == 0 else Phase.POLICY
    extra = Phase.POLICY if settings.extra == "policy" else Phase.AUXILIARY
    for epoch in range(settings.epochs):
        order = rng.permutation(len(trajectories))
        update_of = {trajectories[i]: n % settings.updates for n, i in enumerate(order.tolist())}
        for update in range(settings.updates):
            mine = [r for r in policy if update_of[r.trajectory] == update]
            asked = [r for r in questions if update_of[r.trajectory] == update]
            idle = [r for r in mine if skip_idle and r.idle]
            taken = [r for r in mine if not (skip_idle and r.idle)]
            made = _update(cut(taken), idle, cut(asked), pad_id, iteration, objectives)
            done = len(batches)
            batches += [
                replace(b, phase=ordinary, outcome=outcome, first_of_iteration=done == 0) for b in made
            ]
            if settings.extra_follows(iteration, epoch * settings.updates + update):
                batches += [replace(b, phase=extra, outcome=outcome, first_of_iteration=False) for b in made]
    return batches


def like_the_others(batch: RolloutBatch, others: Sequence[RolloutBatch]) -> RolloutBatch:
    """A micro-batch with a row of each kind that any of the others has; what is added has no targets."""
    policy = next((b.policy for b in others if b.policy is not None), None)
    questions = next((b.questions for b in others if b.questions is not None), None)
    return replace(
        batch, policy=batch.policy or _blank(policy), questions=batch.questions or _blank(questions)
    )


def _blank(example: RowBatch | None) -> RowBatch | None:
    """A row of nothing but filler, of the form of other rows."""
    if example is None:
        return None
    width = 2
    return replace(
        example,
        token_ids=example.token_ids[:1, :width],
        roles=torch.zeros_like(example.roles[:1, :width]),
        sampled_logprobs=torch.zeros_like(example.sampled_logprobs[:1, :width]),
        advantages=torch.zeros_like(example.advantages[:1, :width]),
        kinds=example.kinds[:1],
        policy_version=example.policy_version[:1],
        lengths=torch.zeros_like(example.lengths[:1]),
        turns=None,
        marks={name: torch.zeros_like(mark[:1, :width]) for name, mark in example.marks.items()},
    )


def _update(
    policy: Sequence[Sequence[TokenRow]],
    idle: Sequence[TokenRow],
    questions: Sequence[Sequence[TokenRow]],
    pad_id: int,
    iteration: int,
    objectives: Sequence[RowObjective],
) -> list[RolloutBatch]:
    """Micro-batches of one update, with the target counts of all of it, those of idle rows included."""
    parts = [
        (row_batch(part, pad_id), row_batch(asked, pad_id))
        for part, asked in zip(policy, questions, strict=True)
    ]
    rows = [batch for part in parts for batch in part]
    others = {objective.name: target_counts(objective, rows) for objective in objectives}
    acting, asked_all = (list(chain.from_iterable(cut)) for cut in (policy, questions))
    counts = replace(denominators(acting, asked_all, idle), others=others)
    return [RolloutBatch(part, asked, counts, iteration, first_of_iteration=False) for part, asked in parts]
