"""What the invented shop sells: kinds of products, what they may offer, and the options they come in.

Every attribute has two words and no two of a kind are alike for the reward; every option value is one the
reward can be satisfied with. Both are tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of product.

    Attributes:
        category: Department, e.g. ``beauty``.
        query: Search phrase under which all products of the kind are found, a plural.
        path: Department levels below the category's.
        nouns: What a title may call it.
        before: Attributes that stand before the noun.
        having: Attributes that follow "with".
        purposes: Attributes that follow "for".
        groups: Names of the option groups it may come in (keys of :data:`OPTION_POOLS`).
        prices: Lowest and highest price in dollars.
    """

    category: str
    query: str
    path: tuple[str, ...]
    nouns: tuple[str, ...]
    before: tuple[str, ...]
    having: tuple[str, ...]
    purposes: tuple[str, ...]
    groups: tuple[str, ...]
    prices: tuple[float, float]


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


OPTION_POOLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "color": ("Color", _split("Black, White, Navy Blue, Grey, Dark Green, Pink, Beige, Red, Brown, Purple")),
    "clothes size": ("Size", _split("X-Small, Small, Medium, Large, X-Large, XX-Large")),
    "shoe size": ("Size", _split("6, 7, 8, 9, 10, 11")),
    "ounces": ("Size", _split("1 oz, 2 oz, 4 oz, 8 oz, 12 oz, 16 oz")),
    "length": ("Length", _split("3 ft, 6 ft, 10 ft, 15 ft, 25 ft")),
    "dimensions": ("Size", _split("12 inch, 16 inch, 18 inch, 20 inch, 24 inch")),
    "pack": ("Pack", _split("Pack of 1, Pack of 2, Pack of 3, Pack of 4, Pack of 6, Pack of 12")),
    "scent": ("Scent", _split("Lavender, Vanilla, Citrus, Cedar, Jasmine, Fig, Unscented")),
    "sweet flavor": ("Flavor", _split("Apple, Peach, Mango, Honey, Cinnamon, Coconut, Vanilla")),
    "savory flavor": ("Flavor", _split("Original, Tomato, Onion, Pepper, Mushroom, Cheddar")),
    "style": ("Style", _split("Classic, Modern, Vintage, Slim, Deluxe")),
}
"""Option pool to its group's name and values, as the file writes them."""

ROOTS: dict[str, str] = {
    "beauty": "Beauty & Personal Care",
    "electronics": "Electronics",
    "garden": "Home & Kitchen",
    "fashion": "Clothing, Shoes & Jewelry",
    "grocery": "Grocery & Gourmet Food",
}
"""Department to the first level of its paths."""


def _read_kinds() -> tuple[Kind, ...]:
    table = resources.files(__package__).joinpath("wares.csv").read_text(encoding="utf-8")
    kinds = []
    for line in table.splitlines()[1:]:
        category, query, path, *lists, prices = (cell.strip() for cell in line.split("|"))
        nouns, before, having, purposes, groups = (_split(cell) for cell in lists)
        low, high = prices.split("-")
        levels = (ROOTS[category], *_split(path))
        kinds.append(
            Kind(category, query, levels, nouns, before, having, purposes, groups, (float(low), float(high)))
        )
    return tuple(kinds)


KINDS: tuple[Kind, ...] = _read_kinds()
"""All kinds, eight per department."""
