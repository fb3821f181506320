"""State prediction, inverse dynamics, and the control that permutes their targets.

Both losses are token cross-entropies, each normalised by its own number of target tokens over the whole
update batch (declared choice: the paper, EnvRL, arXiv 2606.17680, does not say), so that neither dilutes
nor is diluted by the policy's loss.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envrl.losses.terms import Denominator, LossTerm, same_shape, scaled_sum


def state_prediction(
    target_logprobs: Float[Tensor, "target"],
    *,
    argmax_correct: Bool[Tensor, "target"] | None = None,
    denominator: Denominator,
) -> LossTerm:
    """L_SP: token cross-entropy of the next observation given the observation and the action.

    −Σ log p(token) / denominator (EnvRL, arXiv 2606.17680, state prediction).

    Args:
        target_logprobs: Of the next observation's tokens under the policy, with gradient, nats, <= 0.
        argmax_correct: Whether the policy's likeliest token is the target; ``None`` if not measured.
        denominator: Number of state-prediction target tokens in the whole update batch.

    Returns:
        The mean; without targets 0. Metrics: ``sp_ce`` (nats per token) and, if measured,
        ``sp_token_accuracy`` (share of tokens).
    """
    value = scaled_sum(-target_logprobs, denominator)
    metrics = {"sp_ce": value.detach()}
    if argmax_correct is not None:
        same_shape(target_logprobs=target_logprobs, argmax_correct=argmax_correct)
        metrics["sp_token_accuracy"] = scaled_sum(argmax_correct, denominator)
    return LossTerm(value, metrics)


def inverse_dynamics(
    target_logprobs: Float[Tensor, "target"],
    argmax_correct: Bool[Tensor, "target"],
    row_ids: Int[Tensor, "target"],
    *,
    denominator: Denominator,
    row_denominator: Denominator,
) -> LossTerm:
    """L_ID: token cross-entropy of the action given the observations before and after it.

    −Σ log p(token) / denominator (EnvRL, arXiv 2606.17680, inverse dynamics).

    Args:
        target_logprobs: Of the action's tokens under the policy, with gradient, nats, <= 0.
        argmax_correct: Whether the policy's likeliest token is the target.
        row_ids: Which transition a target belongs to; any integers. All targets of a transition are in
            the same micro-batch.
        denominator: Number of inverse-dynamics target tokens in the whole update batch.
        row_denominator: Number of transitions with such targets in the whole update batch.

    Returns:
        The mean; without targets 0. Metrics: ``id_ce`` (nats per token), ``id_token_accuracy`` (share of
        tokens), ``id_exact_match`` (share of transitions whose every target token is the likeliest).
    """
    same_shape(target_logprobs=target_logprobs, argmax_correct=argmax_correct, row_ids=row_ids)
    value = scaled_sum(-target_logprobs, denominator)
    rows, row_of_target = torch.unique(row_ids, return_inverse=True)
    misses = torch.zeros_like(rows).index_add(0, row_of_target, (~argmax_correct).to(rows.dtype))
    metrics = {
        "id_ce": value.detach(),
        "id_token_accuracy": scaled_sum(argmax_correct, denominator),
        "id_exact_match": scaled_sum(misses == 0, row_denominator),
    }
    return LossTerm(value, metrics)


def shuffled_pairing(keys: Sequence[Hashable], rng: np.random.Generator) -> list[int]:
    """Permutation for the shuffled-target control: who gets whose target.

    Item i is trained on the target of item p[i]. Items with equal keys have equal content, so mere index
    derangement would leave many of them with a true target (half of all answers may be "Nothing
    happens."). The permutation therefore avoids equal *content*: with n items, of which the most
    frequent content has m, n items get foreign content if m <= n/2, else the possible 2·(n − m).

    A uniformly random permutation is drawn and each item with its own content then swaps with a random
    item for which that is right on both sides. While more than the unavoidable items are wrong such a
    partner exists: an item of content c fails to find one only if every item of other content already
    has c.

    Args:
        keys: Content of each item's target, compared by equality.
        rng: Source of the draw; the same state gives the same permutation.

    Returns:
        A permutation of ``range(len(keys))``; every target is used exactly once, so the control trains on
        the same tokens as the true arm.
    """
    numbers: dict[Hashable, int] = {}
    content = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    pairing = rng.permutation(len(content))
    for item in np.flatnonzero(content[pairing] == content):
        own = content[item]
        if content[pairing[item]] != own:
            continue  # repaired as the partner of an earlier item
        partners = np.flatnonzero((content != own) & (content[pairing] != own))
        if len(partners):
            partner = rng.choice(partners)
            pairing[item], pairing[partner] = pairing[partner], pairing[item]
    return [int(i) for i in pairing]
