"""The order of goals, how one is drawn, and the official splits.

The original shuffles its goals with a fixed seed, after it drew prices with a generator that nobody
seeded: order is fixed there, price limits are not. With a private generator and the same calls in the
same order both are functions of the seed. :func:`paper_goals` reproduces what the training code of the
paper does instead: every worker draws and shuffles with a seed of its own, so that an index means
another goal in every group.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from envrl.envs.webshop.catalog import LoadedCatalog, redraw_prices
from envrl.envs.webshop.goals import HumanInstruction, human_goals, synthetic_goals
from envrl.envs.webshop.records import Catalog, Goal
from envrl.errors import ConfigFault

SHUFFLE_SEED = 233
"""Seed of the original's goal order."""

SPLITS: Mapping[str, slice] = {"test": slice(0, 500), "eval": slice(500, 1500), "train": slice(1500, None)}
"""Official splits as positions in the fixed order of the full catalogue's human goals."""

PAPER_TEST_GOALS = 500
"""Positions the paper's code validates on; it trains on all later ones."""
_PAPER_VALIDATION_SEED = 1000


@dataclass(frozen=True, slots=True)
class OrderedGoals:
    """Goals in playing order.

    Attributes:
        goals: In order; an index means a place here.
        cumulative_weights: 0 and the running sums of the goals' weights, one entry more than goals.
    """

    goals: tuple[Goal, ...]
    cumulative_weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PricedGoals:
    """A worker's own view of the shop: the catalogue with its prices, and its goals in its order."""

    catalog: Catalog
    ordered: OrderedGoals


def random_index(cumulative_weights: Sequence[float], rng: random.Random) -> int:
    """Draws the index of a goal by weight, one uniform draw, as the original does it.

    The original looks the draw up one place too far: goal 0 is never drawn unless it is the only one,
    goal i comes with the weight of goal i - 1, and the last goal with the last two weights.
    """
    place = bisect_right(cumulative_weights, rng.uniform(0, cumulative_weights[-1]))
    return min(place, len(cumulative_weights) - 2)


def _cumulative(goals: Sequence[Goal]) -> tuple[float, ...]:
    return tuple(accumulate((goal.weight for goal in goals), initial=0.0))


def _drawn_without_repeats(goals: list[Goal], limit: int, rng: random.Random) -> list[Goal]:
    cumulative = _cumulative(goals)
    drawn: dict[int, None] = {}
    while len(drawn) < limit:
        drawn.setdefault(random_index(cumulative, rng))
    return [goals[index] for index in drawn]


def order_goals(
    goals: Sequence[Goal],
    rng: random.Random,
    *,
    shuffle_seed: int = SHUFFLE_SEED,
    keep: Callable[[int, Goal], bool] | None = None,
    limit: int | None = None,
) -> OrderedGoals:
    """Shuffles goals, filters them, and takes a weighted draw of them, in this order.

    Args:
        goals: As :func:`~envrl.envs.webshop.goals.synthetic_goals` or ``human_goals`` give them.
        rng: The generator that drew the prices; it is seeded again with ``shuffle_seed``.
        shuffle_seed: Seed of the order.
        keep: Which goals stay, by place in the shuffled order and goal; None keeps all.
        limit: Number of goals to draw by weight, without repeats; None, or a number not below the
            number of goals, keeps all.

    Raises:
        ConfigFault: ``limit`` is below 1, or ``keep`` keeps nothing.
    """
    if limit is not None and limit < 1:
        raise ConfigFault(f"a limit of {limit} goals leaves none: give at least 1, or None for all")
    shuffled = list(goals)
    rng.seed(shuffle_seed)
    rng.shuffle(shuffled)
    if keep is not None:
        shuffled = [goal for place, goal in enumerate(shuffled) if keep(place, goal)]
    if not shuffled:
        raise ConfigFault(f"no goal is left of {len(goals)}: the filter keeps none")
    if limit is not None and limit < len(shuffled):
        shuffled = _drawn_without_repeats(shuffled, limit, rng)
    return OrderedGoals(tuple(shuffled), _cumulative(shuffled))


def split_goals(goals: Sequence[Goal], split: str) -> tuple[Goal, ...]:
    """One official split of goals in the fixed order.

    Raises:
        ConfigFault: The split is unknown, or there are too few goals for it.
    """
    if split not in SPLITS:
        raise ConfigFault(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    chosen = tuple(goals[SPLITS[split]])
    if not chosen:
        raise ConfigFault(
            f"split {split!r} of {len(goals)} goals is empty: take the full catalogue, or panels by content"
        )
    return chosen


def paper_goals(
    loaded: LoadedCatalog,
    rng: random.Random,
    seed: int,
    *,
    human: Mapping[str, tuple[HumanInstruction, ...]] | None = None,
) -> PricedGoals:
    """Prices, goals and order as a worker of the paper's training code has them.

    Args:
        loaded: Products; their prices are drawn anew and ``loaded`` stays as it is.
        rng: Left in the state from which the worker goes on to draw sessions and goals.
        seed: The worker's seed (:meth:`PaperWorkers.seeds`).
        human: Human instructions; None makes synthetic goals, which is what the paper trains on.
    """
    rng.seed(seed)
    catalog = redraw_prices(loaded.catalog, rng)
    if human is None:
        goals = synthetic_goals(replace(loaded, catalog=catalog), rng)
    else:
        goals = human_goals(catalog, human, rng).goals
    return PricedGoals(catalog, order_goals(goals, rng, shuffle_seed=seed))


@dataclass(frozen=True, slots=True)
class PaperWorkers:
    """The workers of the paper's training code: seeds, and which goal indices they are reset with.

    Attributes:
        seed: The run's environment seed.
        groups: Groups of workers that play the same goal.
        group_size: Workers of a group; validation has 1.
        validation: The validation workers, on the first 500 indices; else training, on all later ones.
    """

    seed: int
    groups: int
    group_size: int
    validation: bool = False

    def __post_init__(self) -> None:
        """Refuses counts below 1.

        Raises:
            ConfigFault: ``groups`` or ``group_size`` is below 1.
        """
        if self.groups < 1 or self.group_size < 1:
            raise ConfigFault(f"{self.groups} groups of {self.group_size} workers: both must be at least 1")

    @property
    def base_seed(self) -> int:
        """Seed of the first group."""
        return self.seed + (_PAPER_VALIDATION_SEED if self.validation else 0)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each worker; a group shares one, so its members have the same goals in the same order."""
        return tuple(self.base_seed + group for group in range(self.groups) for _ in range(self.group_size))

    def draws(self, goal_count: int, resets: int) -> tuple[tuple[int, ...], ...]:
        """Goal index of each worker for each of the first ``resets`` resets.

        Raises:
            ConfigFault: There are fewer goals to draw from than groups.
        """
        low, high = PAPER_TEST_GOALS, goal_count
        if self.validation:
            low, high = 0, min(PAPER_TEST_GOALS, goal_count)
        if high - low < self.groups:
            raise ConfigFault(f"{max(high - low, 0)} goals for {self.groups} groups: ask for fewer groups")
        # The paper's code draws with numpy's legacy generator; another one would give other goals.
        rng = np.random.RandomState(self.base_seed)
        rounds = (rng.choice(np.arange(low, high), size=self.groups, replace=False) for _ in range(resets))
        return tuple(tuple(int(i) for i in drawn for _ in range(self.group_size)) for drawn in rounds)
