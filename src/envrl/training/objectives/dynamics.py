"""The paper's two objectives, read off roles and kinds of rows (EnvRL, arXiv 2606.17680)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from envrl.losses.dynamics import inverse_dynamics, state_prediction
from envrl.losses.terms import LossTerm
from envrl.policy.batch import RowBatch, RowKind, TargetCounts
from envrl.training.objectives.base import Objective, Targets
from envrl.types import Role


@dataclass(frozen=True)
class StatePrediction(Objective):
    """L_SP: the next observation, given the observation and the action."""

    name: ClassVar[str] = "sp"

    def mask(self, rows: RowBatch) -> Bool[Tensor, "batch places"]:
        """Observation tokens of policy rows and of state-prediction questions."""
        read = (rows.kinds == RowKind.POLICY) | (rows.kinds == RowKind.STATE_PREDICTION)
        return (rows.roles[:, 1:] == Role.OBSERVATION) & read[:, None]

    def term(self, targets: Targets, counts: TargetCounts) -> LossTerm:
        """Mean cross-entropy over the update's observation tokens."""
        return state_prediction(
            targets.logprobs, argmax_correct=targets.argmax_correct, denominator=counts.tokens
        )


@dataclass(frozen=True)
class InverseDynamics(Objective):
    """L_ID: the action, given the observations before and after it."""

    name: ClassVar[str] = "id"

    def mask(self, rows: RowBatch) -> Bool[Tensor, "batch places"]:
        """Answer tokens of inverse-dynamics questions."""
        return (rows.kinds == RowKind.INVERSE_DYNAMICS)[:, None] & (rows.roles[:, 1:] == Role.ACTION)

    def term(self, targets: Targets, counts: TargetCounts) -> LossTerm:
        """Mean cross-entropy over the update's answer tokens."""
        return inverse_dynamics(
            targets.logprobs,
            targets.argmax_correct,
            targets.row_ids,
            denominator=counts.tokens,
            row_denominator=counts.rows,
        )
