"""Token rows as tensors: what rollouts hand to training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


class RowKind(IntEnum):
    """Which losses read a row."""

    POLICY = 0
    """An episode or a step of one: action tokens for the policy, observation tokens for SP."""
    STATE_PREDICTION = 1
    """Only its observation tokens count, for state prediction."""
    INVERSE_DYNAMICS = 2
    """Only its action tokens count, for inverse dynamics."""


@dataclass(frozen=True)
class Denominators:
    """Target counts over the whole update batch, shared by its micro-batches.

    With them the micro-batches of an update add up to exactly the loss of one big batch.
    """

    action_tokens: float
    sp_tokens: float
    id_tokens: float
    id_rows: float
    policy_rows: float = 0.0
    """Policy rows that hold an action token."""
    turns: float = 0.0
    """Turns with a target for the critic."""


@dataclass(frozen=True)
class TurnBatch:
    """Turns of the policy rows, in the order of rows and turns: where a critic is asked, and what for.

    Attributes:
        rows: Row of each turn in its batch.
        positions: Place of the last token before the answer; its hidden state knows what the policy knew.
        sampled_values: What the critic said when the episodes were played.
        returns: What it should have said.
    """

    rows: Int[Tensor, " turns"]
    positions: Int[Tensor, " turns"]
    sampled_values: Float[Tensor, " turns"]
    returns: Float[Tensor, " turns"]

    def to(self, device: torch.device | str) -> TurnBatch:
        """The same turns on another device."""
        return TurnBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


@dataclass(frozen=True)
class RowBatch:
    """Rows padded on the right to the longest of them.

    Attributes:
        token_ids: Token ids.
        roles: :class:`envrl.types.Role` of each token.
        sampled_logprobs: Natural log-probability under the sampling policy; 0 where not sampled.
        advantages: Advantage of the turn an action token belongs to; 0 elsewhere.
        kinds: :class:`RowKind` of each row.
        policy_version: Optimiser updates the sampling weights had seen.
        turns: What a critic is asked about; None without a critic.
    """

    token_ids: Int[Tensor, "batch seq"]
    roles: UInt8[Tensor, "batch seq"]
    sampled_logprobs: Float[Tensor, "batch seq"]
    advantages: Float[Tensor, "batch seq"]
    kinds: Int[Tensor, " batch"]
    policy_version: Int[Tensor, " batch"]
    turns: TurnBatch | None = None

    def to(self, device: torch.device | str) -> RowBatch:
        """The same rows on another device."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {n: None if part is None else part.to(device) for n, part in parts.items()}
        return RowBatch(**moved)


@dataclass(frozen=True)
class RolloutBatch:
    """One micro-batch of an update.

    Policy rows and question rows are kept apart, so that the policy's numbers are bitwise the same
    whether or not an auxiliary objective is measured beside it.

    Attributes:
        policy: Rows of kind ``POLICY``; None if this micro-batch has none.
        questions: Rows of the two other kinds; None if there are none.
        denominators: Target counts of the whole update.
        iteration: Iteration the rows were collected in, from 0.
        first_of_iteration: No update has been made since the rows were collected.
    """

    policy: RowBatch | None
    questions: RowBatch | None
    denominators: Denominators
    iteration: int
    first_of_iteration: bool

    def to(self, device: torch.device | str) -> RolloutBatch:
        """The same batch on another device (Lightning calls this)."""
        return RolloutBatch(
            self.policy.to(device) if self.policy is not None else None,
            self.questions.to(device) if self.questions is not None else None,
            self.denominators,
            self.iteration,
            self.first_of_iteration,
        )
