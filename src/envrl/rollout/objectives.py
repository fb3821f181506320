"""The rows' half of auxiliary objectives: marks in the policy's rows, and questions in rows of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from jaxtyping import Bool
from torch import Tensor

from envrl.policy.batch import RowBatch, TargetCounts
from envrl.prompts.dynamics import DynamicsQuestion
from envrl.prompts.settings import PromptSettings
from envrl.rollout.rows import TokenRow, is_sp_target
from envrl.rollout.settings import AuxiliaryRows
from envrl.types import Group, Lived


class RowObjective(Protocol):
    """What rollouts know of an objective: what it reads, not what it makes of it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def reads_policy_rows(self) -> bool:
        """It weighs observations in the policy's rows."""

    def weigh(self, lived: Sequence[Lived]) -> Sequence[float]:
        """Weight of each transition's observation."""

    def ask(self, lived: Lived, prompt: PromptSettings) -> DynamicsQuestion | None:
        """A question about a transition."""

    def spread(self, weight: float, tokens: int) -> float:
        """Weight of each token of an observation or answer."""

    def mask(self, rows: RowBatch) -> Bool[Tensor, "batch places"]:
        """Its targets among ``rows.token_ids[:, 1:]``."""


def lived_transitions(groups: Sequence[Group], auxiliary: AuxiliaryRows) -> list[Lived]:
    """The transitions that auxiliary objectives may look at, in the order they were numbered in."""
    found, trajectory_number = [], 0
    for group_number, group in enumerate(groups):
        success = sum(t.won for t in group.trajectories) / max(1, len(group.trajectories))
        for trajectory in group.trajectories:
            last = len(trajectory.transitions) - 1
            found += [
                Lived(t, n == last, trajectory.won, n, trajectory_number, group_number, success)
                for n, t in enumerate(trajectory.transitions)
                if is_sp_target(t, n == last, auxiliary)
            ]
            trajectory_number += 1
    return found


def marked_rows(rows: Sequence[TokenRow], objective: RowObjective, lived: Sequence[Lived]) -> list[TokenRow]:
    """Policy rows with the objective's targets marked in them.

    Args:
        rows: Rows made with ``observe``.
        objective: Weighs transitions.
        lived: Transitions it may look at.
    """
    weights = {
        (one.trajectory, one.number): weight
        for one, weight in zip(lived, objective.weigh(lived), strict=True)
    }
    return [_marked(row, objective, weights) for row in rows]


def _marked(row: TokenRow, objective: RowObjective, weights: Mapping[tuple[int, int], float]) -> TokenRow:
    marks = [0.0] * len(row.token_ids)
    for place in row.observed:
        weight = weights.get((row.trajectory, place.number), 0.0)
        size = place.end - place.start
        if weight > 0:
            marks[place.start : place.end] = [objective.spread(weight, size)] * size
    return replace(row, marks={**row.marks, objective.name: tuple(marks)})


def target_counts(objective: RowObjective, rows: Sequence[RowBatch | None]) -> TargetCounts:
    """How many targets an objective has in all rows of an update."""
    tokens = filled = weight = 0.0
    for batch in rows:
        if batch is None:
            continue
        mask = objective.mask(batch)
        marked = batch.marks.get(objective.name)
        tokens += float(mask.sum())
        filled += float(mask.any(1).sum())
        # Summed in float64: weights of many tokens are small.
        weight += float(mask.sum() if marked is None else marked[:, 1:][mask].double().sum())
    return TargetCounts(tokens, filled, weight)
