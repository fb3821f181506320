"""Reading instructions and pages, in the texts of the fixture and of the environment."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest

from envrl.envs.webshop.reading import (
    Offer,
    PageKind,
    coverage,
    find_instruction,
    read_page,
    read_wish,
    words_of,
)
from envrl.errors import DataFault
from envrl.types import Observation

_TRACES = Path(__file__).parents[1] / "data" / "webshop" / "derived_traces.json"
_STEPS: list[dict[str, Any]] = json.loads(_TRACES.read_text(encoding="utf-8"))["episodes"][0]["steps"]


def _recorded(number: int) -> Observation:
    step = _STEPS[number]
    clicks = tuple(f"click[{name}]" for name in step["available"]["clickables"])
    search = ("search[<your query>]",) if step["available"]["has_search_bar"] else ()
    return Observation(step["obs"], search + clicks)


@pytest.mark.parametrize(
    ("instruction", "attributes", "kind", "options", "limit"),
    [
        (
            "Find me easy carry, high quality refillable containers with rose gold with color: navy blue, "
            "and size: 4 oz, and price lower than 40.00 dollars",
            ("easy carry", "high quality", "rose gold"),
            "refillable containers",
            {"color": "navy blue", "size": "4 oz"},
            40.0,
        ),
        (
            "Find me shampoos with tea tree for itchy scalp, damaged hair",
            ("tea tree", "itchy scalp", "damaged hair"),
            "shampoos",
            {},
            inf,
        ),
        (
            "Find me machine wash women's tops, tees & blouses with short sleeve, and price lower "
            "than 9.50 dollars",
            ("machine wash", "short sleeve"),
            "women's tops, tees & blouses",
            {},
            9.5,
        ),
        ("Find me table lamps with style: a: b", (), "table lamps", {"style": "a: b"}, inf),
        ("Find me hand made hair clips", ("hand made",), "hair clips", {}, inf),
    ],
)
def test_wish_of_an_instruction(
    instruction: str, attributes: tuple[str, ...], kind: str, options: dict[str, str], limit: float
) -> None:
    wish = read_wish(instruction)
    assert wish.attributes == attributes
    assert wish.kind == kind
    assert wish.options == options
    assert wish.price_limit == limit
    assert not wish.free


def test_free_wording_gives_its_telling_words() -> None:
    wish = read_wish("I am looking for blue running shoes, and price lower than 60.00 dollars")
    assert wish.free
    assert wish.attributes == ("blue", "running", "shoes")
    assert wish.price_limit == 60.0


def test_instruction_is_found_in_both_forms_of_a_first_page() -> None:
    assert find_instruction("'Search'\n\nYour task is to: Find me tea") == "Find me tea"
    assert find_instruction("WebShop [SEP] Instruction: [SEP] Find me tea [SEP] Search") == "Find me tea"
    with pytest.raises(DataFault, match="no instruction in 'Page 1'"):
        find_instruction("Page 1")


def test_recorded_pages_are_read() -> None:
    assert read_page(_recorded(0)).kind is PageKind.START
    results = read_page(_recorded(1))
    assert (results.kind, results.number, len(results.offers)) == (PageKind.RESULTS, 1, 10)
    assert results.offers[0] == Offer(
        "B0SHOE0001", "Acme Trail Running Shoes for Women - Lightweight Mesh Sneakers", 24.49, 39.99
    )
    assert results.offers[1] == Offer("B0SHOE0002", "Acme City Walking Shoes for Men", 59.0, 59.0)
    item = read_page(_recorded(2))
    assert item.kind is PageKind.ITEM
    assert item.title == "Acme Trail Running Shoes for Women - Lightweight Mesh Sneakers"
    assert (item.low, item.high) == (24.49, 39.99)
    assert item.options == {
        "color": ("black", "navy blue", "white | pink"),
        "size": ("6.5", "7.5 wide", "8"),
    }
    features = next(i for i, step in enumerate(_STEPS) if step["action"] == "click[features]")
    texts = read_page(_recorded(features))
    assert texts.kind is PageKind.TEXTS
    assert texts.texts == ("Rubber sole", "Lightweight mesh", "Machine washable insole")


def test_quoted_parts_are_read_alike() -> None:
    text = "'Back to Search' [SEP] '< Prev' [SEP] 'size' [SEP] 's' [SEP] 'Mug' "
    text += "[SEP] 'Price: $5.0' [SEP] 'Buy Now'"
    page = read_page(
        Observation(text, ("click[back to search]", "click[< prev]", "click[buy now]", "click[s]"))
    )
    assert (page.title, page.low, page.options) == ("Mug", 5.0, {"size": ("s",)})


def test_plurals_and_singulars_are_one_word() -> None:
    plural = words_of("knives shelves brushes dresses teas berries shoes boxes glass")
    assert plural == words_of("knife shelf brush dress tea berry shoe box glass")
    assert len(plural) == 9


def test_coverage_is_one_word_for_word_and_less_otherwise() -> None:
    text = "A mug that is Dishwasher Safe and easy to clean"
    assert coverage(("dishwasher safe", "easy clean", "easy carry", "gold rim"), text) == (
        1.0,
        0.9,
        0.45,
        0.0,
    )
