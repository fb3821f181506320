"""What customers want: goals written by people, and goals put together from attributes and options."""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product as combinations
from math import prod
from pathlib import Path

from envrl.envs.webshop.catalog import Instruction, LoadedCatalog
from envrl.envs.webshop.cleaning import Entry
from envrl.envs.webshop.files import read_entries
from envrl.envs.webshop.records import Catalog, Goal, Product
from envrl.errors import DataFault

PRICE_RANGE: tuple[float, ...] = tuple(10.0 * step for step in range(1, 100))
"""Highest acceptable prices in dollars that a goal may name: 10, 20, ..., 990."""
NO_PRICE_LIMIT = 1_000_000.0
"""Highest acceptable price of a goal that names none, in dollars."""

_PRICE_CLAUSE = re.compile(r", and price lower than \d+\.\d{2} dollars$")
_PRICE_CANDIDATES = 4
_PRICE_DRAWN = 2
_MOST_COMBINATIONS = 250_000


@dataclass(frozen=True, slots=True)
class HumanInstruction:
    """One instruction a person wrote for a product: text, attributes asked for, option values asked for."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HumanGoals:
    """Goals people wrote, and how many instructions were left out because they ask for no attribute."""

    goals: tuple[Goal, ...]
    skipped: int


def draw_price_limit(price: float, rng: random.Random) -> tuple[float, str]:
    """Highest acceptable price for a product that costs ``price`` dollars, and the clause that says so.

    The larger of two members of :data:`PRICE_RANGE`, drawn from the first four above the price. From 980
    dollars on there are not two: no limit, no clause, no draw.
    """
    first = bisect_right(PRICE_RANGE, price)
    above = PRICE_RANGE[first : first + _PRICE_CANDIDATES]
    if len(above) < _PRICE_DRAWN:
        return NO_PRICE_LIMIT, ""
    limit = max(rng.sample(above, _PRICE_DRAWN))
    return limit, f", and price lower than {limit:.2f} dollars"


def wording(goal: Goal) -> str:
    """The instruction without its price clause: what was asked for before a price limit was drawn."""
    return _PRICE_CLAUSE.sub("", goal.instruction_text)


def _goal(
    product: Product,
    text: str,
    attributes: tuple[str, ...],
    price_limit: float,
    options: tuple[str, ...] | Mapping[str, str],
    weight: float = 1.0,
) -> Goal:
    return Goal(
        asin=product.asin,
        category=product.category,
        query=product.query,
        name=product.title,
        product_category=product.product_category,
        instruction_text=text,
        attributes=attributes,
        price_upper=price_limit,
        options=options,
        weight=weight,
    )


def read_human(path: Path, catalog: Catalog) -> dict[str, tuple[HumanInstruction, ...]]:
    """Identifier to the instructions people wrote for it; only products of the catalogue are kept.

    Raises:
        DataFault: The file is missing or broken, or an instruction is malformed.
    """
    found: dict[str, tuple[HumanInstruction, ...]] = {}
    for asin, entries in read_entries(path):
        if asin not in catalog.by_asin:
            continue
        if not isinstance(entries, list) or not all(isinstance(raw, dict) for raw in entries):
            raise DataFault(f"{path}: entry {asin} is not a list of objects: correct or remove it")
        named = [
            Entry(raw, f"{path}: entry {asin}, instruction {i} (from 0)") for i, raw in enumerate(entries)
        ]
        found[asin] = tuple(
            HumanInstruction(
                entry.text("instruction"),
                entry.texts("instruction_attributes"),
                entry.texts("instruction_options"),
            )
            for entry in named
        )
    return found


def human_goals(
    catalog: Catalog, human: Mapping[str, tuple[HumanInstruction, ...]], rng: random.Random
) -> HumanGoals:
    """Goals from the instructions people wrote, in catalogue order; each weighs 1.

    Args:
        catalog: Products and prices.
        human: What :func:`read_human` gives.
        rng: Draws one price limit for each instruction that is kept.

    Raises:
        DataFault: No instruction belongs to the catalogue.
    """
    goals: list[Goal] = []
    skipped = 0
    for product in catalog.products:
        for instruction in human.get(product.asin, ()):
            if not instruction.attributes:
                skipped += 1
                continue
            limit, clause = draw_price_limit(catalog.prices[product.asin], rng)
            text = instruction.text.strip(".") + clause
            goals.append(_goal(product, text, instruction.attributes, limit, instruction.options))
    if not goals:
        raise DataFault(
            "no human instruction belongs to a product of the catalogue: take the full product list, or "
            "synthetic goals"
        )
    return HumanGoals(tuple(goals), skipped)


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked of one product before options are chosen."""

    product: Product
    text: str
    attributes: tuple[str, ...]
    price_limit: float
    price_clause: str

    @property
    def combinations(self) -> int:
        """Number of ways to choose one value of every option group."""
        return prod(map(len, self.product.options.values()))

    def goals(self, weight: float) -> Iterator[Goal]:
        """One goal per combination of option values; groups by name, the last one varies fastest."""
        groups = sorted(self.product.options)
        for values in combinations(*(self.product.options[group] for group in groups)):
            chosen = dict(zip(groups, values, strict=True))
            wish = ", and ".join(f"{group}: {value}" for group, value in chosen.items())
            text = self.text + (f" with {wish}" if chosen else "") + self.price_clause
            yield _goal(self.product, text, self.attributes, self.price_limit, chosen, weight)


def _requests(loaded: LoadedCatalog, rng: random.Random) -> Iterator[_Request]:
    for product in loaded.catalog.products:
        instruction = loaded.instructions.get(product.asin)
        if instruction is None:
            raise DataFault(
                f"product {product.asin} has no entry in the attribute file, which synthetic goals need: "
                "take the attribute file that belongs to the product list"
            )
        if instruction.text is None:
            continue
        attributes = _attributes_of(product, instruction)
        limit, clause = draw_price_limit(loaded.catalog.prices[product.asin], rng)
        yield _Request(product, instruction.text, attributes, limit, clause)


def _attributes_of(product: Product, instruction: Instruction) -> tuple[str, ...]:
    if not instruction.attributes:
        raise DataFault(
            f"product {product.asin} has an instruction but no 'instruction_attributes' in the attribute "
            "file: add them or set the instruction to null"
        )
    return instruction.attributes


def synthetic_goals(loaded: LoadedCatalog, rng: random.Random) -> tuple[Goal, ...]:
    """Goals put together from the attribute file: one per product and combination of its option values.

    A goal weighs the mean of 1 / count over its attributes, where count is how many goals ask for the
    attribute: rare wishes are drawn more often.

    Args:
        loaded: Catalogue and instructions.
        rng: Draws one price limit for each product with an instruction, in catalogue order.

    Raises:
        DataFault: A product is not in the attribute file, an instruction has no attributes, or there is
            no goal at all.
    """
    requests = list(_requests(loaded, rng))
    counts: Counter[str] = Counter()
    for request in requests:
        if request.combinations > _MOST_COMBINATIONS:
            raise DataFault(
                f"product {request.product.asin} has {request.combinations} combinations of options, "
                f"and each is a goal: leave options out until there are at most {_MOST_COMBINATIONS}"
            )
        for attribute in request.attributes:
            counts[attribute] += request.combinations
    goals: list[Goal] = []
    for request in requests:
        if request.combinations:
            shares = [1 / counts[attribute] for attribute in request.attributes]
            goals += request.goals(sum(shares) / len(shares))
    if not goals:
        raise DataFault("the attribute file has no instruction for any product: take the matching file")
    return tuple(goals)
