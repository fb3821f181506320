"""From an entry of the product list to what the shop shows: which keys are read, and how they are tidied.

Everything that isn't read is dropped. Strings that many products share are interned: a catalogue of a
million products names the same departments, sizes and colours over and over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from math import isfinite
from sys import intern
from typing import Any, NoReturn

from envrl.envs.webshop.records import Product
from envrl.errors import DataFault
from envrl.untrusted import shown

NO_ATTRIBUTES = ("DUMMY_ATTR",)
"""Attributes of a product about which the attribute file says nothing."""

_NO_PRICE = 100.0
"""Dollars a product costs that has no price."""
_NOT_OF_A_NUMBER = re.compile(r"[^\d.]")
# Half of the products have no options: they share these two.
_NO_OPTIONS: dict[str, tuple[str, ...]] = {}
_NO_IMAGES: dict[str, str | None] = {}


class Entry:
    """One raw entry of a data file, read key by key with errors that name entry and key.

    Args:
        raw: The parsed JSON object.
        name: What error messages call the entry: file, position, identifier.
    """

    __slots__ = ("name", "raw")

    def __init__(self, raw: Mapping[str, Any], name: str) -> None:
        """Takes the parsed object and its name."""
        self.raw = raw
        self.name = name

    def fail(self, key: str, problem: str) -> NoReturn:
        """Reports a key.

        Raises:
            DataFault: Always.
        """
        raise DataFault(f"{self.name}: key {key!r} {problem}: correct or remove this entry")

    def value(self, key: str) -> Any:
        """The value of a required key.

        Raises:
            DataFault: The key is missing.
        """
        if key not in self.raw:
            self.fail(key, "is missing")
        return self.raw[key]

    def text(self, key: str) -> str:
        """The value of a required key that holds text.

        Raises:
            DataFault: The key is missing or holds something else.
        """
        value = self.value(key)
        if not isinstance(value, str):
            self.fail(key, f"holds {shown(value)}, not text")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """The value of a required key that holds a list of texts.

        Raises:
            DataFault: The key is missing or holds something else.
        """
        value = self.value(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(key, f"holds {shown(value)}, not a list of texts")
        return tuple(value)


def _price_number(entry: Entry, part: str) -> float:
    digits = _NOT_OF_A_NUMBER.sub("", part)
    try:
        price = float(Decimal(digits))
    except InvalidOperation:
        entry.fail("pricing", f"holds {shown(entry.raw['pricing'])}, where {part!r:.40} is no number")
    if not isfinite(price):
        entry.fail("pricing", f"holds {shown(entry.raw['pricing'])}, where {part!r:.40} is too large")
    return price


def read_price(entry: Entry) -> tuple[tuple[float, ...], str]:
    """Price in dollars, one number or the two ends of a range, and how it is shown.

    ``$1,299.00`` gives ``(1299.0,)`` and ``$1299.0``; ``$10$20`` gives ``(10.0, 20.0)`` and
    ``$10.0 to $20.0``; no price gives 100 dollars. Numbers after the second are dropped.

    Raises:
        DataFault: The price is neither text nor null, has no dollar sign, or a part without a number.
    """
    pricing = entry.raw.get("pricing")
    if not pricing:
        return (_NO_PRICE,), f"${_NO_PRICE}"
    if not isinstance(pricing, str):
        entry.fail("pricing", f"holds {shown(pricing)}, not text")
    numbers = tuple(_price_number(entry, part) for part in pricing.split("$")[1:])
    if not numbers:
        entry.fail("pricing", f"holds {shown(pricing)}, a price without a dollar sign")
    if len(numbers) == 1:
        return numbers, f"${numbers[0]}"
    return numbers[:2], f"${numbers[0]} to ${numbers[1]}"


def _read_bullets(entry: Entry) -> tuple[str, ...]:
    value = entry.value("small_description")
    return entry.texts("small_description") if isinstance(value, list) else (entry.text("small_description"),)


def _read_image(entry: Entry) -> str:
    images = entry.value("images")
    if not isinstance(images, list) or not images or not isinstance(images[0], str):
        entry.fail("images", f"holds {shown(images)}, not a list that starts with an address")
    return images[0]


def _option_value(entry: Entry, key: str, content: Any) -> tuple[str, str | None]:
    """An option's value as the shop shows it, and the image it shows, if any."""
    if not isinstance(content, dict) or not isinstance(content.get("value"), str):
        entry.fail(key, f"holds {shown(content)}, not an object with a text 'value'")
    image = content.get("image")
    value = content["value"].strip().replace("/", " | ").lower()
    return intern(value), image if isinstance(image, str) else None


def _read_options(entry: Entry) -> tuple[dict[str, tuple[str, ...]], dict[str, str | None]]:
    """Option groups with their values, and the image of each value.

    Of two groups that are called the same in lower case the later one counts; of two equal values in
    whatever groups the later one's image does.
    """
    groups = entry.value("customization_options")
    if not groups:
        return _NO_OPTIONS, _NO_IMAGES
    if not isinstance(groups, dict):
        entry.fail("customization_options", f"holds {shown(groups)}, not an object")
    options: dict[str, tuple[str, ...]] = {}
    images: dict[str, str | None] = {}
    for group, contents in groups.items():
        if contents is None:
            continue
        key = f"customization_options/{group}"
        if not isinstance(contents, list):
            entry.fail(key, f"holds {shown(contents)}, not a list")
        pairs = [_option_value(entry, key, content) for content in contents]
        options[intern(group.lower())] = tuple(value for value, _ in pairs)
        images.update(pairs)
    return options, images


def clean_product(entry: Entry, attributes: tuple[str, ...]) -> Product:
    """The product as the shop shows it.

    Args:
        entry: Its raw entry.
        attributes: What the attribute file says about it, or :data:`NO_ATTRIBUTES`.

    Raises:
        DataFault: A key is missing or holds the wrong kind of value.
    """
    pricing, price_text = read_price(entry)
    options, option_images = _read_options(entry)
    return Product(
        asin=entry.text("asin"),
        title=entry.text("name"),
        description=entry.text("full_description"),
        bullets=_read_bullets(entry),
        price_text=price_text,
        pricing=pricing,
        category=intern(entry.text("category")),
        query=intern(entry.text("query").lower().strip()),
        product_category=intern(entry.text("product_category")),
        options=options,
        option_images=option_images,
        image=_read_image(entry),
        attributes=attributes,
    )
