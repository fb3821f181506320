"""Draws invented products: titles that overlap, attributes that hide, options and prices that differ.

Product ``i`` of a seed is the same in every process and whatever the size of its catalogue. Neighbours in
the numbering form families of the same kind and brand, the near-equals a customer has to tell apart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from envrl.envs.webshop.wares import KINDS, OPTION_POOLS, Kind
from envrl.seeding import derive_seed

_FAMILY = 3
"""Products of a family."""

_STARTS = ("Bel", "Cor", "Dav", "Fen", "Gal", "Hol", "Jun", "Kes", "Lor", "Mer", "Nor", "Pol")
_MIDDLES = ("a", "e", "i", "o", "an", "el", "ir", "um")
_ENDS = ("dra", "vex", "mont", "nub", "rith", "sta", "vek", "wyn", "zel", "tho")
_BRANDS = len(_STARTS) * len(_MIDDLES) * len(_ENDS)
_BRANDS_OF_A_KIND = 8

_CONSONANTS, _VOWELS = "BDFGHJKLMNPRSTVZ", "AEIOU"
MOST_PRODUCTS = (len(_CONSONANTS) * len(_VOWELS)) ** 3 * 100
"""Identifiers there are; numbers of products below it give different ones."""
_ID_STRIDE = 31_415_927
"""Odd, no multiple of 5: steps through all identifiers before one comes twice."""

_SHARE_WITHOUT_INSTRUCTION = 0.1
_SHARE_WITH_TWO_PRICES = 0.12
_SHARE_DESCRIBED = 0.65
"""Chance that the description, which is indexed, names an attribute the title leaves out."""
_SHARE_SHUFFLED = 0.4
"""Chance that the first bullet, the only indexed one, need not be an attribute the title leaves out."""

_REMARKS = (
    "A favorite of {brand} customers since the first day.",
    "{brand} puts every piece through a careful check.",
    "Simple to like and simple to keep.",
    "Part of the {brand} everyday line.",
    "Designed by {brand} with a calm, tidy look.",
    "Pleasant company at any time of the year.",
)
_PLAIN_BULLETS = (
    "Comes in a plain carton",
    "One year {brand} promise",
    "Checked twice before shipping",
    "A thoughtful present",
    "Friendly support by {brand}",
)


@dataclass(frozen=True, slots=True)
class Invention:
    """One invented product, before it is written in a file format.

    Attributes:
        asin: Ten capital letters and digits.
        kind: What it is.
        title: Five to ten words.
        description: One or two sentences.
        bullets: Two to four features, four words or so each.
        prices: One price in dollars, or the lower and the upper one.
        options: Group name to values, as the file writes them; at most two groups.
        attributes: All it offers; each stands in the title or in a bullet.
        wanted: The attributes its instruction asks for; empty if it has no instruction.
    """

    asin: str
    kind: Kind
    title: str
    description: str
    bullets: tuple[str, ...]
    prices: tuple[float, ...]
    options: dict[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    wanted: tuple[str, ...]


def invented_asin(number: int) -> str:
    """Identifier of a product by number; numbers below 51 million give different ones.

    Made of syllables, so that a small language model can copy it.
    """
    code = number * _ID_STRIDE % MOST_PRODUCTS
    code, digits = divmod(code, 100)
    letters = ""
    for _ in range(3):
        code, consonant = divmod(code, len(_CONSONANTS))
        code, vowel = divmod(code, len(_VOWELS))
        letters += _CONSONANTS[consonant] + _VOWELS[vowel]
    return f"B0{letters}{digits:02d}"


@lru_cache(maxsize=64)
def _root(seed: int, path: str) -> int:
    return derive_seed(seed, path)


def _generator(seed: int, path: str, number: int) -> random.Random:
    """Generator of a numbered thing; a seed per thing from the tree would cost more than the thing."""
    return random.Random((_root(seed, path) << 64) + number)


def _brand(number: int) -> str:
    rest, end = divmod(number % _BRANDS, len(_ENDS))
    start, middle = divmod(rest, len(_MIDDLES))
    return _STARTS[start] + _MIDDLES[middle] + _ENDS[end]


def _title(rng: random.Random, brand: str, noun: str, parts: Sequence[Sequence[str]]) -> str:
    """Title that names one or two of the attributes; ``parts`` are those before, with and for."""
    before, having, purposes = parts
    front = f"{before[0].title()} " if before else ""
    tails = [f" with {having[0].title()}"] if having else []
    tails += [f" for {purposes[0].title()}"] if purposes else []
    tail = rng.choice(tails) if tails and (not before or rng.random() < 0.95) else ""
    return f"{brand} {front}{noun}{tail}"


def _feature(rng: random.Random, kind: Kind, noun: str, attribute: str) -> str:
    if attribute in kind.having:
        return rng.choice((f"Comes with {attribute}", f"{noun} with {attribute}"))
    if attribute in kind.purposes:
        return rng.choice((f"Great for {attribute}", f"Made for {attribute}"))
    article = "An" if attribute[0] in "aeio" else "A"
    return rng.choice((f"{attribute.capitalize()} design", f"{article} {attribute} {noun.lower()}"))


def _texts(
    rng: random.Random, kind: Kind, brand: str, noun: str, title: str, attributes: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    """Description and bullets: what the title leaves out stands in a bullet, and now and then in both."""
    lowered = title.lower()
    hidden = [attribute for attribute in attributes if attribute not in lowered]
    bullets = [_feature(rng, kind, noun, attribute) for attribute in hidden]
    bullets += [plain.format(brand=brand) for plain in rng.sample(_PLAIN_BULLETS, rng.choice((1, 2)))]
    bullets = bullets[:4] if len(hidden) < 4 else bullets
    if rng.random() < _SHARE_SHUFFLED:
        rng.shuffle(bullets)
    named = [attribute for attribute in hidden if rng.random() < _SHARE_DESCRIBED]
    sentences = [f"{_feature(rng, kind, noun, attribute)}." for attribute in named[:1]]
    sentences.append(rng.choice(_REMARKS).format(brand=brand))
    return " ".join(sentences), tuple(bullets)


def _options(rng: random.Random, kind: Kind) -> dict[str, tuple[str, ...]]:
    count = min(len(kind.groups), rng.choices((0, 1, 2), weights=(2, 4, 4))[0])
    options = {}
    for group in sorted(rng.sample(kind.groups, count), key=kind.groups.index):
        name, values = OPTION_POOLS[group]
        chosen = rng.sample(values, rng.choice((2, 3, 4)))
        options[name] = tuple(sorted(chosen, key=values.index))
    return options


def _prices(rng: random.Random, kind: Kind) -> tuple[float, ...]:
    low, high = kind.prices
    whole = int(low * (high / low) ** rng.random())
    price = whole + rng.choice((0.0, 0.49, 0.95, 0.99))
    if rng.random() < _SHARE_WITH_TWO_PRICES:
        # Less than 10 dollars apart: the limit of a goal is always above both, as a customer can see.
        return (price, round(price + rng.choice((3.0, 5.0, 8.0)), 2))
    return (price,)


def invent(seed: int, number: int) -> Invention:
    """Draws product ``number`` of a seed.

    Args:
        seed: Any integer >= 0.
        number: Position in the numbering, >= 0; three consecutive numbers form a family.
    """
    family = number // _FAMILY
    shared = _generator(seed, "webshop-family", family)
    rng = _generator(seed, "webshop-product", number)
    at = family % len(KINDS)
    kind = KINDS[at]
    brand = _brand((at * 131 + shared.randrange(_BRANDS_OF_A_KIND)) * 37)
    noun = shared.choice(kind.nouns) if rng.random() < 0.7 else rng.choice(kind.nouns)
    before = rng.sample(kind.before, rng.choice((1, 2)))
    having = rng.sample(kind.having, 1)
    purposes = rng.sample(kind.purposes, rng.choice((0, 1)))
    attributes = (*before, *having, *purposes)
    title = _title(rng, brand, noun, (before, having, purposes))
    description, bullets = _texts(rng, kind, brand, noun, title, attributes)
    wanted: list[str] = []
    if rng.random() >= _SHARE_WITHOUT_INSTRUCTION:
        count = min(len(attributes), rng.choices((1, 2, 3), weights=(2, 5, 3))[0])
        wanted = sorted(rng.sample(attributes, count), key=attributes.index)
    return Invention(
        asin=invented_asin(number),
        kind=kind,
        title=title,
        description=description,
        bullets=bullets,
        prices=_prices(rng, kind),
        options=_options(rng, kind),
        attributes=attributes,
        wanted=tuple(wanted),
    )
