"""Success rates with intervals, over seeds and games; :mod:`envrl.analysis.comparison` compares two arms.

Every function works on a matrix ``won: [seeds games]`` of outcomes. All seeds of an arm play the same
panel, so seeds and games are crossed factors: a resample draws seeds with replacement and, apart from
that, games with replacement, and takes the mean of the drawn rows and columns (the pigeonhole
bootstrap of Owen 2007, arXiv 0712.1111).

What the intervals don't know: with few seeds the spread between seeds is underestimated, by the factor
(seeds − 1) / seeds in variance, so two seeds give too narrow an interval. With one seed the interval
speaks of the games alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Outcomes = NDArray[np.float64]
"""``[seeds games]``, 1.0 for a game won, 0.0 for one not won."""

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 500
"""Resamples that are held in memory at the same time."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


def success_interval(
    won: Outcomes, rng: np.random.Generator, resamples: int = RESAMPLES, level: float = LEVEL
) -> Estimate:
    """Success rate of a ``[seeds games]`` matrix of zeros and ones with its interval.

    As :func:`bootstrap_interval`, except where every entry is equal, so that there is no spread to draw
    from and the bootstrap would claim certainty: then it is the exact (Clopper-Pearson) interval for as
    many trials as there are games, because seeds of one game are no independent trials.
    """
    estimate = bootstrap_interval(won, rng, resamples, level)
    if not np.all(won == won.flat[0]):
        return estimate
    games = won.shape[1]
    exact = stats.binomtest(round(estimate.value * games), games).proportion_ci(level, method="exact")
    return Estimate(estimate.value, float(exact.low), float(exact.high))


def bootstrap_interval(
    values: Outcomes, rng: np.random.Generator, resamples: int = RESAMPLES, level: float = LEVEL
) -> Estimate:
    """Mean of a ``[seeds games]`` matrix with its two-level percentile interval.

    With one row only columns are drawn, with one column only rows; equal entries give width 0.

    Args:
        values: Shape ``[seeds games]``, neither axis empty.
        rng: Source of the resamples.
        resamples: Number of resamples.
        level: Share of resamples inside the interval.

    Raises:
        ValueError: The matrix is empty or not two-dimensional.
    """
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"outcomes must be a non-empty [seeds games] matrix, got shape {values.shape}")
    means = np.concatenate(
        [
            _resampled_means(values, rng, min(AT_ONCE, resamples - done))
            for done in range(0, resamples, AT_ONCE)
        ]
    )
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Estimate(float(values.mean()), float(low), float(high))


def interquartile_mean(seed_rates: Sequence[float]) -> float:
    """Mean of the middle half of the seeds' success rates: the lowest and highest quarter are cut.

    With fewer than four seeds nothing is cut and it is the mean (``scipy.stats.trim_mean``).
    """
    return float(stats.trim_mean(np.asarray(seed_rates, dtype=np.float64), 0.25))


def family_rates(values: Outcomes, families: Sequence[str]) -> dict[str, float]:
    """Success rate of each task type, over all seeds, in alphabetical order.

    Args:
        values: ``[seeds games]``.
        families: Task type of each game.
    """
    names = np.asarray(families)
    return {str(name): float(values[:, names == name].mean()) for name in np.unique(names)}


def macro_average(values: Outcomes, families: Sequence[str]) -> float:
    """Mean of the task types' success rates: every type counts alike, however many games it has."""
    return float(np.mean(list(family_rates(values, families).values())))


def area_weights(iterations: Sequence[int]) -> NDArray[np.float64]:
    """Weights of the evaluations in the area under the curve, which is divided by the length: they sum to 1.

    Trapezoidal rule; one evaluation has all the weight.

    Args:
        iterations: Rising iterations at which was evaluated.
    """
    places = np.asarray(iterations, dtype=np.float64)
    if places.size == 1:
        return np.ones(1)
    steps = np.diff(places)
    weights = np.zeros(places.size)
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    weights /= steps.sum()
    return weights


def iterations_to_baseline(
    iterations: Sequence[int], curve: Sequence[float], baseline_final: float
) -> int | None:
    """First evaluated iteration at which a mean curve reaches the baseline's final success.

    Returns:
        The iteration, or ``None`` if the curve never gets there.
    """
    for iteration, value in zip(iterations, curve, strict=True):
        # Means of the same outcomes in another order may differ in the last bit.
        if value >= baseline_final - 1e-12:
            return iteration
    return None


def _resampled_means(values: Outcomes, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Means of ``count`` resamples, from how often each seed and each game was drawn."""
    seeds, games = values.shape
    seed_draws = rng.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=count)
    game_draws = rng.multinomial(games, np.full(games, 1.0 / games), size=count)
    sums = np.einsum("bs,sg,bg->b", seed_draws, values, game_draws, optimize=True)
    return np.asarray(sums / (seeds * games), dtype=np.float64)
