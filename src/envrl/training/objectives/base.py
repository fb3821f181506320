"""What an auxiliary objective is: the tokens it learns from, and its loss on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envrl.losses.terms import LossTerm, scaled_sum
from envrl.policy.batch import RowBatch, TargetCounts
from envrl.policy.model import Policy
from envrl.policy.states import RowStates
from envrl.prompts.dynamics import DynamicsQuestion
from envrl.prompts.settings import PromptSettings
from envrl.training.scores import target_scores
from envrl.types import Lived


@dataclass(frozen=True)
class Targets:
    """An objective's target tokens in one micro-batch, as one flat list.

    Attributes:
        logprobs: Natural log-probability of each under the policy, with gradient where the objective has
            a weight, nats, <= 0.
        argmax_correct: Whether it is the policy's likeliest token.
        row_ids: Row of the micro-batch that it belongs to.
        weights: Its weight from :attr:`envrl.policy.batch.RowBatch.marks`; 1 where none is marked.
    """

    logprobs: Float[Tensor, " target"]
    argmax_correct: Bool[Tensor, " target"]
    row_ids: Int[Tensor, " target"]
    weights: Float[Tensor, " target"]


class Objective(ABC):
    """One auxiliary objective: which tokens it reads, and the loss on them.

    A subclass is a frozen dataclass; its fields are the ``options`` of the configuration. It says where
    its targets come from in one of two ways (or reads them off roles and kinds by its own ``mask``):

    - ``weigh``: observation tokens in the policy's own rows, at no extra pass;
    - ``ask``: questions with an answer, in rows of their own.

    Everything it divides by comes from ``counts``, which are those of the whole update: so micro-batches
    add up to the loss of one large batch.
    """

    name: ClassVar[str]
    """Name of the term, as it stands in metrics: ``train/loss_<name>``."""
    reads_policy_rows: ClassVar[bool] = False
    """``weigh`` is to be asked: policy rows then carry every observation, the last one too."""

    def weigh(self, lived: Sequence[Lived]) -> Sequence[float]:
        """Weight of each transition's observation, in the policy rows, as a target; 0 leaves it out.

        Args:
            lived: All transitions of the iteration, so that a choice can compare them.
        """
        return [0.0] * len(lived)

    def ask(self, lived: Lived, prompt: PromptSettings) -> DynamicsQuestion | None:
        """A question about a transition and its answer; None asks nothing."""
        return None

    def spread(self, weight: float, tokens: int) -> float:
        """Weight of each of the ``tokens`` tokens of an observation or answer of that weight."""
        return weight

    def mask(self, rows: RowBatch) -> Bool[Tensor, "batch places"]:
        """Which of ``rows.token_ids[:, 1:]`` are targets: those marked for this objective."""
        marked = rows.marks.get(self.name)
        if marked is None:
            return torch.zeros_like(rows.token_ids[:, 1:], dtype=torch.bool)
        return marked[:, 1:] > 0

    @abstractmethod
    def term(self, targets: Targets, counts: TargetCounts) -> LossTerm:
        """The loss of a micro-batch's targets, divided by a count of the whole update."""


def read_targets(
    policy: Policy,
    rows: RowBatch,
    states: RowStates,
    mask: Bool[Tensor, "batch places"],
    name: str,
) -> Targets:
    """Log-probabilities and ranks of the tokens under a mask.

    Args:
        policy: Gives logits of hidden states.
        rows: The rows.
        states: Their hidden states.
        mask: Targets among ``rows.token_ids[:, 1:]``.
        name: Objective whose marks are the targets' weights.
    """
    targets = rows.token_ids[:, 1:][mask]
    told = target_scores(policy, states.before(mask), targets, ranks=True)
    marked = rows.marks.get(name)
    weights = torch.ones_like(told.logprobs) if marked is None else marked[:, 1:][mask].to(told.logprobs)
    return Targets(told.logprobs, told.argmax_correct, mask.nonzero()[:, 0], weights.detach())


def token_metrics(name: str, targets: Targets, counts: TargetCounts) -> dict[str, Tensor]:
    """What every objective reports, whatever its loss: unweighted means over its target tokens.

    Returns:
        ``ce/<name>`` (nats per token) and ``token_accuracy/<name>`` (share of tokens ranked first).
    """
    return {
        f"ce/{name}": scaled_sum(-targets.logprobs.detach(), counts.tokens),
        f"token_accuracy/{name}": scaled_sum(targets.argmax_correct, counts.tokens),
    }
