"""What an environment step leads to: discounted returns, and advantages over a learnt value.

An entry is a turn, one environment step. The turns of an episode stand in the order in which they were
played; episodes may be mixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envrl.errors import ConfigFault
from envrl.losses.terms import same_shape


@dataclass(frozen=True, slots=True)
class Estimates:
    """What is known of every turn once its episode has ended.

    Attributes:
        advantages: How much better the turn went than its value foretold.
        returns: What the value of the turn should have been: advantage + value.
    """

    advantages: Float[Tensor, "turns"]
    returns: Float[Tensor, "turns"]


def discounted_returns(
    rewards: Float[Tensor, "turns"], trajectory_ids: Int[Tensor, "turns"], *, gamma: float
) -> Float[Tensor, "turns"]:
    """G_t = Σ_k≥t γ^(k−t) · r_k over the rest of the turn's episode (GiGPO, arXiv 2505.10978, eq. 5).

    Args:
        rewards: Reward of each turn, finite.
        trajectory_ids: Which episode a turn belongs to; any integers.
        gamma: Discount of an environment step, 0 to 1. With 0 every turn has its own reward, with 1 the
            undiscounted rest of the episode.

    Returns:
        In the dtype of the rewards; empty if there are no turns.

    Raises:
        ConfigFault: ``gamma`` is outside [0, 1].
        ValueError: Shapes differ or a reward is not finite.
    """
    # A critic that always says 0, trusted at no step.
    nothing = torch.zeros_like(rewards)
    return generalised_advantages(rewards, nothing, trajectory_ids, gamma=gamma, lam=1.0).returns


def generalised_advantages(
    rewards: Float[Tensor, "turns"],
    values: Float[Tensor, "turns"],
    trajectory_ids: Int[Tensor, "turns"],
    *,
    gamma: float,
    lam: float,
) -> Estimates:
    """Generalised advantage estimation over environment steps.

    A_t = δ_t + γλ · A_{t+1} with δ_t = r_t + γ · V_{t+1} − V_t (Schulman et al. 2015, arXiv 1506.02438,
    eq. 16). After an episode's last turn V and A are 0, whether the game ended or a limit cut it off:
    as in the published protocol, the limit of steps is a rule of the game (declared choice).

    Args:
        rewards: Reward of each turn, finite.
        values: The critic's value of what each turn saw before it acted; a constant.
        trajectory_ids: Which episode a turn belongs to; any integers.
        gamma: Discount of an environment step, 0 to 1.
        lam: 0 trusts the critic after one step (A = δ), 1 never does (A = G − V).

    Returns:
        Advantages and returns in the dtype of the rewards; empty if there are no turns.

    Raises:
        ConfigFault: ``gamma`` or ``lam`` is outside [0, 1].
        ValueError: Shapes differ, or a reward or value is not finite.
    """
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0 <= value <= 1:
            raise ConfigFault(f"{name} is {value}: it weighs what comes later, give a number from 0 to 1.")
    same_shape(rewards=rewards, values=values, trajectory_ids=trajectory_ids)
    if not bool(torch.isfinite(rewards).all() and torch.isfinite(values).all()):
        raise ValueError("Rewards or values hold NaN or infinity: every earlier turn would inherit it.")
    reward, value_of = rewards.detach().double().tolist(), values.detach().double().tolist()
    episodes = trajectory_ids.tolist()
    advantages = [0.0] * len(reward)
    later_value: dict[int, float] = {}
    later_advantage: dict[int, float] = {}
    for turn in reversed(range(len(reward))):
        episode, value = episodes[turn], value_of[turn]
        surprise = reward[turn] + gamma * later_value.get(episode, 0.0) - value
        advantages[turn] = surprise + gamma * lam * later_advantage.get(episode, 0.0)
        later_value[episode], later_advantage[episode] = value, advantages[turn]
    found = torch.tensor(advantages, dtype=torch.float64, device=rewards.device)
    return Estimates(found.to(rewards.dtype), (found + values.detach().double()).to(rewards.dtype))
