"""PaW: world modelling on the policy's own rows, where the policy was unsure and the group lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from envrl.errors import ConfigFault
from envrl.losses.terms import LossTerm
from envrl.losses.world import clipped_mae
from envrl.policy.batch import TargetCounts
from envrl.training.objectives.base import Objective, Targets, token_metrics
from envrl.types import Lived, Transition


@dataclass(frozen=True)
class PolicyAndWorld(Objective):
    """Next-observation tokens after the action, chosen, clipped and weighted (PaW, arXiv 2606.02388).

    The three parts are the paper's, their numbers declared choices: the source of them names none that
    we could read.

    Raises:
        ConfigFault: An option is outside its range.
    """

    name: ClassVar[str] = "paw"
    reads_policy_rows: ClassVar[bool] = True

    share: float = 0.5
    """Share of an iteration's transitions that are learnt from, those of the highest action entropy."""
    margin: float = 0.1
    """Tokens of probability 1 - margin or more give no gradient."""
    reward_adaptive: bool = True
    """Weight a transition by 1 - (its group's success rate); false weighs all the same."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigFault(f"paw.share is {self.share}; use a share above 0, up to 1 (all transitions)")
        if not 0 <= self.margin < 1:
            raise ConfigFault(f"paw.margin is {self.margin}; use a number in [0, 1), 0 clips nothing")

    def weigh(self, lived: Sequence[Lived]) -> list[float]:
        """1 − group success for the transitions of highest action entropy, 0 for the others.

        Ties at the border are broken by order. Transitions of a group that always wins get 0.
        """
        entropies = np.array([action_entropy(one.transition) for one in lived])
        chosen = set(np.argsort(-entropies, kind="stable")[: round(self.share * len(lived))].tolist())
        return [
            (1.0 - one.group_success if self.reward_adaptive else 1.0) if number in chosen else 0.0
            for number, one in enumerate(lived)
        ]

    def term(self, targets: Targets, counts: TargetCounts) -> LossTerm:
        """Weighted clipped MAE over the update's chosen tokens."""
        loss = clipped_mae(targets.logprobs, targets.weights, margin=self.margin, denominator=counts.tokens)
        metrics = token_metrics(self.name, targets, counts)
        return LossTerm(loss.value, metrics | {"clipped_share/paw": loss.metrics["clipped_share"]})


def action_entropy(transition: Transition) -> float:
    """Estimate of the entropy of what the policy wrote, nats per token: minus the mean log-probability.

    −log p of a sampled token is an unbiased estimate of the entropy of the distribution it was drawn
    from at temperature 1. It is known before the update, so the choice does not depend on how rows are
    cut into micro-batches.
    """
    logprobs = transition.generation.logprobs
    return -sum(logprobs) / len(logprobs) if logprobs else 0.0
