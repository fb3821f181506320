"""Adaptive weights of auxiliary losses: factors on the scheduled weight, from what training has shown."""

from __future__ import annotations

import math

from envrl.errors import ConfigFault


def gradient_norm_factor(policy_norm: float, objective_norm: float, most: float) -> float:
    """Factor that makes an objective's gradient as long as the policy's: ‖g_policy‖ / ‖g_objective‖.

    With it, the scheduled weight λ is the ratio of the two gradients' lengths, whatever the loss is
    measured in. The idea is GradNorm's (Chen et al. 2018, arXiv 1711.02257), without its training rates:
    the ratio is solved for, not learnt (declared choice).

    Args:
        policy_norm: Norm of the policy term's gradient, >= 0.
        objective_norm: Norm of the objective's own gradient, unweighted, >= 0.
        most: Largest factor, > 0.

    Returns:
        A number in [0, most]; 0 where either gradient is 0, as there is nothing to balance.
    """
    if policy_norm == 0 or objective_norm == 0:
        return 0.0
    return min(most, policy_norm / objective_norm)


def uncertainty_factor(log_variance: float, most: float) -> float:
    """exp(−s), the weight of a loss with learnt log-variance s (Kendall et al. 2018, arXiv 1705.07115).

    The paper's classification weight is 1/σ² with s = log σ²; the constant ½ of regression is in λ.

    Args:
        log_variance: s, in nats.
        most: Largest factor, > 0.
    """
    return min(most, math.exp(-log_variance))


def next_log_variance(log_variance: float, loss: float, rate: float) -> float:
    """One gradient step on exp(−s)·L + s, the objective that s is learnt by: s − rate·(1 − exp(−s)·L).

    At its optimum exp(−s) = 1/L, so a loss that stays large counts less.

    Args:
        log_variance: s.
        loss: L, the objective's unweighted loss, >= 0.
        rate: Learning rate of s, > 0.
    """
    return log_variance - rate * (1 - math.exp(-log_variance) * loss)


def reward_factor(success: float) -> float:
    """1 − success: the less the policy wins, the more the auxiliary loss counts.

    PaW (arXiv 2606.02388) weighs inversely to reward, per group; this is the same over an iteration. The
    form is a declared choice.

    Args:
        success: Share of the iteration's episodes that were won, in [0, 1].

    Raises:
        ConfigFault: The share is outside its range.
    """
    if not 0 <= success <= 1:
        raise ConfigFault(f"The success rate is {success}: give a share in [0, 1].")
    return 1.0 - success
