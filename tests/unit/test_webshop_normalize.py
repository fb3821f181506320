"""Colours and sizes against the original's own cases and recorded outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envrl.envs.webshop.normalize import (
    COLORS,
    SIZE_PATTERNS,
    SIZES,
    normalize_color,
    normalize_color_size,
    normalize_named_option,
    normalize_size,
)

_DATA = Path(__file__).parents[1] / "data" / "webshop"
_CASES = json.loads((_DATA / "cases.json").read_text(encoding="utf-8"))
_RECORDED = json.loads((_DATA / "derived_reward_cases.json").read_text(encoding="utf-8"))
_CONSTANTS = json.loads((_DATA / "constants.json").read_text(encoding="utf-8"))


def test_names_are_the_recorded_ones() -> None:
    assert list(COLORS) == _CONSTANTS["COLOR_SET"]
    assert list(SIZES) == _CONSTANTS["SIZE_SET"]
    assert list(SIZE_PATTERNS) == _CONSTANTS["SIZE_PATTERNS_after_SIZE_SET"]


@pytest.mark.parametrize("case", [*_CASES["test_normalize.py::test_normalize_color"], *_RECORDED["color"]])
def test_color(case: dict[str, Any]) -> None:
    assert normalize_color(case["input"]) == case["expect"]


def test_color_and_size_of_a_price_list() -> None:
    case = _CASES["test_normalize.py::test_normalize_color_size"]
    names = normalize_color_size({tuple(key): price for key, price in case["input"]})
    assert names.colors == case["expect"]["color_mapping"]
    assert names.sizes == case["expect"]["size_mapping"]


def test_price_list_is_read_in_lower_case() -> None:
    names = normalize_color_size({("B1", "Dark Red", "X-Large"): 1.0})
    assert names.colors["dark red"] == "dark"
    assert names.sizes["x-large"] == "x-large"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("9.5", "numeric_size"),
        ("9.5.1", "not_matched"),
        ("", "not_matched"),
        ("32w x 34l", "(.*)w x(.*)l"),
        ("16 neck 34 sleeve", "(.*)neck(.*)sleeve"),
        ('42"', '(\\d+)"$'),
        ("30cm", "(\\d+)cm$"),
        ("30m", "(\\d+)m$"),
        ("pack of 2", "pack"),
        ("2-3", "(.*)\\-(.*)"),
    ],
)
def test_size(size: str, expected: str) -> None:
    assert normalize_size(size) == expected


def test_named_option_keeps_its_group_unless_it_is_a_color() -> None:
    assert normalize_named_option("color", "navy") == "navy"
    assert normalize_named_option("color", "navy blue") == "('color', 'navy blue')"
    assert normalize_named_option("wood", "oak") == "('wood', 'oak')"
    assert (
        normalize_named_option("stone", "red") == "red"
    )  # the first colour of the list wins, not the first place
    assert normalize_named_option("stone", "small") == "stone"
