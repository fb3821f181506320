"""Goals known by their content: identifiers, test and training goals that share nothing, unreachable goals.

A goal is unreachable if buying the product it was made from, with whatever options, is worth less than 1:
the option reward tidies chosen and wanted values differently, so that it may not find a value equal to
itself, and an attribute file may ask for what a product's own attributes and texts don't mention.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from envrl.envs.webshop.goals import wording
from envrl.envs.webshop.nouns import NounTagger, built_in_nouns
from envrl.envs.webshop.records import Catalog, Goal, Product
from envrl.envs.webshop.reward import RewardDetails, count_options, purchase_reward
from envrl.errors import ConfigFault, DataFault

TEST_GOALS = 500


def goal_id(goal: Goal) -> str:
    """Hash of what is asked for, 32 hexadecimal digits: equal for equal goals in whatever place or list.

    The weight doesn't count: it says how often the goal is drawn among others, not what it asks for.
    """
    by_group = isinstance(goal.options, Mapping)
    options = sorted(goal.options.items()) if isinstance(goal.options, Mapping) else goal.options
    content = [
        *(goal.asin, goal.category, goal.query, goal.name, goal.product_category, goal.instruction_text),
        *(goal.attributes, float(goal.price_upper), by_group, options),
    ]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _wish(goal: Goal) -> tuple[str, ...]:
    """Product and options, in whatever order they are asked for."""
    pairs = goal.options.items() if isinstance(goal.options, Mapping) else (("", v) for v in goal.options)
    return (goal.asin, *(f"{group}\0{value}" for group, value in sorted(pairs)))


@dataclass(frozen=True, slots=True)
class GoalPanels:
    """Test goals and training goals that have neither content, wording nor wish in common.

    They may have the product in common: in the 1,000 official ones most goals differ from another in
    the options only.

    Attributes:
        test: The panel, in the order of the goals it was taken from, each goal once.
        train: The other goals, in the same order, each once.
        excluded: How many more there were whose instruction (but for the price limit), or whose product
            and options, a test goal has too.
        repeated: How many were equal to an earlier goal.
    """

    test: tuple[Goal, ...]
    train: tuple[Goal, ...]
    excluded: int
    repeated: int


def make_panels(goals: Sequence[Goal], test_goals: int = TEST_GOALS) -> GoalPanels:
    """Takes the first goals as the test panel, and of the rest what a test goal gives nothing away of.

    Args:
        goals: In a fixed order, e.g. :func:`~envrl.envs.webshop.ordering.order_goals`.
        test_goals: Size of the panel.

    Raises:
        ConfigFault: ``test_goals`` is below 1, or there are too few goals to leave any for training.
    """
    if test_goals < 1:
        raise ConfigFault(f"a test panel of {test_goals} goals was asked for: ask for at least 1")
    by_id: dict[str, Goal] = {}
    for goal in goals:
        by_id.setdefault(goal_id(goal), goal)
    unique = list(by_id.values())
    test, rest = unique[:test_goals], unique[test_goals:]
    wordings, wishes = set(map(wording, test)), set(map(_wish, test))
    train = [goal for goal in rest if wording(goal) not in wordings and _wish(goal) not in wishes]
    if len(test) < test_goals or not train:
        raise ConfigFault(
            f"{len(unique)} different goals give no panel of {test_goals} and {len(train)} training goals: "
            "take more products or a smaller panel"
        )
    return GoalPanels(tuple(test), tuple(train), len(rest) - len(train), len(goals) - len(unique))


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A goal that its own product can't meet, and the purchase that comes nearest."""

    goal: Goal
    options: Mapping[str, str]
    best: RewardDetails


@dataclass(frozen=True, slots=True)
class ReachReport:
    """Which of a list of goals can't be reached.

    Attributes:
        goals: How many were looked at.
        unreachable: Those that can't, in the same order.
    """

    goals: int
    unreachable: tuple[Unreachable, ...]

    @property
    def shortfalls(self) -> dict[str, int]:
        """Part of the reward that falls short to the number of goals; a goal may count under several."""
        counts = Counter(part for item in self.unreachable for part in _short_parts(item.best))
        return dict(sorted(counts.items()))

    def summary(self) -> str:
        """One line to print or to log."""
        share = 100 * len(self.unreachable) / self.goals if self.goals else 0.0
        parts = ", ".join(f"{part}: {count}" for part, count in self.shortfalls.items())
        line = f"{len(self.unreachable)} of {self.goals} goals ({share:.1f} %) can't be bought at reward 1"
        return f"{line} ({parts})" if parts else line


def _short_parts(details: RewardDetails) -> list[str]:
    parts = {
        "type": details.type.r_type,
        "attributes": details.r_att,
        "options": 1.0 if details.r_option is None else details.r_option,
        "price": float(details.r_price),
    }
    return [part for part, value in parts.items() if value < 1]


def _wanted(goal: Goal) -> list[Mapping[str, str] | tuple[str, ...]]:
    """The wanted options one by one, in the form the option reward takes."""
    if isinstance(goal.options, Mapping):
        return [{group: value} for group, value in goal.options.items()]
    return [(value,) for value in goal.options]


def best_options(product: Product, goal: Goal) -> dict[str, str]:
    """A choice of one value per option group, or none, that meets as many of a goal's options as can be.

    Groups that don't help are left out. Of several best choices the earliest values of the earliest
    groups are taken.
    """
    wanted = _wanted(goal)
    # Every set of wanted options that can be met together, with the choice that meets it: at most
    # 2 ** wanted sets, however many values a product has.
    choices: dict[frozenset[int], dict[str, str]] = {frozenset(): {}}
    for group, values in product.options.items():
        for value in values:
            meets = frozenset(i for i, option in enumerate(wanted) if count_options((value,), option))
            for met, choice in list(choices.items()):
                if group not in choice:
                    choices.setdefault(met | meets, {**choice, group: value})
    return choices[max(choices, key=len)]


def best_purchase(product: Product, goal: Goal, price: float, nouns: NounTagger) -> Unreachable:
    """The purchase of a product that is worth most: the asked options if they give 1, else the best ones.

    Args:
        product: The product to buy.
        goal: What is asked for.
        price: The product's price in dollars.
        nouns: Noun tagger of the type reward.
    """
    options = dict(goal.options) if isinstance(goal.options, Mapping) else best_options(product, goal)
    details = purchase_reward(product, goal, price, options, nouns)
    if details.total != 1.0 and isinstance(goal.options, Mapping):
        options = best_options(product, goal)
        details = purchase_reward(product, goal, price, options, nouns)
    return Unreachable(goal, options, details)


def report_unreachable(
    goals: Iterable[Goal], catalog: Catalog, nouns: NounTagger = built_in_nouns
) -> ReachReport:
    """Finds the goals whose own product can't be bought at reward 1.

    Args:
        goals: Goals made from the catalogue.
        catalog: Products, and the prices the goals were made with.
        nouns: Noun tagger of the type reward.

    Raises:
        DataFault: A goal's product is not in the catalogue.
    """
    count = 0
    unreachable: list[Unreachable] = []
    for goal in goals:
        count += 1
        if goal.asin not in catalog.by_asin:
            raise DataFault(f"a goal's product {goal.asin} is not in the catalogue: load the one it is from")
        product, price = catalog.by_asin[goal.asin], catalog.prices[goal.asin]
        bought = best_purchase(product, goal, price, nouns)
        if bought.best.total != 1.0:
            unreachable.append(bought)
    return ReachReport(count, tuple(unreachable))
