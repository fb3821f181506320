"""Group-relative advantages: how much better a row did than its group."""

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
    """Statistics of every group's pool, in float64, and the index of each row's group."""

    mean: Float[Tensor, "groups"]
    std: Float[Tensor, "groups"]
    varied: Bool[Tensor, "groups"]
    group_of_row: Int[Tensor, "rows"]


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
    return _Pools(mean, std, high - low > SPREAD_TOLERANCE * size, group_of_row)


def _segment_mean(values: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Mean of the values of each segment."""
    sums = values.new_zeros(n_segments).index_add(0, segment, values)
    return sums / torch.bincount(segment, minlength=n_segments)
