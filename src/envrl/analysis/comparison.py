"""Two arms on the same games and seeds: difference, interval, p and its correction for many arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envrl.analysis.statistics import (
    AT_ONCE,
    LEVEL,
    RESAMPLES,
    Estimate,
    Outcomes,
    bootstrap_interval,
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One arm against another on the same games and seeds.

    Attributes:
        difference: Success rate of the arm minus the baseline's, with the two-level interval.
        p_value: Two-sided, from sign flips of the per-game differences: games are random, the seeds
            at hand are taken as fixed.
        seeds: Seeds that both arms have.
        seed_differences: Difference within each of these seeds, in their order.
        improvement: Probability that a run of the arm ends above a run of the baseline
            (:func:`probability_of_improvement`), with an interval over seeds.
        p_corrected: The p-value among those of all comparisons made together (:func:`holm`); None if it
            stands alone.
    """

    difference: Estimate
    p_value: float
    seeds: tuple[int, ...]
    seed_differences: tuple[float, ...]
    improvement: Estimate
    p_corrected: float | None = None


def compare(
    arm: Outcomes,
    baseline: Outcomes,
    seeds: Sequence[int],
    rng: np.random.Generator,
    resamples: int = 9999,
) -> Comparison:
    """Compares two arms on the same games and the same seeds.

    Args:
        arm: ``[seeds games]``, rows in the order of ``seeds``.
        baseline: Same shape, same order of seeds and games.
        seeds: The seeds both have.
        rng: Source of resamples and sign flips.
        resamples: Sign flips drawn; all of them are tried where that is fewer.

    Raises:
        ValueError: The shapes differ or are empty.
    """
    if arm.shape != baseline.shape or arm.shape[0] != len(seeds):
        raise ValueError(
            f"paired arms need equal [seeds games] shapes with {len(seeds)} seeds, "
            f"got {arm.shape} and {baseline.shape}"
        )
    difference = arm - baseline
    return Comparison(
        difference=bootstrap_interval(difference, rng),
        p_value=_sign_flip_p_value(difference.mean(axis=0), rng, resamples),
        seeds=tuple(seeds),
        seed_differences=tuple(float(value) for value in difference.mean(axis=1)),
        improvement=probability_of_improvement(arm.mean(axis=1), baseline.mean(axis=1), rng),
    )


def difference_interval(
    arm: Outcomes,
    baseline: Outcomes,
    rng: np.random.Generator,
    *,
    same_games: bool,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Difference of two arms that need not have a seed in common, with its two-level percentile interval.

    The seeds of each arm are drawn with replacement, apart from each other; games are drawn once for both
    where the arms played the same ones, apart from each other where they did not.

    Args:
        arm: ``[seeds games]``.
        baseline: ``[seeds games]``; the same games in the same order if ``same_games``.
        rng: Source of the resamples.
        same_games: Both matrices have the same columns.
        resamples: Number of resamples.
        level: Share of resamples inside the interval.

    Raises:
        ValueError: A matrix is empty, or ``same_games`` and the numbers of games differ.
    """
    if arm.size == 0 or baseline.size == 0 or (same_games and arm.shape[1] != baseline.shape[1]):
        raise ValueError(f"these shapes can't be compared: {arm.shape} and {baseline.shape}")

    def drawn(count: int) -> NDArray[np.int64]:
        return rng.multinomial(count, np.full(count, 1.0 / count), size=resamples)

    def means(values: Outcomes, games: NDArray[np.int64]) -> NDArray[np.float64]:
        sums = np.einsum("bs,sg,bg->b", drawn(values.shape[0]), values, games, optimize=True)
        return np.asarray(sums / values.size, dtype=np.float64)

    games = drawn(arm.shape[1])
    others = games if same_games else drawn(baseline.shape[1])
    differences = means(arm, games) - means(baseline, others)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(differences, [tail, 1.0 - tail])
    return Estimate(float(arm.mean() - baseline.mean()), float(low), float(high))


def per_game_p_value(
    arm: Outcomes, baseline: Outcomes, rng: np.random.Generator, resamples: int = 9999
) -> float:
    """Two-sided p of no difference on the same games, whatever the seeds: sign flips of per-game differences.

    Args:
        arm: ``[seeds games]``.
        baseline: ``[seeds games]``, the same games in the same order; other seeds are allowed.
        rng: Source of the sign flips.
        resamples: Sign flips drawn; all of them are tried where that is fewer.
    """
    return _sign_flip_p_value(arm.mean(axis=0) - baseline.mean(axis=0), rng, resamples)


def probability_of_improvement(
    arm: NDArray[np.float64],
    baseline: NDArray[np.float64],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Share of pairs of runs, one of each arm, in which the arm's is the better; a tie counts half.

    Source: Agarwal et al. 2021 (arXiv 2108.13264), section 4.3, for one task. The interval draws the seeds
    of each arm with replacement, apart from each other.

    Args:
        arm: Success rate of each seed.
        baseline: The same; the seeds need not be as many, nor the same.
        rng: Source of the resamples.
        resamples: Number of resamples.
        level: Share of resamples inside the interval.

    Raises:
        ValueError: One of them has no seed.
    """
    if arm.size == 0 or baseline.size == 0:
        raise ValueError(f"both arms need a seed, got {arm.size} and {baseline.size}")
    above = (arm[:, None] > baseline[None, :]) + 0.5 * (arm[:, None] == baseline[None, :])
    drawn = rng.integers(arm.size, size=(resamples, arm.size))
    others = rng.integers(baseline.size, size=(resamples, baseline.size))
    shares = above[drawn[:, :, None], others[:, None, :]].mean(axis=(1, 2))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(shares, [tail, 1.0 - tail])
    return Estimate(float(above.mean()), float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the chance of any of them this small if nothing differs.

    Step-down method of Holm (1979, "A simple sequentially rejective multiple test procedure"): the k-th
    smallest of n is multiplied by n − k + 1, and none may become smaller than one before it.
    """
    corrected = [1.0] * len(p_values)
    most = 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        most = max(most, min(1.0, (len(p_values) - done) * p_values[index]))
        corrected[index] = most
    return corrected


def _sign_flip_p_value(per_game: NDArray[np.float64], rng: np.random.Generator, resamples: int) -> float:
    """Two-sided permutation test of mean zero: each game's difference may change its sign.

    Games without a difference never change the statistic, so they are left out. With one game left,
    or none, the p-value is 1: one difference is as likely up as down.
    """
    moved = per_game[per_game != 0.0]
    if moved.size < 2:
        return 1.0
    test = stats.permutation_test(
        (moved, np.zeros_like(moved)),
        lambda first, second, axis: np.sum(first - second, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=AT_ONCE,
        rng=rng,
    )
    return float(min(1.0, test.pvalue))
