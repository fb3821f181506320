"""The critic's loss: how far the value head is from what episodes turned out to be worth."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from envrl.errors import ConfigFault
from envrl.losses.terms import Denominator, LossTerm, at_least_float32, same_shape, scaled_sum


def value_loss(
    values: Float[Tensor, "turns"],
    sampled_values: Float[Tensor, "turns"],
    returns: Float[Tensor, "turns"],
    *,
    clip: float | None,
    denominator: Denominator,
) -> LossTerm:
    """½ · max((V − G)², (V_clipped − G)²), a mean over turns.

    V_clipped is V kept within ± ``clip`` of what the head said when the episodes were played, so that
    one update can't move it further where that would pay (the public code of Schulman et al. 2017, arXiv
    1707.06347; Huang et al. 2022, "The 37 implementation details of PPO", detail 9). Where the clipped
    square is the larger one the gradient is 0.

    Args:
        values: The head's values now, with gradient.
        sampled_values: Its values when the episodes were played; a constant.
        returns: What they should have been (:func:`envrl.losses.returns.generalised_advantages`).
        clip: Farthest that a value may profitably move, in units of reward, > 0; ``None`` = the plain
            square.
        denominator: Number of turns in the whole update batch.

    Returns:
        The loss; without turns 0. Metrics, means over turns: ``value_error`` (|V − G|, reward) and
        ``value_clip_share`` (turns at which the bound holds).

    Raises:
        ConfigFault: ``clip`` is not > 0.
        ValueError: The tensors differ in shape.
    """
    if clip is not None and not clip > 0:
        raise ConfigFault(f"The clip of values is {clip}: give a distance > 0, or null for none.")
    same_shape(values=values, sampled_values=sampled_values, returns=returns)
    now, before, target = at_least_float32(values), sampled_values.detach(), returns.detach()
    squares = (now - target) ** 2
    bound = torch.zeros_like(squares, dtype=torch.bool)
    if clip is not None:
        clipped = (before + (now - before).clamp(-clip, clip) - target) ** 2
        bound = clipped.detach() > squares.detach()
        squares = torch.maximum(squares, clipped)
    metrics = {
        "value_error": scaled_sum((now - target).detach().abs(), denominator),
        "value_clip_share": scaled_sum(bound, denominator),
    }
    return LossTerm(0.5 * scaled_sum(squares, denominator), metrics)
