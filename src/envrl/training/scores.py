"""What losses need to know of target tokens, without the scores of all of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from envrl.losses.policy import token_entropies, token_logprobs
from envrl.policy.model import Policy


@dataclass(frozen=True)
class TargetScores:
    """What a policy makes of target tokens.

    Attributes:
        logprobs: Natural log-probability of each, float32.
        entropies: Entropy of the distribution each stands in, nats; empty if not asked for.
        argmax_correct: Whether it is the likeliest token; empty if not asked for.
    """

    logprobs: Float[Tensor, " target"]
    entropies: Float[Tensor, " measured"]
    argmax_correct: Bool[Tensor, " ranked"]


def target_scores(
    policy: Policy,
    hidden: Float[Tensor, "target hidden"],
    targets: Int[Tensor, " target"],
    *,
    entropy: bool = False,
    entropy_gradient: bool = False,
    ranks: bool = False,
) -> TargetScores:
    """Reads target tokens off hidden states.

    A target needs a score of every word of the vocabulary. Where they all together are more than
    ``policy.score_chunk``, targets are taken in parts, and with gradients each part's scores are computed
    again in the backward pass: no more than one part's are ever in memory. Where they are not, the numbers
    are bitwise those of one pass.

    Args:
        policy: Gives the scores.
        hidden: State before each target.
        targets: Token ids.
        entropy: Entropies are asked for.
        entropy_gradient: They are to have a gradient.
        ranks: Whether targets are the likeliest tokens is asked for.
    """

    def read(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = policy.logits(states)
        logprobs = token_logprobs(logits, ids)
        correct = logits.argmax(-1) == ids if ranks else ids.new_empty(0, dtype=torch.bool)
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
            entropies = token_entropies(logits) if entropy else logprobs.new_empty(0)
        return logprobs, entropies, correct

    size = max(1, policy.settings.score_chunk // policy.vocabulary)
    if len(targets) <= size:
        return TargetScores(*read(hidden, targets))
    parts = []
    for states, ids in zip(hidden.split(size), targets.split(size), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(read, states, ids, use_reentrant=False))
        else:
            parts.append(read(states, ids))
    return TargetScores(*(torch.cat(column) for column in zip(*parts, strict=True)))
