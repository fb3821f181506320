"""Where the WebShop tests find their data, and raw entries in the official format."""

from __future__ import annotations

import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from envrl.envs.webshop.catalog import LoadedCatalog, load_catalog

DATA = Path(__file__).parent.parent / "data" / "webshop"
FIXTURE = DATA / "fixture"
ITEMS, ATTRIBUTES, HUMAN = (
    FIXTURE / "items.json",
    FIXTURE / "items_ins.json",
    FIXTURE / "items_human_ins.json",
)


def official_files() -> Path:
    """Folder of the official 1,000 products; skips the test without it."""
    folder = os.environ.get("WEBSHOP_DATA")
    if not folder:
        pytest.skip("WEBSHOP_DATA is not set: the official 1,000 products are needed")
    return Path(folder)


@cache
def recorded() -> dict[str, Any]:
    """What the original code made of the fixture."""
    content: dict[str, Any] = json.loads((DATA / "derived_traces.json").read_text(encoding="utf-8"))
    return content


def fixture_shop(seed: int = 0) -> LoadedCatalog:
    """The fixture with prices drawn from this seed."""
    return load_catalog(ITEMS, ATTRIBUTES, rng=random.Random(seed))


def raw_product(asin: str = "B000000001", **changes: Any) -> dict[str, Any]:
    """A well-formed entry of a product list; a change to ``...`` leaves the key out."""
    entry = {
        "asin": asin,
        "name": "Oak Stool",
        "full_description": "A stool of oak.",
        "small_description": ["Solid oak"],
        "pricing": "$20.00",
        "category": "garden",
        "query": " Stools ",
        "product_category": "Home › Furniture › Stools",
        "customization_options": {
            "Color": [{"value": "Red", "image": None}, {"value": "Blue", "image": "b"}]
        },
        "images": ["one", "two"],
    } | changes
    return {key: value for key, value in entry.items() if value is not ...}


def write_shop(folder: Path, products: Any, attributes: Any = None) -> tuple[Path, Path]:
    """Writes a product list and an attribute file; by default each product asks for oak."""
    if attributes is None:
        asked = {"attributes": ["oak"], "instruction": "Find me oak", "instruction_attributes": ["oak"]}
        attributes = {product["asin"]: asked for product in products}
    items, about = folder / "items.json", folder / "items_ins.json"
    items.write_text(json.dumps(products), encoding="utf-8")
    about.write_text(json.dumps(attributes), encoding="utf-8")
    return items, about
