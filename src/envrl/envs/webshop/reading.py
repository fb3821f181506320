"""What a customer reads: the wish in an instruction, and the products, options and prices on a page.

Works on observation texts and admissible commands alone, in both forms of a page's text: with each part in
single quotes and without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from envrl.envs.webshop.actions import SEARCH_PLACEHOLDER
from envrl.envs.webshop.render import SEPARATOR
from envrl.errors import DataFault
from envrl.types import Observation

_TASK = re.compile(r"Your task is to: (.+)\Z", re.DOTALL)
_PRICE_LIMIT = re.compile(r",? and price lower than (\d+(?:\.\d*)?|\.\d+) dollars\s*$")
_OPTIONS = re.compile(r"^(.*) with ([^:,]+: .+)$", re.DOTALL)
_NEXT_OPTION = re.compile(r", and (?=[^:,]+: )")
_OPENING = re.compile(r"^\s*find me\s+", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORD_END = re.compile(r"[,.;:!?]+(?=\s|$)")
_WORD = re.compile(r"[^\W_]+")
_IDLE = """
    a am an and are as at be can come comes do find for from get give has have i i'd i'm in is it like looking
    me my need of on one or please should show some that the these this to want with would
"""
_IDLE_WORDS = frozenset(_IDLE.split())


@dataclass(frozen=True, slots=True)
class Wish:
    """What an instruction asks for, as far as its wording tells.

    Attributes:
        attributes: Phrases the product should offer.
        kind: What the product is.
        options: Option group to value; empty if the instruction names no group.
        price_limit: In dollars; infinite if none is named.
        text: The whole instruction, lower-case.
        free: It is worded freely, so that ``attributes`` are single words and ``kind`` is all of it.
    """

    attributes: tuple[str, ...]
    kind: str
    options: Mapping[str, str]
    price_limit: float
    text: str
    free: bool = False


NO_WISH = Wish((), "", {}, float("inf"), "")
"""What is wished for before an instruction was read."""


def plain_words(text: str) -> str:
    """The text without the punctuation that ends words; points within numbers stay."""
    return _WORD_END.sub(" ", text)


def _front(text: str) -> tuple[list[str], str]:
    """Attributes and kind of what stands before "with" and "for".

    Attributes have two words and are separated by commas; the last one runs into the kind, which may
    have commas of its own.
    """
    parts = [part.strip() for part in text.split(", ")]
    attributes: list[str] = []
    for i, part in enumerate(parts):
        words = part.split()
        if len(words) == 2 and i < len(parts) - 1 and "&" not in words:
            attributes.append(part)
            continue
        rest = ", ".join(parts[i:]).split()
        if len(words) > 2 and "&" not in words[:2]:
            return [*attributes, " ".join(rest[:2])], " ".join(rest[2:])
        return attributes, " ".join(rest)
    return attributes, ""


def read_wish(instruction: str) -> Wish:
    """Takes an instruction apart; of free wording, each word that says something is an attribute."""
    text = instruction.strip().lower()
    limit = _PRICE_LIMIT.search(text)
    head = text[: limit.start()] if limit else text
    options: dict[str, str] = {}
    if found := _OPTIONS.match(head):
        head = found[1]
        pairs = (part.partition(": ") for part in _NEXT_OPTION.split(found[2]))
        options = {name.strip(): value.strip() for name, _, value in pairs}
    price = float(limit[1]) if limit else float("inf")
    if not _OPENING.match(head):
        telling = (word for word in plain_words(head).split() if word not in _IDLE_WORDS)
        return Wish(tuple(telling), head.strip(" ."), options, price, text, free=True)
    front, *tails = re.split(r" (?:with|for) ", _OPENING.sub("", head))
    attributes, kind = _front(front)
    attributes += [part.strip() for tail in tails for part in tail.split(", ")]
    return Wish(tuple(attributes), kind, options, price, text)


def find_instruction(text: str) -> str:
    """The instruction in the first observation of an episode.

    Raises:
        DataFault: There is none.
    """
    if found := _TASK.search(text):
        return found[1]
    parts = text.split(SEPARATOR)
    if len(parts) > 2 and parts[1] == "Instruction:":
        return parts[2]
    raise DataFault(f"no instruction in {text[:80]!r}: show the first observation of an episode")


class PageKind(Enum):
    """Which page an observation shows."""

    START = "start"
    """Nothing but a search bar."""
    RESULTS = "results"
    """A page of search results."""
    ITEM = "item"
    """A product with its options."""
    TEXTS = "texts"
    """Description, features, reviews or attributes of a product."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One product of a results page; prices in dollars, equal if there is one only."""

    asin: str
    title: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Page:
    """What stands on a page; only the fields of its kind are filled.

    Attributes:
        kind: Which page it is.
        number: Number of the results page.
        offers: Products of a results page, best first.
        title: Title of a product.
        low: Its lowest price in dollars.
        high: Its highest price in dollars.
        options: Option group to values of a product.
        texts: What a description, feature or review page says.
    """

    kind: PageKind
    number: int = 0
    offers: tuple[Offer, ...] = ()
    title: str = ""
    low: float = 0.0
    high: float = 0.0
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()


def _parts(text: str) -> list[str]:
    page = _TASK.sub("", text).strip()
    if page.startswith("'") and page.endswith("'"):
        return page[1:-1].split(f"'{SEPARATOR}'")
    parts = page.split(SEPARATOR)
    return parts[2:] if parts[0] == "Instruction:" else parts


def _offer(asin: str, title: str, price: str) -> Offer:
    numbers = [float(number) for number in _NUMBER.findall(price)] or [float("inf")]
    return Offer(asin, title, numbers[0], numbers[-1])


def _results(parts: list[str], clicks: frozenset[str]) -> Page:
    number = next((int(m[1]) for part in parts if (m := re.match(r"Page (\d+) \(Total", part))), 1)
    offers = [
        _offer(*parts[i : i + 3])
        for i, part in enumerate(parts[:-2])
        if part.lower() in clicks and parts[i + 2].startswith("$")
    ]
    return Page(PageKind.RESULTS, number=number, offers=tuple(offers))


def _item(parts: list[str], clicks: frozenset[str]) -> Page:
    """Options stand before the title: a group's name can't be clicked, its values can."""
    price = next((i for i, part in enumerate(parts) if part.startswith("Price: ")), len(parts))
    options: dict[str, tuple[str, ...]] = {}
    group = ""
    for part in parts[2 : price - 1]:
        if part in clicks:
            options[group] = (*options.get(group, ()), part)
        else:
            group = part
    offer = _offer("", *parts[price - 1 : price + 1])
    return Page(PageKind.ITEM, title=offer.title, low=offer.low, high=offer.high, options=options)


def read_page(observation: Observation) -> Page:
    """Reads a page that is not the one shown after a purchase."""
    if SEARCH_PLACEHOLDER in observation.admissible:
        return Page(PageKind.START)
    clicks = frozenset(command.removeprefix("click[").removesuffix("]") for command in observation.admissible)
    parts = _parts(observation.text)
    if "buy now" in clicks:
        return _item(parts, clicks)
    if "next >" in clicks:
        return _results(parts, clicks)
    return Page(PageKind.TEXTS, texts=tuple(parts[2:]))


def words_of(text: str) -> frozenset[str]:
    """Lower-case word stems of a text: plurals and singulars come out alike (shelves, shelf; teas, tea)."""
    return frozenset(_stem(word) for word in _WORD.findall(text.lower()))


def _stem(word: str) -> str:
    if len(word) < 4:
        return word
    stem = word[:-1] if word.endswith("s") and not word.endswith("ss") else word
    stem = stem.removesuffix("e")
    return stem[:-1] + {"v": "f", "y": "i"}.get(stem[-1], stem[-1])


def coverage(phrases: Iterable[str], text: str) -> tuple[float, ...]:
    """How well a text offers each phrase: 1 word for word, below 1 by the share of its words it has."""
    lowered, known = text.lower(), words_of(text)
    shares = []
    for phrase in phrases:
        words = words_of(phrase)
        share = len(words & known) / len(words) if words else 1.0
        shares.append(1.0 if phrase in lowered else 0.9 * share)
    return tuple(shares)
