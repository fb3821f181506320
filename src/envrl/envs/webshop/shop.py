"""The shop that all episodes of a process share: catalogue, goals, search, and texts worked out once."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import SupportsIndex

from envrl.envs.webshop.goal_sets import goal_id
from envrl.envs.webshop.index import SearchIndex
from envrl.envs.webshop.nouns import NounTagger, built_in_nouns
from envrl.envs.webshop.ordering import random_index
from envrl.envs.webshop.pages import (
    RESULTS_PER_PAGE,
    Available,
    ItemPage,
    Page,
    ResultsPage,
    StartPage,
    SubPage,
    body_nodes,
    item_clickables,
    listing_nodes,
    results_clickables,
    results_head,
)
from envrl.envs.webshop.records import Catalog, Goal
from envrl.envs.webshop.render import segments
from envrl.envs.webshop.reward import RewardDetails, purchase_reward
from envrl.envs.webshop.search import Search
from envrl.errors import ConfigFault, DataFault

REMEMBERED = 8192
"""Products whose texts a shop remembers; the longest unused are forgotten first."""


@dataclass(frozen=True, slots=True)
class Clicks:
    """What can be done on a page, and what is behind each name.

    Attributes:
        available: What an agent sees.
        targets: Clickable name to the product it opens (results page) or the option group it chooses
            in (product page); None for a button.
    """

    available: Available
    targets: Mapping[str, str | None]


_BUTTONS_ONLY: Mapping[str, str | None] = {"back to search": None, "< prev": None}
_START = Clicks(Available(True, ("search",)), {"search": None})
_SUB_PAGE = Clicks(Available(False, tuple(_BUTTONS_ONLY)), _BUTTONS_ONLY)
_DONE = Clicks(Available(False, ()), {})


class Shop:
    """A catalogue with its search and its goals. No episode changes it, so all of a process share one.

    Args:
        catalog: Products, prices and attributes.
        goals: In their fixed order.
        index: Search index of these products.
        show_attributes: Give products a sub-page with their attributes.
        nouns: Noun tagger of the reward.

    Raises:
        DataFault: There is no goal, or the index lacks products of the catalogue. One of other texts is
            found out by :meth:`~envrl.envs.webshop.index.SearchIndex.check`.
    """

    def __init__(
        self,
        catalog: Catalog,
        goals: Sequence[Goal],
        index: SearchIndex,
        *,
        show_attributes: bool = False,
        nouns: NounTagger = built_in_nouns,
    ) -> None:
        if not goals:
            raise DataFault("the shop has no goals: load human instructions, or products with instructions")
        self.catalog = catalog
        self.goals = tuple(goals)
        self.search = Search(catalog, index)
        self.show_attributes = show_attributes
        self.nouns = nouns
        self.cumulative_weights = tuple(accumulate((goal.weight for goal in self.goals), initial=0.0))
        self._places: dict[str, int] | None = None
        remembering = lru_cache(maxsize=REMEMBERED)
        self._listing = remembering(self._make_listing)
        self._item = remembering(self._make_item)
        self._item_clicks = remembering(self._make_item_clicks)

    def goal(self, number: SupportsIndex) -> Goal:
        """Goal by its place in the order; negative places count from the end.

        Raises:
            ConfigFault: There is no such place.
        """
        try:
            return self.goals[number]
        except IndexError as error:
            count = len(self.goals)
            raise ConfigFault(
                f"there is no goal {number}: give a number from {-count} to {count - 1}"
            ) from error

    def draw_goal(self, rng: random.Random) -> Goal:
        """A goal drawn by weight, with one uniform draw."""
        return self.goals[random_index(self.cumulative_weights, rng)]

    def goal_place(self, identifier: str) -> int:
        """Place of the goal with this :func:`goal_id`; of equal goals, the first one's.

        Raises:
            DataFault: The shop has no such goal.
        """
        if self._places is None:
            pairs = reversed(list(enumerate(self.goals)))
            self._places = {goal_id(goal): place for place, goal in pairs}
        try:
            return self._places[identifier]
        except KeyError as error:
            raise DataFault(
                f"this shop has no goal {identifier!r}: play the game with the catalogue and the goals it "
                "was made from"
            ) from error

    def results_page(self, keywords: Sequence[str], number: int, rng: random.Random) -> ResultsPage:
        """One page of a search; see :meth:`envrl.envs.webshop.search.Search.results`."""
        found = self.search.results(keywords, rng)
        start = (number - 1) * RESULTS_PER_PAGE
        return ResultsPage(tuple(keywords), number, len(found), found[start : start + RESULTS_PER_PAGE])

    def clicks(self, page: Page) -> Clicks:
        """What can be done on a page."""
        match page:
            case ResultsPage():
                targets = results_clickables(page)
                return Clicks(Available(False, tuple(targets)), targets)
            case ItemPage():
                return self._item_clicks(page.asin)
            case StartPage():
                return _START
            case SubPage():
                return _SUB_PAGE
        return _DONE

    def body(self, page: Page) -> tuple[str, ...]:
        """Texts of a page after the instruction, as mode ``text`` shows them."""
        match page:
            case ItemPage():
                return self._item(page.asin)
            case ResultsPage():
                parts = [segments(results_head(page)), *(self._listing(asin) for asin in page.asins)]
                return tuple(text for part in parts for text in part)
        return segments(body_nodes(page, self.catalog.by_asin, self.show_attributes))

    def reward(self, asin: str, goal: Goal, options: Mapping[str, str]) -> RewardDetails:
        """What buying a product is worth to a customer with this goal."""
        product, price = self.catalog.by_asin[asin], self.catalog.prices[asin]
        return purchase_reward(product, goal, price, options, self.nouns)

    def _make_listing(self, asin: str) -> tuple[str, ...]:
        return segments(listing_nodes(self.catalog.by_asin[asin]))

    def _make_item(self, asin: str) -> tuple[str, ...]:
        page = ItemPage(asin, (), 1, {})
        return segments(body_nodes(page, self.catalog.by_asin, self.show_attributes))

    def _make_item_clicks(self, asin: str) -> Clicks:
        targets = item_clickables(self.catalog.by_asin[asin], self.show_attributes)
        return Clicks(Available(False, tuple(targets)), targets)
