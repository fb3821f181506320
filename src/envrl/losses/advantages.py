"""Advantages of rows: how much better a row did than those it is compared with.

GRPO, RLOO and REINFORCE++ differ in whom they compare with and in what they divide by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envrl.errors import ConfigFault
from envrl.losses.terms import same_shape

Normalisation = Literal["rows", "episodes"]
"""What the pool of a group consists of: every row, or one score per episode."""

SPREAD_TOLERANCE = 1e-11
"""Spread of a pool, relative to the group's largest score, up to which its members count as equal: far
above the rounding of float64 means, far below a difference of float32 scores."""


def grpo_advantages(
    scores: Float[Tensor, "rows"],
    group_ids: Int[Tensor, "rows"],
    trajectory_ids: Int[Tensor, "rows"],
    *,
    normalisation: Normalisation,
    scale_by_std: bool = True,
    eps: float = 1e-6,
) -> Float[Tensor, "rows"]:
    """GRPO's advantage of every row: (score − mean) / (std + eps) over the pool of the row's group.

    Source: GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2) with the pools of verl-agent
    (GiGPO, arXiv 2505.10978). ``rows``: the pool is every row of the group, so long episodes weigh more.
    ``episodes``: the pool has one score per trajectory, the mean over its rows (declared choice; with
    per-row penalties the rows of a trajectory differ, and no single row stands for it). In both cases it
    is the row's own score that is compared with the pool, so a row's own penalty stays its own.

    Args:
        scores: One per row, finite; usually the episode's return minus the row's penalties.
        group_ids: Which group a row belongs to; any integers.
        trajectory_ids: Which trajectory of the group a row belongs to; need not differ between groups.
        normalisation: The pool, see above.
        scale_by_std: Divide by the pool's unbiased standard deviation; ``False`` only subtracts the mean.
        eps: Added to the standard deviation.

    Returns:
        Advantages in the dtype of the scores. A group whose pool has one member, or only equal ones
        (up to rounding), gets exactly 0.

    Raises:
        ConfigFault: The normalisation is unknown.
        ValueError: Shapes differ or a score is not finite.
    """
    pools = _pools(scores, group_ids, trajectory_ids, normalisation)
    wide = scores.detach().double()
    advantages = wide - pools.mean[pools.group_of_row]
    if scale_by_std:
        advantages = advantages / (pools.std[pools.group_of_row] + eps)
    advantages = advantages.masked_fill(~pools.varied[pools.group_of_row], 0.0)
    return advantages.to(scores.dtype)


def rloo_advantages(
    scores: Float[Tensor, "rows"],
    group_ids: Int[Tensor, "rows"],
    trajectory_ids: Int[Tensor, "rows"],
    *,
    normalisation: Normalisation,
) -> Float[Tensor, "rows"]:
    """RLOO's advantage of every row: score − mean of the others in the pool of the row's group.

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free"; Ahmadian et al. 2024
    (arXiv 2402.14740, section 3.3), with GRPO's pools (:func:`grpo_advantages`). The own score is left
    out of the baseline, which therefore is independent of it: with n members, n/(n − 1) times the
    difference from the mean. ``episodes`` leaves out the mean of the row's own trajectory.

    Args and errors as in :func:`grpo_advantages`.

    Returns:
        Advantages in the dtype of the scores. A group whose pool has one member, or only equal ones
        (up to rounding), gets exactly 0.
    """
    pools = _pools(scores, group_ids, trajectory_ids, normalisation)
    of_row = pools.group_of_row
    count = pools.count[of_row].double()
    others = (count * pools.mean[of_row] - pools.member) / (count - 1).clamp(min=1)
    advantages = (scores.detach().double() - others).masked_fill(~pools.varied[of_row], 0.0)
    return advantages.to(scores.dtype)


def reinforce_pp_advantages(
    scores: Float[Tensor, "rows"],
    trajectory_ids: Int[Tensor, "rows"],
    *,
    normalisation: Normalisation,
    scale_by_std: bool = True,
    eps: float = 1e-6,
) -> Float[Tensor, "rows"]:
    """REINFORCE++'s advantage of every row: (score − mean) / (std + eps) over the whole batch.

    Source: REINFORCE++ (Hu et al. 2025, arXiv 2501.03262, the advantage normalised over the batch): no
    group is compared with itself, so a game is good or bad beside all others. The KL is left to the
    loss, where it stands for every algorithm (declared choice), so all tokens of a row have its score.
    The pool has one score per row or per trajectory, see :func:`grpo_advantages`, where it is also said
    what is refused.

    Args:
        scores: One per row of the iteration, finite.
        trajectory_ids: Which trajectory a row belongs to; differ between groups.
        normalisation: The pool.
        scale_by_std: Divide by the pool's unbiased standard deviation.
        eps: Added to the standard deviation.

    Returns:
        Advantages in the dtype of the scores; exactly 0 if all scores are equal or there is only one.
    """
    everyone = torch.zeros_like(trajectory_ids)
    return grpo_advantages(
        scores, everyone, trajectory_ids, normalisation=normalisation, scale_by_std=scale_by_std, eps=eps
    )


def zero_variance_share(
    scores: Float[Tensor, "rows"],
    group_ids: Int[Tensor, "rows"],
    trajectory_ids: Int[Tensor, "rows"],
    *,
    normalisation: Normalisation,
) -> float:
    """Share of groups whose pool has no variance: they get advantage 0 and teach the policy nothing.

    Args and errors as in :func:`grpo_advantages`.

    Returns:
        A number in [0, 1]; 0 if there are no groups.
    """
    varied = _pools(scores, group_ids, trajectory_ids, normalisation).varied
    return float((~varied).double().mean()) if varied.numel() else 0.0


@dataclass(frozen=True, slots=True)
class _Pools:
    """Statistics of every group's pool, in float64, and of each row its group and what it is there."""

    mean: Float[Tensor, "groups"]
    std: Float[Tensor, "groups"]
    varied: Bool[Tensor, "groups"]
    count: Int[Tensor, "groups"]
    group_of_row: Int[Tensor, "rows"]
    member: Float[Tensor, "rows"]


def _pools(scores: Tensor, group_ids: Tensor, trajectory_ids: Tensor, normalisation: Normalisation) -> _Pools:
    """Collects the pool of every group and measures it."""
    same_shape(scores=scores, group_ids=group_ids, trajectory_ids=trajectory_ids)
    if normalisation not in ("rows", "episodes"):
        raise ConfigFault(f"Unknown normalisation {normalisation!r}: give 'rows' or 'episodes'.")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("Scores hold NaN or infinity: an advantage of them would poison the whole group.")
    _, group_of_row = torch.unique(group_ids, return_inverse=True)
    n_groups = int(group_of_row.max()) + 1 if len(group_of_row) else 0
    members, group_of_member = scores.detach().double(), group_of_row
    member_of_row = torch.arange(len(scores), device=scores.device)
    if normalisation == "episodes" and n_groups:
        # Pairs, because trajectory ids may start anew in each group.
        pairs, member_of_row = torch.unique(
            torch.stack([group_of_row, trajectory_ids.to(group_of_row)]), dim=1, return_inverse=True
        )
        members, group_of_member = _segment_mean(members, member_of_row, pairs.shape[1]), pairs[0]
    mean = _segment_mean(members, group_of_member, n_groups)
    count = torch.bincount(group_of_member, minlength=n_groups)
    squares = members.new_zeros(n_groups).index_add(
        0, group_of_member, (members - mean[group_of_member]) ** 2
    )
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    low = squares.scatter_reduce(0, group_of_member, members, "amin", include_self=False)
    high = squares.scatter_reduce(0, group_of_member, members, "amax", include_self=False)
    # Two episodes with the same rows in another order have means that differ by rounding only; divided by
    # a spread of that size, the rows' own differences would become advantages of millions.
    size = mean.new_zeros(n_groups).scatter_reduce(0, group_of_row, scores.detach().double().abs(), "amax")
    varied = high - low > SPREAD_TOLERANCE * size
    return _Pools(mean, std, varied, count, group_of_row, members[member_of_row])


def _segment_mean(values: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Mean of the values of each segment."""
    sums = values.new_zeros(n_segments).index_add(0, segment, values)
    return sums / torch.bincount(segment, minlength=n_segments)
