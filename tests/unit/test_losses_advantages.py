"""Group-relative advantages against hand arithmetic and Python's statistics module."""

import statistics
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envrl.losses.advantages import Normalisation, grpo_advantages, zero_variance_share

# Group 4: trajectory 0 won with two rows, trajectory 1 lost with one. Group 9: a single row. Group 2:
# three equal rows of three trajectories (0.1 + 0.1 + 0.1 is not 0.3 in binary). Order is mixed.
SCORES = torch.tensor([10.0, 7.0, 0.0, 0.1, 10.0, 0.1, 0.1])
GROUPS = torch.tensor([4, 9, 4, 2, 4, 2, 2])
TRAJECTORIES = torch.tensor([0, 0, 1, 0, 0, 1, 2])


def test_rows_pool() -> None:
    got = grpo_advantages(SCORES, GROUPS, TRAJECTORIES, normalisation="rows")
    # Pool 10, 0, 10: mean 20/3, squares 11.1 + 44.4 + 11.1 = 66.7, unbiased std √33.3 = 5.7735027.
    # 3.3333333 / 5.7735027 = 0.5773503, −6.6666667 / 5.7735027 = −1.1547005.
    assert got.tolist() == pytest.approx([0.5773503, 0, -1.1547005, 0, 0.5773503, 0, 0], rel=1e-5)


def test_episodes_pool() -> None:
    got = grpo_advantages(SCORES, GROUPS, TRAJECTORIES, normalisation="episodes")
    # Pool 10, 0: mean 5, std √50 = 7.0710678; ±5 / 7.0710678.
    assert got.tolist() == pytest.approx([0.7071068, 0, -0.7071068, 0, 0.7071068, 0, 0], rel=1e-5)


def test_episodes_pool_takes_the_mean_of_a_trajectorys_rows() -> None:
    # One row was penalised: rows 10 and 9.9 stand as 9.95. Pool 9.95, 0: mean 4.975, std 9.95/√2 =
    # 7.0357125. Rows: 5.025, 4.925 and −4.975 over that.
    got = grpo_advantages(
        torch.tensor([10.0, 9.9, 0.0]),
        torch.tensor([0, 0, 0]),
        torch.tensor([5, 5, 6]),
        normalisation="episodes",
    )
    assert got.tolist() == pytest.approx([0.7142134, 0.7000002, -0.7071068], rel=1e-5)


def test_without_std_only_the_mean_is_taken_off() -> None:
    got = grpo_advantages(SCORES, GROUPS, TRAJECTORIES, normalisation="rows", scale_by_std=False)
    assert got.tolist() == pytest.approx([3.3333333, 0, -6.6666667, 0, 3.3333333, 0, 0])


def test_eps_is_added_to_the_std() -> None:
    # Scores 2 and 0: mean 1, std √2 = 1.4142136; 1 / (1.4142136 + 0.5) = 0.5224078.
    two = torch.tensor([2.0, 0.0])
    ids = torch.tensor([0, 1])
    got = grpo_advantages(two, torch.zeros_like(ids), ids, normalisation="rows", eps=0.5)
    assert got.tolist() == pytest.approx([0.5224078, -0.5224078], rel=1e-6)


@pytest.mark.parametrize("normalisation", ["rows", "episodes"])
@pytest.mark.parametrize("value", [0.1, -0.3, 1e8, 0.0])
def test_equal_scores_give_exactly_zero(normalisation: Normalisation, value: float) -> None:
    for n in (1, 2, 3, 7, 49):
        ids = torch.arange(n)
        scores = torch.full((n,), value, dtype=torch.float64)
        for trajectories in (ids, ids // 2):
            got = grpo_advantages(
                scores, torch.zeros_like(ids), trajectories, normalisation=normalisation, eps=1e-30
            )
            assert got.tolist() == [0.0] * n


def test_a_group_of_one_episode_gives_zero_under_episodes_only() -> None:
    scores, group, trajectory = torch.tensor([10.0, 9.9]), torch.tensor([0, 0]), torch.tensor([3, 3])
    assert grpo_advantages(scores, group, trajectory, normalisation="episodes").tolist() == [0.0, 0.0]
    # As rows the penalised one is worse than its neighbour: ±0.05 / 0.0707107.
    rows = grpo_advantages(scores, group, trajectory, normalisation="rows")
    assert rows.tolist() == pytest.approx([0.7071, -0.7071], rel=1e-3)


def test_episodes_that_differ_in_the_order_of_rows_only_are_equal() -> None:
    # 0.1 + 0.2 + 9.3 and 9.3 + 0.2 + 0.1 differ in the last bit; divided by that, 9.3 would get a million.
    assert (0.1 + 0.2) + 9.3 != (9.3 + 0.2) + 0.1
    scores = torch.tensor([0.1, 0.2, 9.3, 9.3, 0.2, 0.1], dtype=torch.float64)
    group, trajectory = torch.zeros(6, dtype=torch.long), torch.tensor([0, 0, 0, 1, 1, 1])
    got = grpo_advantages(scores, group, trajectory, normalisation="episodes")
    assert got.tolist() == [0.0] * 6
    assert zero_variance_share(scores, group, trajectory, normalisation="episodes") == 1.0


def test_zero_variance_share_counts_groups_not_rows() -> None:
    for normalisation in ("rows", "episodes"):
        share = zero_variance_share(SCORES, GROUPS, TRAJECTORIES, normalisation=normalisation)
        assert share == pytest.approx(2 / 3)  # groups 9 and 2 of three; they hold 4 of 7 rows
    one = (torch.tensor([10.0, 9.9]), torch.tensor([0, 0]), torch.tensor([3, 3]))
    assert zero_variance_share(*one, normalisation="rows") == 0.0
    assert zero_variance_share(*one, normalisation="episodes") == 1.0


def test_no_rows() -> None:
    none = torch.zeros(0, dtype=torch.long)
    for normalisation in ("rows", "episodes"):
        got = grpo_advantages(torch.zeros(0), none, none, normalisation=normalisation)
        assert got.shape == (0,)
        assert zero_variance_share(torch.zeros(0), none, none, normalisation=normalisation) == 0.0


def test_scores_must_be_finite() -> None:
    ids = torch.tensor([0, 0])
    with pytest.raises(ValueError, match="NaN"):
        grpo_advantages(torch.tensor([1.0, torch.nan]), ids, ids, normalisation="rows")


Row = tuple[int, int, float]
batches = st.lists(
    st.tuples(st.integers(-2, 3), st.integers(0, 3), st.sampled_from([0.0, 0.1, 9.9, 10.0, -0.1])),
    min_size=1,
    max_size=24,
)


def _run(rows: list[Row], normalisation: Normalisation) -> list[float]:
    groups, trajectories, scores = zip(*rows, strict=True)
    return grpo_advantages(
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(groups),
        torch.tensor(trajectories),
        normalisation=normalisation,
    ).tolist()


def _reference(rows: list[Row], normalisation: Normalisation) -> list[float]:
    """The same by dictionaries and the standard library."""
    pools: dict[int, list[float]] = {}
    for group in {row[0] for row in rows}:
        episodes: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            if row[0] == group:
                episodes[row[1]].append(row[2])
        flat = [score for episode in episodes.values() for score in episode]
        pools[group] = flat if normalisation == "rows" else [statistics.fmean(e) for e in episodes.values()]
    result = []
    for group, _, score in rows:
        pool = pools[group]
        spread = statistics.stdev(pool) if len(pool) > 1 else 0.0
        result.append(0.0 if spread < 1e-12 else (score - statistics.fmean(pool)) / (spread + 1e-6))
    return result


@given(rows=batches)
def test_agrees_with_the_standard_library(rows: list[Row]) -> None:
    for normalisation in ("rows", "episodes"):
        assert _run(rows, normalisation) == pytest.approx(_reference(rows, normalisation), rel=1e-6, abs=1e-6)


@given(scores=st.lists(st.sampled_from([0.0, 0.1, 10.0]), min_size=1, max_size=9))
def test_pools_agree_when_every_trajectory_has_one_row(scores: list[float]) -> None:
    rows = [(0, k, score) for k, score in enumerate(scores)]
    assert _run(rows, "rows") == _run(rows, "episodes")


@given(rows=batches, shift=st.sampled_from([-5.0, 3.0]))
def test_advantages_of_a_group_ignore_other_groups_and_sum_to_zero_over_rows(
    rows: list[Row], shift: float
) -> None:
    group = rows[0][0]
    alone = _run([row for row in rows if row[0] == group], "rows")
    others_moved = [row if row[0] == group else (row[0], row[1], row[2] + shift) for row in rows]
    together = [a for a, row in zip(_run(others_moved, "rows"), rows, strict=True) if row[0] == group]
    assert together == pytest.approx(alone, abs=1e-9)
    assert sum(alone) == pytest.approx(0.0, abs=1e-6)
