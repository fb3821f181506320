"""Rivals' losses on the tokens of the next observation: clipped MAE, and cross-entropy per observation."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from envrl.errors import ConfigFault
from envrl.losses.terms import Denominator, LossTerm, at_least_float32, same_shape, scaled_sum


def clipped_mae(
    target_logprobs: Float[Tensor, "target"],
    weights: Float[Tensor, "target"],
    *,
    margin: float,
    denominator: Denominator,
) -> LossTerm:
    """PaW's token loss: max(1 − p − margin, 0), weighted, over the number of target tokens.

    1 − p is half the absolute error between the predicted distribution and the observed token (PaW,
    arXiv 2606.02388, noise-tolerant loss). A token with p >= 1 − margin is known well enough: it adds
    nothing and gets no gradient. Its gradient, −p·∇log p, also vanishes where p is near 0, so tokens that
    nobody could know do not pull either. The margin's value is a declared choice.

    Args:
        target_logprobs: Of the next observation's tokens under the policy, with gradient, nats, <= 0.
        weights: Of each token, a constant, >= 0.
        margin: In [0, 1); 0 is plain MAE.
        denominator: Number of target tokens in the whole update batch; weights are no part of it, so that
            a lower weight is a lower loss.

    Returns:
        The loss; without targets 0. Metric: ``clipped_share``, share of tokens without a gradient.

    Raises:
        ConfigFault: The margin is outside its range.
        ValueError: The tensors differ in shape.
    """
    if not 0 <= margin < 1:
        raise ConfigFault(f"The margin of the clipped MAE is {margin}: give a number in [0, 1), e.g. 0.1.")
    same_shape(target_logprobs=target_logprobs, weights=weights)
    error = 1 - at_least_float32(target_logprobs).exp() - margin
    clipped = scaled_sum(error.detach() <= 0, denominator)
    return LossTerm(scaled_sum(weights * error.clamp(min=0), denominator), {"clipped_share": clipped})


def per_observation_cross_entropy(
    target_logprobs: Float[Tensor, "target"],
    weights: Float[Tensor, "target"],
    *,
    denominator: Denominator,
) -> LossTerm:
    """ECHO's term: cross-entropy of environment tokens, each observation's mean counting the same.

    −Σ w·log p / denominator (ECHO, arXiv 2605.24517) with w = 1/(length of the token's observation) and
    the number of observations as denominator, so that a long observation weighs no more than a short one.

    Args:
        target_logprobs: Of the observations' tokens under the policy, with gradient, nats, <= 0.
        weights: One over the length of each token's observation, a constant.
        denominator: Sum of the weights in the whole update batch, the number of observations.

    Returns:
        The mean over observations; without targets 0. No metrics: the value is the metric.

    Raises:
        ValueError: The tensors differ in shape.
    """
    same_shape(target_logprobs=target_logprobs, weights=weights)
    return LossTerm(scaled_sum(-weights * target_logprobs, denominator), {})
