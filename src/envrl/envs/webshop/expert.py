"""A hand-written customer who reads the instruction and the pages only. Makes the demonstrations.

It searches for what the instruction says, opens the result that promises most, looks up its features where
the title doesn't tell, and buys the first product that offers everything.

    python -m envrl.envs.webshop.expert [--items … --attributes … [--human …]] [--goals N]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress

import numpy as np

from envrl.envs.webshop.reading import (
    Page,
    PageKind,
    Wish,
    coverage,
    find_instruction,
    read_page,
    read_wish,
    words_of,
)
from envrl.types import Observation

_ENOUGH = 0.9
"""Coverage from which an attribute counts as offered: every word of it is there."""
_HIDDEN = 0.7
"""Chance that a product offers an attribute of which its title says nothing."""
_IN_STOCK = 0.6
"""Chance that a product comes in a wanted option."""
_RANK_COST = 0.1
"""Promise a product loses with each place in the results."""
_USUAL_SLACK, _FAR_COST = 40.0, 0.15
"""People name a limit near the price they have in mind: within so many dollars, else promise is lost."""
_RESULTS_A_PAGE, _MOST_PAGES = 10, 5
"""A search gives at most 50 results."""
_BUY, _BACK, _NEXT, _FEATURES = "click[buy now]", "click[< prev]", "click[next >]", "click[features]"
_SHARE_KEPT = 0.75
"""Chance that a varied query keeps an attribute or an option value."""


@dataclass(slots=True)
class _Candidate:
    """What is known of one product.

    Attributes:
        title: Its title.
        low: Its lowest price in dollars.
        high: Its highest price in dollars.
        place: Results page and place on it.
        text: Everything read about it.
        opened: Its page was seen, ``missing`` counts.
        read: Its features were seen, nothing is hidden any more.
        missing: Wanted option values it does not come in.
        chosen: Option group to the value chosen since its page was opened.
    """

    title: str
    low: float
    high: float
    place: tuple[int, int]
    text: str
    opened: bool = False
    read: bool = False
    missing: int = 0
    chosen: dict[str, str] = field(default_factory=dict)


class Expert:
    """Player that searches, compares and buys.

    :meth:`act` takes for granted that its command is carried out; :meth:`follow` tells it of another one.

    Args:
        max_steps: Commands of an episode. Before they run out, the expert settles for the best it knows.
        rng: Varies the words of the query, for demonstrations that differ; None always uses all of them.
    """

    def __init__(self, max_steps: int = 15, rng: np.random.Generator | None = None) -> None:
        self._max_steps = max_steps
        self._rng = rng
        self._begin(Wish((), "", {}, float("inf"), ""))

    def _begin(self, wish: Wish) -> None:
        self._wish = wish
        self._known: dict[str, _Candidate] = {}
        self._current = ""
        self._results_page = 1
        self._command = ""
        self._steps_left = self._max_steps
        self._settled = False
        self._searches = 0

    def reset(self, text: str) -> None:
        """Starts an episode.

        Args:
            text: First observation, with the instruction.

        Raises:
            DataFault: The instruction is missing.
        """
        self._begin(read_wish(find_instruction(text)))

    def follow(self, command: str) -> None:
        """Tells which command was carried out instead of the one last chosen."""
        self._command = command

    def act(self, observation: Observation) -> str:
        """Takes in an observation and chooses the next command."""
        page = read_page(observation)
        self._take_in(page)
        command = self._next(page, frozenset(observation.admissible))
        if not command.startswith("search[") and command not in observation.admissible:
            command = _BACK if _BACK in observation.admissible else "click[back to search]"
        self._command = command
        self._steps_left -= 1
        return command

    # What was read -----------------------------------------------------------------------------------

    def _take_in(self, page: Page) -> None:
        if page.kind is PageKind.RESULTS:
            self._results_page, self._current = page.number, ""
            for i, offer in enumerate(page.offers):
                fresh = _Candidate(offer.title, offer.low, offer.high, (page.number, i), offer.title)
                self._known.setdefault(offer.asin.lower(), fresh).place = (page.number, i)
        elif page.kind is PageKind.ITEM:
            self._take_in_item(page)
        elif page.kind is PageKind.TEXTS and self._current:
            candidate = self._known[self._current]
            candidate.text = " ".join([candidate.text, *page.texts])
            candidate.read |= self._command == _FEATURES

    def _take_in_item(self, page: Page) -> None:
        clicked = self._command.removeprefix("click[").removesuffix("]")
        if clicked in self._known:
            self._current = clicked
            self._known[clicked].chosen = {}
        elif not self._current:
            # Opened by somebody else's hand: found again by its title, or new.
            titles = {candidate.title: asin for asin, candidate in self._known.items()}
            self._current = titles.get(page.title, page.title)
        here = (self._results_page, 0)
        candidate = self._known.setdefault(
            self._current, _Candidate(page.title, page.low, page.high, here, page.title)
        )
        candidate.opened = True
        wanted = self._wanted(page.options)
        candidate.missing = max(0, len(self._wish.options) - len(wanted))
        group = next((name for name, values in page.options.items() if clicked in values), None)
        if group is not None:
            candidate.chosen[group] = clicked

    def _wanted(self, options: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """Group to the value the instruction asks for, as far as the product comes in it."""
        if self._wish.options:
            wishes = self._wish.options.items()
            return {name: value for name, value in wishes if value in options.get(name, ())}
        said = f" {self._wish.text.replace(',', ' ').replace('.', ' ')} "
        found = {
            name: [value for value in values if f" {value} " in said] for name, values in options.items()
        }
        return {name: max(values, key=len) for name, values in found.items() if values}

    # What it is worth --------------------------------------------------------------------------------

    def _parts(self, candidate: _Candidate) -> list[float]:
        """How well each part of the wish is met, in [0, 1]: attributes, options, price and kind."""
        wish = self._wish
        found = coverage(wish.attributes, candidate.text)
        if not candidate.read:
            found = tuple(share if share >= _ENOUGH else _HIDDEN for share in found)
        wanted = len(wish.options)
        options = [0.0] * candidate.missing + [1.0] * (wanted - candidate.missing)
        if not candidate.opened:
            options = [_IN_STOCK] * wanted
        price = (
            1.0 if candidate.high <= wish.price_limit else 0.5 if candidate.low <= wish.price_limit else 0.0
        )
        kind = words_of(wish.kind)
        likeness = len(kind & words_of(candidate.title)) / len(kind) if kind and wish.attributes else 1.0
        return [*found, *options, price, 0.5 + 0.5 * likeness if likeness else 0.0]

    def _value(self, candidate: _Candidate) -> float:
        parts = self._parts(candidate)
        return sum(parts) / len(parts)

    def _promise(self, candidate: _Candidate) -> float:
        """What opening it is worth: the search engine has read more of a product than its title shows."""
        page, place = candidate.place
        far = self._wish.price_limit - candidate.low > _USUAL_SLACK
        cost = _RANK_COST * (_RESULTS_A_PAGE * (page - 1) + place) + _FAR_COST * far
        return self._value(candidate) - cost

    def _unseen_promise(self, pages: int) -> float:
        """What to expect of the first product after so many results pages."""
        hidden = [_HIDDEN] * len(self._wish.attributes)
        parts = [*hidden, *[_IN_STOCK] * len(self._wish.options), 1.0, 1.0]
        return sum(parts) / len(parts) - _RANK_COST * _RESULTS_A_PAGE * pages

    def _fits(self, candidate: _Candidate) -> bool:
        *parts, likeness = self._parts(candidate)
        return likeness > 0.0 and min(parts) >= _ENOUGH

    # What to do --------------------------------------------------------------------------------------

    def _next(self, page: Page, admissible: frozenset[str]) -> str:
        if page.kind is PageKind.START:
            return f"search[{self._query()}]"
        if page.kind is PageKind.RESULTS:
            return self._choose()
        if page.kind is PageKind.TEXTS:
            return _BACK
        return self._inspect(page, admissible)

    def _query(self) -> str:
        """Everything asked for, options twice: they are what titles don't show. Then only what it is."""
        self._searches += 1
        wish = self._wish
        kept = [True] * (len(wish.attributes) + len(wish.options))
        if self._rng is not None:
            kept = [self._rng.random() < _SHARE_KEPT for _ in kept]
        attributes = compress(wish.attributes if wish.kind != wish.text else (), kept)
        options = list(compress(wish.options.items(), kept[len(wish.attributes) :]))
        stated = [value for _, value in options] + [f"{group} {value}" for group, value in options]
        words = " ".join([*attributes, wish.kind, *stated] if self._searches == 1 else [wish.kind])
        return words.replace("[", " ").replace("]", " ").strip() or "anything"

    def _choose(self) -> str:
        """On a results page: opens what promises most, turns the page, or goes back to the best seen."""
        if not self._known:
            return "click[back to search]"
        fresh = {asin: self._promise(c) for asin, c in self._known.items() if not c.opened}
        asin = max(fresh, key=lambda name: fresh[name], default="")
        seen = max(candidate.place[0] for candidate in self._known.values())
        if len(self._known) >= seen * _RESULTS_A_PAGE and seen < _MOST_PAGES:
            cost = seen + 1 - self._results_page + 1 + self._purchase_cost()
            if cost <= self._steps_left and fresh.get(asin, -1.0) < self._unseen_promise(seen):
                return _NEXT
        values = {name: self._value(candidate) for name, candidate in self._known.items()}
        best = max(values, key=lambda name: values[name])
        last_chance = self._steps_left < 3 + self._purchase_cost()
        if not asin or (last_chance and values[best] >= values[asin]):
            asin, self._settled = best, True
        page = self._known[asin].place[0]
        if page == self._results_page:
            return f"click[{asin}]"
        return _NEXT if page > self._results_page else _BACK

    def _purchase_cost(self) -> int:
        return len(self._wish.options) + 1

    def _inspect(self, page: Page, admissible: frozenset[str]) -> str:
        """On a product's page: buys it, reads on, or leaves it."""
        candidate = self._known[self._current]
        if self._settled or self._fits(candidate):
            return self._buy(page, candidate)
        *parts, _ = self._parts(candidate)
        promising = not candidate.missing and parts[-1] > 0.0 and not candidate.read
        if promising and _FEATURES in admissible and self._steps_left >= 2 + self._purchase_cost():
            return _FEATURES
        if self._steps_left >= 2 + self._purchase_cost():
            return _BACK
        return self._buy(page, candidate)

    def _buy(self, page: Page, candidate: _Candidate) -> str:
        for group, value in self._wanted(page.options).items():
            if candidate.chosen.get(group) != value and self._steps_left > 1:
                return f"click[{value}]"
        return _BUY
