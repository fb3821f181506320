"""How likely a product is what the instruction asks for, from what has been read of it so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from envrl.envs.webshop.reading import Wish, coverage, plain_words, words_of

_ENOUGH = 0.9
"""Coverage from which an attribute counts as offered: every word of it is there."""
_HIDDEN = 0.6
"""Chance that a product offers an attribute of which its title says nothing."""
_UNSAID = 0.2
"""Chance that it does although its features don't say so either."""
_IN_STOCK = 0.5
"""Chance that a product comes in a wanted option."""
_OUT_OF_STOCK = 0.02
"""Chance that another value of the option will do."""
_MAYBE_CHEAP = 0.6
"""Chance that a price range that contains the limit is good enough."""
_NEXT_PLACE = 0.7
"""Factor from each place in the results to the next: the search engine has read more than the title."""
_USUAL_SLACK, _FAR = 40.0, 0.8
"""People name a limit near the price they have in mind; more dollars below it, the chance has this factor."""
RESULTS_A_PAGE = 10


@dataclass(slots=True)
class Candidate:
    """What is known of one product.

    Attributes:
        title: Its title.
        low: Its lowest price in dollars.
        high: Its highest price in dollars.
        place: Results page, from 1, and place on it, from 0.
        text: Everything read about it.
        opened: Its page was seen, ``missing`` counts.
        read: Its features were seen too.
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


class Judge:
    """Compares candidates with one wish."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish

    def _attributes(self, candidate: Candidate) -> list[float]:
        """A factor for each wanted attribute; 1 if it is offered."""
        unknown = _UNSAID if candidate.read else _HIDDEN
        found = coverage(self.wish.attributes, candidate.text)
        return [1.0 if share >= _ENOUGH else unknown for share in found]

    def _price(self, candidate: Candidate) -> float:
        if candidate.high <= self.wish.price_limit:
            return 1.0
        return _MAYBE_CHEAP if candidate.low <= self.wish.price_limit else 0.0

    def _likeness(self, candidate: Candidate) -> float:
        """Share of the words for the kind of product that the title has."""
        kind = words_of(self.wish.kind)
        if not kind or self.wish.free:
            return 1.0
        return len(kind & words_of(candidate.title)) / len(kind)

    def chance(self, candidate: Candidate) -> float:
        """Chance that the product meets the whole wish, in [0, 1]; a product of rough factors."""
        options = [_IN_STOCK] * len(self.wish.options)
        if candidate.opened:
            options = [_OUT_OF_STOCK] * candidate.missing
        likeness = self._likeness(candidate)
        kind = 0.5 + 0.5 * likeness if likeness else 0.01
        return prod((*self._attributes(candidate), *options, self._price(candidate), kind))

    def promise(self, candidate: Candidate) -> float:
        """Chance of a product not opened yet, its place in the results taken into account."""
        page, place = candidate.place
        far = self.wish.price_limit - candidate.low > _USUAL_SLACK
        rank = RESULTS_A_PAGE * (page - 1) + place
        return self.chance(candidate) * _NEXT_PLACE**rank * (_FAR if far else 1.0)

    def unseen_promise(self, pages: int) -> float:
        """Promise of the first product after so many results pages."""
        unknown = prod([_HIDDEN] * len(self.wish.attributes) + [_IN_STOCK] * len(self.wish.options))
        return unknown * _NEXT_PLACE ** (RESULTS_A_PAGE * pages)

    def fits(self, candidate: Candidate) -> bool:
        """Whether everything asked for was found: nothing is left to hope for elsewhere."""
        if candidate.missing or self._price(candidate) < 1.0 or not self._likeness(candidate):
            return False
        return all(factor == 1.0 for factor in self._attributes(candidate))

    def worth_reading(self, candidate: Candidate) -> bool:
        """Whether the features can still decide."""
        return not candidate.read and not candidate.missing and self._price(candidate) > 0.0

    def wanted(self, options: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """Group to the value asked for, as far as the product comes in it.

        An instruction in free words names no groups: there it is the longest value it mentions.
        """
        if self.wish.options:
            wishes = self.wish.options.items()
            return {name: value for name, value in wishes if value in options.get(name, ())}
        said = f" {' '.join(plain_words(self.wish.text).split())} "
        found = {
            name: [value for value in values if f" {value} " in said] for name, values in options.items()
        }
        return {name: max(values, key=len) for name, values in found.items() if values}
