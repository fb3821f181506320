"""PPO's critic: a value head on the policy's hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envrl.losses.terms import LossTerm, at_least_float32
from envrl.losses.value import value_loss
from envrl.policy.batch import RowBatch, TurnBatch
from envrl.policy.model import Policy
from envrl.policy.states import RowStates
from envrl.training.settings import PpoSettings


class Critic(nn.Module):
    """V = w·h + b of the hidden state h before an answer begins: what the rest of the episode is worth.

    Weights begin at 0, so that the first values are 0, the first advantages discounted returns, and no
    random number is drawn. They are kept apart from the policy: adapters, sampling and exports don't see
    them.

    Args:
        hidden_size: Numbers in a hidden state of the policy.
        settings: Clipping of the loss.
    """

    def __init__(self, hidden_size: int, settings: PpoSettings) -> None:
        super().__init__()
        self._settings = settings
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, states: RowStates, turns: TurnBatch) -> Float[Tensor, "turns"]:
        """Values of the turns of a batch, in at least float32."""
        before = at_least_float32(states.at(turns.rows, turns.positions))
        # A product and a sum instead of a linear layer, which automatic mixed precision would round.
        return (before * self.weight).sum(-1) + self.bias

    def loss(self, states: RowStates, turns: TurnBatch, denominator: float) -> LossTerm:
        """The clipped squared error (:func:`envrl.losses.value.value_loss`)."""
        return value_loss(
            self(states, turns),
            turns.sampled_values,
            turns.returns,
            clip=self._settings.value_clip,
            denominator=denominator,
        )

    @torch.no_grad()
    def values(self, policy: Policy, rows: RowBatch) -> Float[Tensor, "turns"]:
        """Values of the turns of some rows under the weights as they are, without dropout."""
        placed = rows.to(self.weight.device)
        assert placed.turns is not None
        with _evaluating(policy):
            return self(policy.states(placed), placed.turns).float().cpu()  # type: ignore[no-any-return]


@contextmanager
def _evaluating(policy: Policy) -> Iterator[None]:
    """Dropout and gradient checkpointing off for a while."""
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)
