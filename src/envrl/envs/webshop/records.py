"""Frozen records of the shop: products as the shop shows them, goals as the customer states them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Product:
    """One cleaned product of the catalogue.

    Attributes:
        asin: Identifier, at most ten characters.
        title: Shown as the title; also the name the type reward compares.
        description: The long description.
        bullets: The feature list; only the first one is indexed.
        price_text: As shown, e.g. ``$59.0`` or ``$10.0 to $20.0``.
        pricing: The one or two numbers behind it; empty when the file has none that counts.
        category: Department, e.g. ``beauty``.
        query: The search phrase under which the product was found, lower-case.
        product_category: Path of departments, levels separated by ``›``.
        options: Option group, lower-case, to its values in file order.
        option_images: Option value to the image it shows; ``None`` where the file names none.
        image: The main image.
        attributes: What the type of product offers, the ground of the attribute reward.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    price_text: str
    pricing: tuple[float, ...]
    category: str
    query: str
    product_category: str
    options: Mapping[str, tuple[str, ...]]
    option_images: Mapping[str, str | None]
    image: str
    attributes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a customer wants: an instruction, and what the purchase is measured against.

    Attributes:
        asin: The product the goal was made from.
        category: Its department.
        query: Its search phrase.
        name: Its title.
        product_category: Its path of departments.
        instruction_text: The instruction as the customer reads it, price clause included.
        attributes: Attributes the purchase has to offer.
        price_upper: Highest acceptable price in dollars.
        options: Option values to choose: a tuple of values (human goals), or a mapping from group
            to value (synthetic goals). The reward treats the two differently.
        weight: Sampling weight.
    """

    asin: str
    category: str
    query: str
    name: str
    product_category: str
    instruction_text: str
    attributes: tuple[str, ...]
    price_upper: float
    options: tuple[str, ...] | Mapping[str, str]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Catalog:
    """The products of a shop and what is looked up in them.

    Attributes:
        products: In file order.
        by_asin: Identifier to product.
        prices: Identifier to the one price used by the reward (drawn once for two-price products).
        by_attribute: Attribute to the identifiers that have it, in catalogue order.
    """

    products: tuple[Product, ...]
    by_asin: Mapping[str, Product]
    prices: Mapping[str, float]
    by_attribute: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
