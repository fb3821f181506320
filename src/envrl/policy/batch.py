"""Token rows as tensors: what rollouts hand to training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum, IntEnum
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
    OTHER = 3
    """Only the tokens that it marks count, for the objective that it marks them for."""


@dataclass(frozen=True)
class Outcome:
    """What an iteration's episodes came to: what weights may adapt to.

    Attributes:
        success: Share of episodes that were won.
        imagined: Share of turns in which the policy wrote what only the environment should write.
    """

    success: float = 0.0
    imagined: float = 0.0


class Phase(Enum):
    """Which terms an update is made of."""

    JOINT = "joint"
    """All of them."""
    POLICY = "policy"
    """The policy's own, without auxiliary objectives."""
    AUXILIARY = "auxiliary"
    """The auxiliary objectives alone."""


@dataclass(frozen=True)
class TargetCounts:
    """How much an auxiliary objective has to learn from in a whole update.

    Attributes:
        tokens: Target tokens.
        rows: Rows with at least one of them.
        weight: Sum of the tokens' weights (:attr:`RowBatch.marks`); ``tokens`` where none is marked.
    """

    tokens: float
    rows: float
    weight: float


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
    left_out: int = 0
    """Policy rows that are in no micro-batch, because they add nothing to the policy's loss."""
    idle_tokens: float = 0.0
    """Action tokens, among those above, of these rows."""
    idle_rows: float = 0.0
    """Rows, among the policy rows above, that are left out."""
    others: Mapping[str, TargetCounts] = field(default_factory=dict)
    """Counts of all other objectives, by name."""

    @property
    def taken_tokens(self) -> float:
        """Action tokens that are in the micro-batches."""
        return self.action_tokens - self.idle_tokens

    @property
    def taken_rows(self) -> float:
        """Policy rows with an action token that are in the micro-batches."""
        return self.policy_rows - self.idle_rows

    def of(self, objective: str) -> TargetCounts:
        """Counts of an objective; zeros if it has no targets in this update."""
        if objective == "sp":
            return TargetCounts(self.sp_tokens, 0.0, self.sp_tokens)
        if objective == "id":
            return TargetCounts(self.id_tokens, self.id_rows, self.id_tokens)
        return self.others.get(objective, TargetCounts(0.0, 0.0, 0.0))


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
        lengths: Tokens of each row, filler not counted.
        turns: What a critic is asked about; None without a critic.
        marks: By objective, the weight of each token as its target; 0 = no target. An objective that
            reads its targets off roles and kinds has no entry.
    """

    token_ids: Int[Tensor, "batch seq"]
    roles: UInt8[Tensor, "batch seq"]
    sampled_logprobs: Float[Tensor, "batch seq"]
    advantages: Float[Tensor, "batch seq"]
    kinds: Int[Tensor, " batch"]
    policy_version: Int[Tensor, " batch"]
    lengths: Int[Tensor, " batch"]
    turns: TurnBatch | None = None
    marks: Mapping[str, Float[Tensor, "batch seq"]] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> RowBatch:
        """The same rows on another device."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "marks"}
        moved: dict[str, Any] = {n: None if part is None else part.to(device) for n, part in parts.items()}
        return RowBatch(**moved, marks={name: mark.to(device) for name, mark in self.marks.items()})


@dataclass(frozen=True)
class RolloutBatch:
    """One micro-batch of an update.

    Policy rows and question rows are kept apart, so that the policy's numbers are bitwise the same
    whether or not an auxiliary objective is measured beside it.

    Attributes:
        policy: Rows of kind ``POLICY``; None if this micro-batch has none.
        questions: Rows of the other kinds; None if there are none.
        denominators: Target counts of the whole update.
        iteration: Iteration the rows were collected in, from 0.
        first_of_iteration: No update has been made since the rows were collected.
        phase: Terms that the update is made of.
        outcome: What the iteration's episodes came to.
    """

    policy: RowBatch | None
    questions: RowBatch | None
    denominators: Denominators
    iteration: int
    first_of_iteration: bool
    phase: Phase = Phase.JOINT
    outcome: Outcome = Outcome()

    def to(self, device: torch.device | str) -> RolloutBatch:
        """The same batch on another device (Lightning calls this)."""
        return replace(
            self,
            policy=self.policy.to(device) if self.policy is not None else None,
            questions=self.questions.to(device) if self.questions is not None else None,
        )
