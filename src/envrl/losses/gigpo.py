"""GiGPO: groups within groups, so that single steps are compared where their situations are the same."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from jaxtyping import Float, Int
from rapidfuzz import fuzz
from torch import Tensor

from envrl.errors import ConfigFault
from envrl.losses.advantages import grpo_advantages
from envrl.losses.terms import same_shape


def anchor_groups(
    anchors: Sequence[str], group_ids: Sequence[int], *, similarity: float | None = None
) -> list[int]:
    """Which step group every turn belongs to: turns of one episode group that saw the same thing.

    Source: GiGPO (arXiv 2505.10978, section 4.2, anchor states); with ``similarity`` the variant of its
    public code, verl-agent, for texts that are hardly ever equal.

    Args:
        anchors: What each turn saw before it acted: the observation's text, without the list of actions.
        group_ids: Which episode group a turn belongs to; turns of different ones never meet.
        similarity: ``None`` joins equal texts only. Else the least similarity, above 0 and up to 1, to
            the first text of a step group at which a text joins it; the first such group takes it.
            Similarity is difflib's ratio, 2 · matching characters / characters of both.

    Returns:
        One number per turn, counted from 0 in the order in which step groups first appear.

    Raises:
        ConfigFault: ``similarity`` is outside (0, 1].
        ValueError: There is not one group per anchor.
    """
    if similarity is not None and not 0 < similarity <= 1:
        raise ConfigFault(
            f"The similarity of anchors is {similarity}: give a ratio above 0 and up to 1, e.g. 0.9, or null."
        )
    step_group: dict[tuple[int, str], int] = {}
    firsts: dict[int, list[tuple[str, int]]] = {}
    count = 0
    result = []
    for anchor, group in zip(anchors, group_ids, strict=True):
        found = step_group.get((group, anchor))
        if found is None and similarity is not None:
            leaders = firsts.setdefault(group, [])
            found = next((n for text, n in leaders if _alike(anchor, text, similarity)), None)
        if found is None:
            found, count = count, count + 1
            if similarity is not None:
                firsts[group].append((anchor, found))
        step_group[group, anchor] = found
        result.append(found)
    return result


def gigpo_advantages(
    episode_advantages: Float[Tensor, "turns"],
    step_scores: Float[Tensor, "turns"],
    step_groups: Int[Tensor, "turns"],
    *,
    omega: float,
    scale_by_std: bool = True,
    eps: float = 1e-6,
) -> Float[Tensor, "turns"]:
    """A = A_episode + ω · A_step (GiGPO, arXiv 2505.10978, eq. 8).

    A_step compares a turn's score with those of its step group, by the same formula by which episodes
    are compared with their group: (score − mean) / (std + eps), or the difference alone.

    Args:
        episode_advantages: GRPO's advantage of the episode or row a turn belongs to.
        step_scores: Discounted return from the turn on, minus the turn's own penalty; finite.
        step_groups: Which step group a turn belongs to (:func:`anchor_groups`).
        omega: Weight ω of the step level, >= 0. 0 is GRPO, bit by bit.
        scale_by_std: Divide by the step group's unbiased standard deviation.
        eps: Added to the standard deviation.

    Returns:
        In the dtype of the episode advantages. A step group of one turn, or of equal scores, adds 0.

    Raises:
        ConfigFault: ``omega`` is negative or not finite.
        ValueError: Shapes differ or a step score is not finite.
    """
    if not 0 <= omega < float("inf"):
        raise ConfigFault(f"omega is {omega}: give a weight >= 0; 0 leaves the episode level alone.")
    same_shape(episode=episode_advantages, step_scores=step_scores, step_groups=step_groups)
    members = torch.arange(len(step_scores), device=step_scores.device)
    steps = grpo_advantages(
        step_scores, step_groups, members, normalisation="rows", scale_by_std=scale_by_std, eps=eps
    )
    return episode_advantages + omega * steps.to(episode_advantages.dtype)


def _alike(a: str, b: str, least: float) -> bool:
    """Whether difflib's ratio of two texts reaches ``least``."""
    # The longest common subsequence is never shorter than difflib's matching blocks, which are one; it is
    # counted a hundred times faster and rules most pairs out. The margin is for rounding.
    if fuzz.ratio(a, b) < 100 * least - 1e-6:
        return False
    return SequenceMatcher(None, a, b).ratio() >= least
