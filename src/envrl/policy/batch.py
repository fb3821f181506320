"""Token rows as tensors: what rollouts hand to training."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


class RowKind(IntEnum):
    """Which losses read a row."""

    POLICY = 0
    """An episode or a step of one: action tokens for the policy, observation tokens for SP."""
    STATE_PREDICTION = 1
    """A state-prediction question; only its observation tokens count."""
    INVERSE_DYNAMICS = 2
    """An inverse-dynamics question; only its action tokens count."""


@dataclass(frozen=True)
class Denominators:
    """Target counts over the whole update batch, shared by its micro-batches.

    With them the micro-batches of an update add up to exactly the loss of one big batch.
    """

    action_tokens: float
    sp_tokens: float
    id_tokens: float
    id_rows: float


@dataclass(frozen=True)
class RolloutBatch:
    """One micro-batch of an update: rows padded on the right to the longest of them.

    Attributes:
        token_ids: Token ids.
        roles: :class:`envrl.types.Role` of each token.
        sampled_logprobs: Natural log-probability under the sampling policy; 0 where not sampled.
        advantages: Advantage of the row an action token belongs to; 0 elsewhere.
        kinds: :class:`RowKind` of each row.
        policy_version: Optimiser updates the sampling weights had seen.
        denominators: Target counts of the whole update.
        iteration: Iteration the rows were collected in, from 0.
        last_of_update: The optimiser steps after this micro-batch.
    """

    token_ids: Int[Tensor, "batch seq"]
    roles: UInt8[Tensor, "batch seq"]
    sampled_logprobs: Float[Tensor, "batch seq"]
    advantages: Float[Tensor, "batch seq"]
    kinds: Int[Tensor, " batch"]
    policy_version: Int[Tensor, " batch"]
    denominators: Denominators
    iteration: int
    last_of_update: bool

    def to(self, device: torch.device | str) -> RolloutBatch:
        """The same batch on another device (Lightning calls this)."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("token_ids", "roles", "sampled_logprobs", "advantages", "kinds", "policy_version")
        }
        return RolloutBatch(
            **moved,
            denominators=self.denominators,
            iteration=self.iteration,
            last_of_update=self.last_of_update,
        )
