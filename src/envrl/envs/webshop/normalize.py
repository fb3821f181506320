"""Colours and sizes reduced to common names, the way the reward compares option values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

NOT_MATCHED = "not_matched"
NUMERIC_SIZE = "numeric_size"
NOT_AVAILABLE = "N.A."

_COLOR_WORDS = """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy
    camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral
    cranberry cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass
    gray green grey heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon
    mauve merlot midnight mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter
    pink plum purple rainbow red rose royal rust sand sapphire seashell silver skull slate steel stone
    stonewash sunflower tan taupe teal tiger turquoise violet walnut wheat white wine yellow
"""
COLORS: tuple[str, ...] = tuple(_COLOR_WORDS.split())
"""Names a colour is reduced to. The order is alphabetical and decides: the first one contained wins."""

SIZES: tuple[str, ...] = (
    *("xx-large", "3x-large", "4x-large", "5x-large", "x-large", "x-small", "medium", "large", "small"),
    *("queen", "twin", "full", "king", "one size", "pack"),
)
"""Sizes known by name, tried in this order before :data:`SIZE_PATTERNS`."""

SIZE_PATTERNS: tuple[str, ...] = (
    r"(.*)neck(.*)sleeve",
    r"(.*) women \| (.*) men",
    r"(.*)w x(.*)l",
    r"(.*)w by (.*)l",
    r"(.*)w x(.*)h",
    *(r"(.*)wide", r"(.*)x-wide", r"(.*)narrow", r"(.*)petite", r"(.*)inch", r"(.*)plus", r"(.*)mm"),
    r"women(.*)",
    r"(.*)x(.*)",
    *(r"(.*)ft", r"(.*)feet", r"(.*)meter", r"(.*)yards"),
    r"(.*)\*(.*)",
    r"(.*)\-(.*)",
    *(r'(\d+)"$', r"(\d+)f$", r"(\d+)m$", r"(\d+)cm$", r"(\d+)g$"),
)
"""Forms of a size; the text of the first one found stands for the size."""

_SIZE_SEARCHES = tuple((text, re.compile(text)) for text in (*SIZES, *SIZE_PATTERNS))


def normalize_color(text: str) -> str:
    """First colour of :data:`COLORS` contained anywhere in the text, else the text itself.

    Containment is of characters, not of words, and case counts: ``navy blue`` gives ``blue``, ``standard``
    gives ``tan``, ``Black`` stays as it is. The reward depends on these quirks.
    """
    return next((color for color in COLORS if color in text), text)


def normalize_named_option(name: str, value: str) -> str:
    """A goal's option group and value as the one text that purchased values are compared with.

    Only a group or value that *is* a colour is reduced to it. Anything else gives the printed form of
    the pair, so that the group's name takes part in the comparison. Hence ``color: standard`` can't be met
    even by choosing ``standard``: the chosen value becomes ``tan``, the pair does not.
    """
    pair = (name, value)
    return next((color for color in COLORS if color in pair), str(pair))


def normalize_size(text: str) -> str:
    """Name or pattern of a lower-case size: the first that is found in it.

    Returns:
        A member of :data:`SIZES` or :data:`SIZE_PATTERNS`, :data:`NUMERIC_SIZE` for digits with at most
        one point, or :data:`NOT_MATCHED`.
    """
    for name, pattern in _SIZE_SEARCHES:
        if pattern.search(text):
            return name
    return NUMERIC_SIZE if text.replace(".", "", 1).isdigit() else NOT_MATCHED


@dataclass(frozen=True, slots=True)
class ColorSizeNames:
    """What each colour and size of a price list is reduced to; keys are lower-case."""

    colors: Mapping[str, str]
    sizes: Mapping[str, str]


def normalize_color_size(product_prices: Mapping[tuple[object, str, str], float]) -> ColorSizeNames:
    """Reduces every colour and size of a price list.

    Args:
        product_prices: (identifier, colour, size) to price in dollars; only the keys are read.

    Returns:
        Both mappings; each also has ``N.A.``, which is not matched.
    """
    colors, sizes = {NOT_AVAILABLE: NOT_MATCHED}, {NOT_AVAILABLE: NOT_MATCHED}
    for _, color, size in product_prices:
        lowered = color.lower()
        colors[lowered] = next((name for name in COLORS if name in lowered), NOT_MATCHED)
        sizes[size.lower()] = normalize_size(size.lower())
    return ColorSizeNames(colors, sizes)
