"""ECHO: the policy also predicts what the environment writes, in the same forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from envrl.losses.terms import LossTerm
from envrl.losses.world import per_observation_cross_entropy
from envrl.policy.batch import TargetCounts
from envrl.training.objectives.base import Objective, Targets, token_metrics
from envrl.types import Lived


@dataclass(frozen=True)
class Echo(Objective):
    """Length-normalised cross-entropy of every observation (arXiv 2605.24517; published weight: 0.05).

    Each observation's mean over its tokens counts the same; "length-normalised" is read as that (declared
    choice).
    """

    name: ClassVar[str] = "echo"
    reads_policy_rows: ClassVar[bool] = True

    def weigh(self, lived: Sequence[Lived]) -> list[float]:
        """Every observation counts."""
        return [1.0] * len(lived)

    def spread(self, weight: float, tokens: int) -> float:
        """An observation's weight is shared by its tokens."""
        return weight / tokens

    def term(self, targets: Targets, counts: TargetCounts) -> LossTerm:
        """Mean over the update's observations."""
        loss = per_observation_cross_entropy(targets.logprobs, targets.weights, denominator=counts.weight)
        return LossTerm(loss.value, token_metrics(self.name, targets, counts))
