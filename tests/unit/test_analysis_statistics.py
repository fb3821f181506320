"""Intervals and comparisons against hand arithmetic, exact distributions and a plain-loop bootstrap."""

import itertools

import numpy as np
import pytest
from scipy import stats

from envrl.analysis.comparison import compare, holm, probability_of_improvement
from envrl.analysis.statistics import (
    area_weights,
    bootstrap_interval,
    family_rates,
    interquartile_mean,
    iterations_to_baseline,
    macro_average,
    success_interval,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def block(seeds: int, games: int, won: int) -> np.ndarray:
    """Every seed wins the same ``won`` games: all spread lies between games."""
    return np.tile((np.arange(games) < won).astype(float), (seeds, 1))


def test_interval_over_games_is_the_binomial_one() -> None:
    # The mean of 40 draws of 12 wins in 40 is Binomial(40, 0.3) / 40. Its 2.5 % and 97.5 % points:
    assert (stats.binom.ppf(0.025, 40, 0.3), stats.binom.ppf(0.975, 40, 0.3)) == (7.0, 18.0)
    estimate = bootstrap_interval(block(1, 40, 12), rng(), resamples=20000)
    assert (estimate.value, estimate.low, estimate.high) == (0.3, 7 / 40, 18 / 40)


def test_seeds_that_agree_add_no_certainty_about_games() -> None:
    one = bootstrap_interval(block(1, 40, 12), rng(), resamples=20000)
    ten = bootstrap_interval(block(10, 40, 12), rng(), resamples=20000)
    assert ten == one


def test_spread_between_seeds_widens_the_interval() -> None:
    # Half the seeds win everything and half nothing: games tell nothing, seeds everything.
    # The mean of 8 drawn seeds is Binomial(8, 0.5) / 8; 2.5 % and 97.5 % points are 1 and 7.
    won = np.repeat([0.0, 1.0], 4)[:, None] * np.ones((8, 50))
    estimate = bootstrap_interval(won, rng(), resamples=20000)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.125, 0.875)


def test_two_levels_agree_with_a_plain_loop() -> None:
    won = (rng(1).random((3, 12)) < np.linspace(0.1, 0.9, 12)).astype(float)
    loop = rng(2)
    means = [won[loop.integers(3, size=3)][:, loop.integers(12, size=12)].mean() for _ in range(20000)]
    estimate = bootstrap_interval(won, rng(3), resamples=20000)
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=0.012)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=0.012)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = rng(4)
    covered = 0
    for number in range(300):
        estimate = success_interval((draw.random((1, 100)) < 0.4).astype(float), rng(number), resamples=400)
        covered += estimate.low <= 0.4 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.99


def test_same_generator_gives_the_same_interval() -> None:
    won = (rng(5).random((2, 30)) < 0.5).astype(float)
    assert success_interval(won, rng(6)) == success_interval(won, rng(6))
    assert success_interval(won, rng(6)) != success_interval(won, rng(7))


def test_all_lost_and_all_won_use_the_exact_interval_over_games() -> None:
    # 10 games: 1 - 0.025 ** (1 / 10) = 0.3085; one game: 0.975 by the same rule.
    lost, won = success_interval(np.zeros((3, 10)), rng()), success_interval(np.ones((3, 10)), rng())
    assert (lost.value, lost.low) == (0.0, 0.0)
    assert lost.high == pytest.approx(0.30850, abs=1e-5)
    assert (won.value, won.high) == (1.0, 1.0)
    assert won.low == pytest.approx(0.69150, abs=1e-5)
    single = success_interval(np.zeros((1, 1)), rng())
    assert (single.value, single.low, single.high) == (0.0, 0.0, pytest.approx(0.975))


def test_one_game_leaves_only_the_seeds() -> None:
    estimate = bootstrap_interval(np.array([[0.0]] * 4 + [[1.0]] * 4), rng(), resamples=20000)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.125, 0.875)


def test_equal_differences_have_width_zero() -> None:
    estimate = bootstrap_interval(np.zeros((2, 10)), rng())
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_empty_or_flat_outcomes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"non-empty \[seeds games\] matrix"):
        bootstrap_interval(np.zeros(shape), rng())


def test_interquartile_mean_cuts_a_quarter_at_each_end() -> None:
    assert interquartile_mean([0.9, 0.1, 0.3, 0.5]) == pytest.approx(0.4)
    assert interquartile_mean([0.0, 0.0, 0.2, 0.3, 0.4, 0.5, 1.0, 1.0]) == pytest.approx(0.35)
    assert interquartile_mean([0.2, 0.4, 0.9]) == pytest.approx(0.5)
    assert interquartile_mean([0.7]) == pytest.approx(0.7)


def test_families_and_macro_average() -> None:
    won = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    families = ["heat", "heat", "heat", "cool"]
    assert family_rates(won, families) == {"cool": 1.0, "heat": 0.5}
    assert macro_average(won, families) == 0.75
    assert won.mean() == 0.625


def test_sign_flip_p_value_by_counting_all_flips() -> None:
    # Differences per game 1, 1, 1, 1, 1, -1 (and four equal games): the sum is 4. Of 2^6 sign patterns
    # 7 reach a sum of at least 4 (one with six plus, six with five plus), so p = 2 * 7 / 64.
    arm = np.array([[1, 1, 1, 1, 1, 0, 1, 1, 0, 0]], dtype=float)
    baseline = np.array([[0, 0, 0, 0, 0, 1, 1, 1, 0, 0]], dtype=float)
    comparison = compare(arm, baseline, [0], rng())
    assert comparison.p_value == pytest.approx(14 / 64)
    assert comparison.difference.value == pytest.approx(0.4)
    reverse = compare(baseline, arm, [0], rng())
    assert reverse.p_value == pytest.approx(14 / 64)
    assert reverse.difference.value == pytest.approx(-0.4)


def test_p_value_works_on_differences_averaged_over_seeds() -> None:
    # Averages over two seeds: 1, 0.5, 0.5, 0, sum 2. Of 8 sign patterns of the moved games only
    # +++ reaches 2, so p = 2 * 1 / 8. By hand, over all patterns:
    sums = [a + 0.5 * b + 0.5 * c for a, b, c in itertools.product((1, -1), repeat=3)]
    assert sum(total >= 2.0 for total in sums) == 1
    arm = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    comparison = compare(arm, np.zeros((2, 4)), [3, 7], rng())
    assert comparison.p_value == pytest.approx(0.25)
    assert comparison.seeds == (3, 7)
    assert comparison.seed_differences == (0.5, 0.5)


def test_equal_arms_are_not_different() -> None:
    won = (rng(8).random((3, 20)) < 0.5).astype(float)
    comparison = compare(won, won, [0, 1, 2], rng())
    assert comparison.p_value == 1.0
    assert (comparison.difference.low, comparison.difference.high) == (0.0, 0.0)


def test_one_differing_game_shows_nothing() -> None:
    comparison = compare(np.array([[1.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 0.0]]), [0], rng())
    assert comparison.p_value == 1.0
    assert compare(np.array([[1.0]]), np.array([[0.0]]), [0], rng()).p_value == 1.0


def test_many_games_use_drawn_flips_near_the_exact_test() -> None:
    # 30 games moved, 22 up and 8 down: the exact two-sided sign test gives p = 0.01612.
    arm = np.array([[1.0] * 22 + [0.0] * 8])
    comparison = compare(arm, 1.0 - arm, [0], rng(9))
    assert comparison.p_value == pytest.approx(0.01612, abs=0.004)


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="paired arms need equal"):
        compare(np.zeros((2, 4)), np.zeros((2, 5)), [0, 1], rng())
    with pytest.raises(ValueError, match="with 1 seeds"):
        compare(np.zeros((2, 4)), np.zeros((2, 4)), [0], rng())


def test_iterations_to_baseline() -> None:
    assert iterations_to_baseline([0, 5, 10, 15], [0.2, 0.3, 0.5, 0.45], 0.45) == 10
    assert iterations_to_baseline([0, 5], [0.2, 0.3], 0.45) is None
    assert iterations_to_baseline([0, 5], [0.6, 0.3], 0.45) == 0
    assert iterations_to_baseline([0, 5], [0.1 + 0.2, 0.6], 0.3) == 0
    assert iterations_to_baseline([0, 5], [0.3 - 1e-15, 0.6], 0.3) == 0


def test_probability_of_improvement_counts_pairs_of_seeds() -> None:
    found = probability_of_improvement(np.array([0.5, 0.7]), np.array([0.4, 0.6, 0.7]), rng())
    # 0.5 beats 0.4; 0.7 beats 0.4 and 0.6 and ties with 0.7.
    assert found.value == pytest.approx((1 + 2 + 0.5) / 6)
    assert 0.0 <= found.low < found.value < found.high <= 1.0
    equal = probability_of_improvement(np.array([0.5]), np.array([0.5]), rng())
    assert (equal.value, equal.low, equal.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="both arms need a seed, got 0 and 1"):
        probability_of_improvement(np.array([]), np.array([0.5]), rng())


def test_probability_of_improvement_is_mann_whitneys_statistic() -> None:
    arm, baseline = rng(1).random(9), rng(2).random(7)
    statistic = stats.mannwhitneyu(arm, baseline).statistic
    assert probability_of_improvement(arm, baseline, rng()).value == pytest.approx(statistic / 63)


def test_area_weights_are_the_trapezoidal_rule() -> None:
    assert area_weights([0, 10, 30]).tolist() == pytest.approx([5 / 30, 15 / 30, 10 / 30])
    assert area_weights([7]).tolist() == [1.0]
    curve = np.array([0.1, 0.5, 0.4])
    assert area_weights([0, 10, 30]) @ curve == pytest.approx(np.trapezoid(curve, [0, 10, 30]) / 30)


def test_correction_for_the_number_of_comparisons() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04; none below one before it.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
