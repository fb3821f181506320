"""What a purchase is worth: type, attributes, options and price of the bought product against the goal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rapidfuzz import fuzz, utils

from envrl.envs.webshop.normalize import normalize_color, normalize_named_option
from envrl.envs.webshop.nouns import NounTagger, built_in_nouns
from envrl.envs.webshop.records import Goal, Product
from envrl.errors import DataFault

_SIMILAR_ABOVE = 85
_LATIN_1_UPPER = dict.fromkeys(range(0x80, 0x100))
_NO_NOUNS_SCORE = 0.2
"""Title score of a goal whose name has no noun: low enough that category or query must decide."""


@dataclass(frozen=True, slots=True)
class TypeReward:
    """Whether the purchase is the kind of thing that was asked for.

    Attributes:
        r_type: 1.0, 0.5, 0.1 or 0.0; multiplies everything else.
        query_match: Both were found under the same search phrase.
        category_match: Their department paths have at least two different levels in common.
        title_score: Share of the goal name's nouns that the purchased title has, in [0, 1].
    """

    r_type: float
    query_match: bool
    category_match: bool
    title_score: float


@dataclass(frozen=True, slots=True)
class RewardDetails:
    """The reward and its parts; ``r_`` is a part in [0, 1], ``w_`` its share of the sum.

    Attributes:
        total: The reward in [0, 1]; exactly 1.0 is success.
        type: The type part.
        r_att: Share of the goal's attributes the product has.
        w_att: Weight of the attributes.
        r_option: Share of the goal's options that were chosen; None if the goal has none.
        w_option: Weight of the options; 0 if the goal has none.
        r_price: The price is at most the goal's limit.
        w_price: Weight of the price.
    """

    total: float
    type: TypeReward
    r_att: float
    w_att: float
    r_option: float | None
    w_option: float
    r_price: bool
    w_price: float

    def as_dict(self) -> dict[str, Any]:
        """The parts by their original names; those of options are left out if the goal has none."""
        parts: dict[str, Any] = {
            "r_type": self.type.r_type,
            "r_att": self.r_att,
            "w_att": self.w_att,
            "query_match": self.type.query_match,
            "category_match": self.type.category_match,
            "title_score": self.type.title_score,
            "r_price": self.r_price,
            "w_price": self.w_price,
        }
        if self.r_option is not None:
            parts |= {"r_option": self.r_option, "w_option": self.w_option}
        return parts


@lru_cache(maxsize=65_536)
def _comparable(text: str) -> str:
    return utils.default_process(text.translate(_LATIN_1_UPPER))


def similar(left: str, right: str) -> bool:
    """Whether two texts have nearly the same words, in whatever order; a subset of words counts as equal.

    Case and punctuation don't count. A text without letters or digits is similar to none.
    """
    return round(fuzz.token_set_ratio(_comparable(left), _comparable(right))) > _SIMILAR_ABOVE


def type_reward(product: Product, goal: Goal, nouns: NounTagger = built_in_nouns) -> TypeReward:
    """Compares search phrase, department path and title of purchase and goal.

    A title without any noun of the goal's name gives 0.0, below a tenth of them 0.1. Otherwise one match (of
    search phrase, path, or more than a fifth of the nouns) gives 1.0, none gives 0.5.

    Args:
        product: What was bought.
        goal: What was asked for.
        nouns: Noun tagger.
    """
    query_match = product.query == goal.query
    common = _levels(product.product_category) & _levels(goal.product_category)
    category_match = len(common) >= 2
    wanted = nouns(goal.name)
    found = set(nouns(product.title)) & set(wanted)
    score = len(found) / len(wanted) if wanted else _NO_NOUNS_SCORE
    if score == 0:
        value = 0.0
    elif score < 0.1:
        value = 0.1
    else:
        value = 1.0 if query_match or category_match or score > 0.2 else 0.5
    return TypeReward(value, query_match, category_match, score)


def _levels(path: str) -> set[str]:
    return {level.strip() for level in path.split("›")}


def count_attributes(product: Product, wanted: Iterable[str]) -> int:
    """Number of wanted attributes the product has.

    One counts if an attribute of the product is :func:`similar`, or if the very words stand in the
    lower-cased title, features or description. The wanted attribute itself is not lower-cased.

    Args:
        product: What was bought.
        wanted: Attributes of the goal.
    """
    return sum(
        any(similar(offered, attribute) for offered in product.attributes) or _mentions(product, attribute)
        for attribute in wanted
    )


def _mentions(product: Product, attribute: str) -> bool:
    texts = (product.title, " ".join(product.bullets), product.description)
    return any(attribute in text.lower() for text in texts)


def count_options(chosen: Iterable[str], wanted: Iterable[str] | Mapping[str, str]) -> int:
    """Number of wanted options that some chosen value meets; a chosen value may meet several.

    Args:
        chosen: Chosen option values; their groups don't count.
        wanted: Values (human goals), or group to value (synthetic goals): there the group's name is part
            of what is compared, unless the value is exactly a colour.
    """
    values = [normalize_color(value) for value in chosen]
    if isinstance(wanted, Mapping):
        targets = [normalize_named_option(name, value) for name, value in wanted.items()]
    else:
        targets = [normalize_color(value) for value in wanted]
    return sum(any(similar(value, target) for value in values) for target in targets)


def purchase_reward(
    product: Product,
    goal: Goal,
    price: float,
    options: Mapping[str, str],
    nouns: NounTagger = built_in_nouns,
) -> RewardDetails:
    """Reward of buying a product, with its parts.

    The total is the type reward times the met share of attributes, options and price limit together:
    ``r_type * (attributes met + options met + [price <= limit]) / (attributes + options + 1)``.

    Args:
        product: What was bought.
        goal: What was asked for.
        price: Price of the product in dollars (:attr:`Catalog.prices`).
        options: Option group to chosen value.
        nouns: Noun tagger of the type reward.

    Raises:
        DataFault: The goal has no attributes.
    """
    if not goal.attributes:
        raise DataFault(f"the goal for product {goal.asin} has no attributes: give it one or leave it out")
    kind = type_reward(product, goal, nouns)
    attributes_met = count_attributes(product, goal.attributes)
    options_met = count_options(options.values(), goal.options)
    price_met = price <= goal.price_upper
    parts = len(goal.attributes) + len(goal.options) + 1
    return RewardDetails(
        total=(attributes_met + options_met + price_met) / parts * kind.r_type,
        type=kind,
        r_att=attributes_met / len(goal.attributes),
        w_att=len(goal.attributes) / parts,
        r_option=options_met / len(goal.options) if goal.options else None,
        w_option=len(goal.options) / parts,
        r_price=price_met,
        w_price=1 / parts,
    )
