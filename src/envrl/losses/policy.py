"""The policy's loss on the tokens it sampled: clipped surrogate, KL to a reference, entropy.

All functions work on flat tensors over target positions (sampled tokens) and divide by an explicit
denominator, see :func:`envrl.losses.terms.scaled_sum`. Where tokens don't all weigh the same
(:func:`envrl.losses.aggregation.token_weights`), the loss is a weighted sum and the metrics stay means
over tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envrl.errors import ConfigFault
from envrl.losses.aggregation import weighted
from envrl.losses.terms import Denominator, LossTerm, at_least_float32, same_shape, scaled_sum

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are cut at ± this before ``exp`` so that one broken token can't make the loss infinite."""


def token_logprobs(
    logits: Float[Tensor, "target vocab"], targets: Int[Tensor, "target"], temperature: float = 1.0
) -> Float[Tensor, "target"]:
    """Natural logarithm of the probability of each target token: log_softmax(logits / T)[target].

    Computed in float32 (float64 stays) whatever the model's precision: the log-softmax of bfloat16
    logits is off by more than the differences that ratios and KL terms are made of.

    Args:
        logits: The model's output at the position before each target.
        targets: Token ids in [0, vocab).
        temperature: Divisor of the logits, > 0. 1 gives the model's own distribution.

    Raises:
        ConfigFault: The temperature is not > 0.
        ValueError: There is not one row of logits per target.
    """
    if not temperature > 0:
        raise ConfigFault(f"temperature is {temperature}: it divides the logits, give a number > 0.")
    same_shape(logits=logits[:, 0], targets=targets)
    scaled = at_least_float32(logits)
    if temperature != 1.0:
        scaled = scaled / temperature
    return torch.log_softmax(scaled, dim=-1).gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)


def token_entropies(logits: Float[Tensor, "target vocab"]) -> Float[Tensor, "target"]:
    """Entropy of the next-token distribution in nats: −Σ_v p_v · log p_v, in [0, log(vocab)].

    Computed in float32 (float64 stays). Tokens ruled out by a logit of −inf add 0 and get no gradient.

    Args:
        logits: The model's output at the position before each target, at temperature 1.
    """
    logprobs = torch.log_softmax(at_least_float32(logits), dim=-1)
    # 0 · (−inf) is NaN; 0 · (smallest float) is the limit that p·log p has.
    finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)
    return -(logprobs.exp() * finite).sum(dim=-1)


def clipped_surrogate(
    policy_logprobs: Float[Tensor, "target"],
    sampled_logprobs: Float[Tensor, "target"],
    advantages: Float[Tensor, "target"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    denominator: Denominator,
    measured: Denominator | None = None,
    weights: Float[Tensor, "target"] | None = None,
) -> LossTerm:
    """PPO's clipped surrogate, as a loss, with dual clipping of negative advantages.

    With r = π(token) / π_sampled(token) and advantage A, the loss of a token is
    max(−A·r, −A·clip(r, 1 − clip_low, 1 + clip_high)) (Schulman et al. 2017, arXiv 1707.06347, eq. 7).
    Where A < 0 it is at most −A·dual_clip, so a token that has become far more likely cannot dominate
    the batch (Ye et al. 2020, arXiv 1912.09729, eq. 5). Where a bound holds the gradient is 0. At r = 1
    the gradient is REINFORCE's, −A·∇log π. Log-ratios are cut at ±20 before ``exp``.

    Args:
        policy_logprobs: Of the sampled tokens under the policy being updated, with gradient.
        sampled_logprobs: The same tokens, as recorded when they were sampled; a constant.
        advantages: One per target token; a constant.
        clip_low: Distance of the lower bound of the ratio from 1, in [0, 1].
        clip_high: Distance of the upper bound of the ratio from 1, >= 0.
        dual_clip: Largest ratio that counts where the advantage is negative, > 1; ``None`` = plain PPO.
        denominator: Number of sampled tokens in the whole update batch.
        measured: How many of them are really given, in this or another micro-batch: tokens of advantage 0
            add nothing to the loss and may be left out, and metrics are means over the others. ``None`` =
            all.
        weights: Of the tokens' losses; ``None`` = 1 each.

    Returns:
        The loss; without targets 0. Metrics are means over tokens: ``clip_share`` (a bound of the ratio
        holds), ``dual_clip_share`` (the dual bound holds), ``ratio_mean``, ``approx_kl`` and
        ``approx_kl_k1`` (estimates k3 and k1 of KL(sampled ‖ policy), nats), ``logprob_gap`` (mean
        absolute difference of the two log-probabilities, nats).

    Raises:
        ConfigFault: A clipping range is impossible.
        ValueError: The tensors differ in shape.
    """
    _check_clipping(clip_low, clip_high, dual_clip)
    same_shape(policy=policy_logprobs, sampled=sampled_logprobs, advantages=advantages)
    advantages = advantages.detach()
    log_ratio = policy_logprobs - sampled_logprobs.detach()
    log_ratio = at_least_float32(log_ratio).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(unclipped, clipped)
    dual_bound = torch.zeros_like(loss, dtype=torch.bool)
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        dual_bound = (advantages < 0) & (loss > ceiling)
        loss = torch.where(dual_bound, ceiling, loss)
    with torch.no_grad():
        per_token = {
            "clip_share": clipped > unclipped,
            "dual_clip_share": dual_bound,
            "ratio_mean": ratio,
            "approx_kl": torch.expm1(log_ratio) - log_ratio,
            "approx_kl_k1": -log_ratio,
            "logprob_gap": log_ratio.abs(),
        }
        given = denominator if measured is None else measured
        metrics = {name: scaled_sum(values, given) for name, values in per_token.items()}
    return LossTerm(scaled_sum(weighted(loss, weights), denominator), metrics)


def kl_k3(
    policy_logprobs: Float[Tensor, "target"],
    reference_logprobs: Float[Tensor, "target"],
    *,
    clamp: float = 10.0,
    denominator: Denominator,
    weights: Float[Tensor, "target"] | None = None,
) -> LossTerm:
    """Low-variance estimate of KL(policy ‖ reference) on sampled tokens, nats per token.

    k3 = exp(d) − d − 1 with d = log π_ref − log π (Schulman 2020, "Approximating KL divergence"): never
    negative, unbiased for tokens sampled from the policy. As in verl's ``low_var_kl``, d is cut at ±20
    and the *value* at ``clamp``; the declared choice is to follow it, so a token whose estimate exceeds
    ``clamp`` adds that constant and no gradient. ``kl_clamped_share`` tells how many do.

    Args:
        policy_logprobs: Of the sampled tokens under the policy being updated, with gradient.
        reference_logprobs: The same tokens under the frozen reference; a constant.
        clamp: Largest value of a token's estimate, > 0.
        denominator: Number of sampled tokens in the whole update batch.
        weights: Of the tokens' estimates in the loss; ``None`` = 1 each.

    Returns:
        The mean estimate; without targets 0. Metrics: ``kl``, ``kl_clamped_share``.

    Raises:
        ConfigFault: ``clamp`` is not > 0.
        ValueError: The tensors differ in shape.
    """
    if not clamp > 0:
        raise ConfigFault(f"The clamp of the KL estimate is {clamp}: give a number > 0, e.g. 10.")
    same_shape(policy=policy_logprobs, reference=reference_logprobs)
    difference = at_least_float32(reference_logprobs.detach() - policy_logprobs)
    difference = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    # expm1 keeps the digits that exp(d) − 1 loses where the two models nearly agree.
    estimate = torch.expm1(difference) - difference
    estimate, beyond = estimate.clamp(max=clamp), estimate.detach() > clamp
    value = scaled_sum(weighted(estimate, weights), denominator)
    metrics = {
        "kl": scaled_sum(estimate.detach(), denominator),
        "kl_clamped_share": scaled_sum(beyond, denominator),
    }
    return LossTerm(value, metrics)


def entropy_bonus(
    entropies: Float[Tensor, "target"],
    *,
    denominator: Denominator,
    weights: Float[Tensor, "target"] | None = None,
) -> LossTerm:
    """Minus the mean entropy, so that adding ``coefficient · value`` rewards a spread-out policy.

    Args:
        entropies: Per sampled token in nats (:func:`token_entropies`), with gradient.
        denominator: Number of sampled tokens in the whole update batch.
        weights: Of the tokens' entropies in the loss; ``None`` = 1 each.

    Returns:
        −Σ entropy / denominator; without targets 0. Metric: ``entropy``, the positive mean.
    """
    bonus = scaled_sum(weighted(entropies, weights), denominator)
    return LossTerm(-bonus, {"entropy": scaled_sum(entropies.detach(), denominator)})


def _check_clipping(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    """Refuses bounds that are no interval around 1."""
    if not 0 <= clip_low <= 1:
        raise ConfigFault(f"clip_low is {clip_low}: the ratio is bounded by 1 - clip_low, give 0 to 1.")
    if not clip_high >= 0:
        raise ConfigFault(
            f"clip_high is {clip_high}: the ratio is bounded by 1 + clip_high, give a number >= 0."
        )
    if dual_clip is not None and not dual_clip > 1:
        raise ConfigFault(f"dual_clip is {dual_clip}: give a ratio > 1, e.g. 3, or null for plain PPO.")
