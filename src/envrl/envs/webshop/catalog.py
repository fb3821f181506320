"""Loading a catalogue: products cleaned, prices drawn, attributes and instructions joined to them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from sys import intern
from typing import Any

from envrl.envs.webshop.cleaning import NO_ATTRIBUTES, Entry, clean_product
from envrl.envs.webshop.files import read_entries, read_products, require_files
from envrl.envs.webshop.records import Catalog, Product
from envrl.errors import ConfigFault, DataFault
from envrl.untrusted import shown

_LONGEST_ASIN = 10


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the attribute file asks of a product: the synthetic goal's text and attributes, or None."""

    text: str | None
    attributes: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Products of the file that are not in the catalogue: identifier ``nan``, too long, or seen before."""

    nameless: int = 0
    too_long: int = 0
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class LoadedCatalog:
    """A catalogue and what goals are made from.

    Attributes:
        catalog: Products, prices and attributes.
        instructions: Identifier to what the attribute file asks; products it doesn't name are absent.
        skipped: How many products were left out, and why.
    """

    catalog: Catalog
    instructions: Mapping[str, Instruction]
    skipped: Skipped


@dataclass(frozen=True, slots=True)
class _AttributeEntry:
    attributes: tuple[str, ...]
    instruction: Instruction


def _optional_texts(entry: Entry, key: str) -> tuple[str, ...] | None:
    return None if entry.raw.get(key) is None else tuple(map(intern, entry.texts(key)))


def _attribute_entry(path: Path, asin: str, raw: Any) -> _AttributeEntry:
    name = f"{path}: entry {asin}"
    if not isinstance(raw, dict):
        raise DataFault(f"{name} is a {type(raw).__name__}, not an object: correct or remove it")
    entry = Entry(raw, name)
    text = None if raw.get("instruction") is None else entry.text("instruction")
    attributes = _optional_texts(entry, "attributes") if "attributes" in raw else NO_ATTRIBUTES
    if attributes is None:
        entry.fail("attributes", "holds null, not a list of texts")
    return _AttributeEntry(attributes, Instruction(text, _optional_texts(entry, "instruction_attributes")))


def read_attributes(path: Path) -> dict[str, _AttributeEntry]:
    """Identifier to attributes and instruction, from the attribute file.

    Raises:
        DataFault: The file is missing or broken, or an entry's key holds the wrong kind of value.
    """
    return {asin: _attribute_entry(path, asin, raw) for asin, raw in read_entries(path)}


def draw_price(product: Product, rng: random.Random) -> float:
    """The one price a purchase is measured by, in dollars: drawn once between the two ends of a range."""
    if len(product.pricing) == 1:
        return product.pricing[0]
    low, high = product.pricing
    return rng.uniform(low, high)


def redraw_prices(catalog: Catalog, rng: random.Random) -> Catalog:
    """The same products with prices drawn anew, in catalogue order: one draw per product with a range."""
    return replace(catalog, prices={p.asin: draw_price(p, rng) for p in catalog.products})


def _by_attribute(products: Iterable[Product]) -> dict[str, tuple[str, ...]]:
    found: dict[str, dict[str, None]] = {}
    for product in products:
        for attribute in product.attributes:
            found.setdefault(attribute, {})[product.asin] = None
    return {attribute: tuple(asins) for attribute, asins in found.items()}


class _Shelf:
    """Products as they come in, and which were turned away."""

    def __init__(self, items: Path) -> None:
        self._items = items
        self.products: dict[str, Product] = {}
        self.nameless = self.too_long = self.repeated = 0

    def admit(self, position: int, raw: dict[str, Any]) -> Entry | None:
        """The entry, or None where the product is to be left out."""
        asin = raw.get("asin", "?")
        named = asin if isinstance(asin, str) else shown(asin)
        entry = Entry(raw, f"{self._items}: product {position} (from 0, asin {named})")
        asin = entry.text("asin")
        if asin == "nan":
            self.nameless += 1
        elif len(asin) > _LONGEST_ASIN:
            self.too_long += 1
        elif asin in self.products:
            self.repeated += 1
        else:
            return entry
        return None


def load_catalog(
    items: Path, attributes: Path, *, limit: int | None = None, rng: random.Random
) -> LoadedCatalog:
    """Loads a catalogue in the official format.

    The product list is read one product at a time, so that memory grows with what is kept only.

    Args:
        items: Product list.
        attributes: Attribute file.
        limit: Number of entries of the list to read, counted before any is left out; None reads all.
        rng: Draws one price for each product with a price range, in file order.

    Raises:
        ConfigFault: ``limit`` is below 1.
        DataFault: A file is missing or broken, or a product is malformed.
    """
    if limit is not None and limit < 1:
        raise ConfigFault(
            f"a catalogue of {limit} products is asked for: ask for at least 1, or None for all"
        )
    require_files(items, attributes)
    described = read_attributes(attributes)
    shelf = _Shelf(items)
    prices: dict[str, float] = {}
    instructions: dict[str, Instruction] = {}
    for position, raw in read_products(items):
        if limit is not None and position >= limit:
            break
        entry = shelf.admit(position, raw)
        if entry is None:
            continue
        # Taken out, so that entries are not held twice while the catalogue fills.
        about = described.pop(raw["asin"], None)
        product = clean_product(entry, about.attributes if about else NO_ATTRIBUTES)
        shelf.products[product.asin] = product
        prices[product.asin] = draw_price(product, rng)
        if about:
            instructions[product.asin] = about.instruction
    if not shelf.products:
        raise DataFault(f"{items} has no usable product: fetch the file again")
    products = tuple(shelf.products.values())
    return LoadedCatalog(
        Catalog(products, shelf.products, prices, _by_attribute(products)),
        instructions,
        Skipped(shelf.nameless, shelf.too_long, shelf.repeated),
    )
