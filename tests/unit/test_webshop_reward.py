"""The purchase reward against the original's own test cases and its recorded outputs on invented inputs."""

from __future__ import annotations

import json
from math import isclose
from pathlib import Path
from typing import Any

import pytest

from envrl.envs.webshop.records import Goal, Product
from envrl.envs.webshop.reward import (
    count_attributes,
    count_options,
    purchase_reward,
    similar,
    type_reward,
)
from envrl.errors import DataFault

_DATA = Path(__file__).parents[1] / "data" / "webshop"
_CASES = json.loads((_DATA / "cases.json").read_text(encoding="utf-8"))
_RECORDED = json.loads((_DATA / "derived_reward_cases.json").read_text(encoding="utf-8"))


def _product(case: dict[str, Any], **changes: Any) -> Product:
    """A product with the case's texts; the case's name stands in for an empty title (both are one here)."""
    fields: dict[str, Any] = {
        "asin": "B000000001",
        "title": case.get("name") or case.get("Title", ""),
        "description": case.get("Description", ""),
        "bullets": tuple(case.get("BulletPoints", ())),
        "price_text": "$35.0",
        "pricing": (35.0,),
        "category": "beauty",
        "query": case.get("query", ""),
        "product_category": case.get("product_category", ""),
        "options": {},
        "option_images": {},
        "image": "",
        "attributes": tuple(case.get("Attributes", ())),
    }
    return Product(**(fields | changes))


def _goal(case: dict[str, Any]) -> Goal:
    options = case.get("goal_options", ())
    return Goal(
        asin="B000000002",
        category="beauty",
        query=case.get("query", ""),
        name=case.get("name", ""),
        product_category=case.get("product_category", ""),
        instruction_text="",
        attributes=tuple(case.get("attributes", ())),
        price_upper=case.get("price_upper", 0.0),
        options=options if isinstance(options, dict) else tuple(options),
    )


def _assert_expected(actual: float | None, expected: dict[str, Any]) -> None:
    value = expected["value"]
    if expected["op"] == "eq":
        assert actual == value
    elif expected["op"] == "lt":
        assert actual is not None
        assert actual < value
    else:
        assert actual is not None
        assert isclose(actual, value, abs_tol=expected["abs_tol"])


@pytest.mark.parametrize("case", _CASES["test_goal.py::test_get_type_reward"])
def test_type_reward_gives_the_original_cases(case: dict[str, Any]) -> None:
    reward = type_reward(_product(case["purchased"]), _goal(case["goal"]))
    assert case["expect"]
    for name, expected in case["expect"].items():
        _assert_expected(getattr(reward, name), expected)


@pytest.mark.parametrize("case", _CASES["test_goal.py::test_get_attribute_reward"])
def test_attributes_give_the_original_cases(case: dict[str, Any]) -> None:
    wanted = case["goal"]["attributes"]
    met = count_attributes(_product(case["purchased"]), wanted)
    _assert_expected(met, case["expect"]["num_attr_matches"])
    _assert_expected(met / len(wanted), case["expect"]["r_attr"])


@pytest.mark.parametrize("case", _CASES["test_goal.py::test_get_option_reward"])
def test_options_give_the_original_cases(case: dict[str, Any]) -> None:
    met = count_options(case["purchased_options"], case["goal_options"])
    _assert_expected(met, case["expect"]["num_option_matches"])


@pytest.mark.parametrize("case", _CASES["test_goal.py::test_get_reward"])
def test_total_gives_the_original_cases(case: dict[str, Any]) -> None:
    reward = purchase_reward(_product(case["purchased"]), _goal(case["goal"]), case["price"], case["options"])
    _assert_expected(reward.total, case["expect"]["total_reward"])


@pytest.mark.parametrize("case", _RECORDED["options"])
def test_options_give_the_recorded_outputs(case: dict[str, Any]) -> None:
    goal = _goal(case | {"attributes": ["soft"], "price_upper": 40.0})
    chosen = {str(i): value for i, value in enumerate(case["purchased_values"])}
    assert count_options(chosen.values(), goal.options) == case["num_option_matches"]
    assert purchase_reward(_product({}), goal, 35.0, chosen).r_option == case["r_option"]


@pytest.mark.parametrize("case", _RECORDED["attributes"])
def test_attributes_give_the_recorded_outputs(case: dict[str, Any]) -> None:
    goal = _goal({"attributes": case["attributes"], "price_upper": 40.0})
    product = _product(case)
    assert count_attributes(product, goal.attributes) == case["num_attr_matches"]
    assert purchase_reward(product, goal, 35.0, {}).r_att == case["r_attr"]


@pytest.mark.parametrize(
    ("shared_of_twelve", "query", "category", "expected"),
    [
        (0, "tea", "a › b", 0.0),  # no common noun: a match of everything else is of no use
        (1, "tea", "a › b", 0.1),  # 1/12 < 0.1, ditto
        (2, "pot", "c › d", 0.5),  # 2/12 is not above 0.2, nothing else matches
        (2, "tea", "c › d", 1.0),
        (2, "pot", "b › a", 1.0),  # two common levels, in another order
        (2, "pot", "a › c", 0.5),  # one common level is too few
        (3, "pot", "c › d", 1.0),  # 3/12 > 0.2
    ],
)
def test_type_reward_follows_the_table(
    shared_of_twelve: int, query: str, category: str, expected: float
) -> None:
    names = "alder birch cedar durian elder figtree guava hazel iris juniper kiwi laurel"
    goal = _goal({"query": "tea", "product_category": "a › b", "name": names})
    title = " ".join([*names.split()[:shared_of_twelve], "zinnia"])
    product = _product({"name": title, "query": query, "product_category": category})
    assert type_reward(product, goal, lambda text: tuple(text.split())).r_type == expected


def test_goal_name_without_nouns_needs_another_match() -> None:
    goal = _goal({"query": "tea", "product_category": "a", "name": "2 of 3"})
    bought = {"name": "Teapot", "product_category": "b"}
    assert type_reward(_product(bought | {"query": "tea"}), goal).r_type == 1.0
    assert type_reward(_product(bought | {"query": "pot"}), goal).r_type == 0.5


def test_parts_have_the_original_names_and_weights() -> None:
    goal = _goal(
        {
            "query": "mug",
            "product_category": "home › mugs",
            "name": "Clay Mug",
            "attributes": ["dishwasher safe", "hand made"],
            "goal_options": {"color": "blue"},
            "price_upper": 30.0,
        }
    )
    product = _product(
        {"name": "Blue Clay Mug", "query": "cup", "product_category": "x", "Attributes": ["hand made"]}
    )
    reward = purchase_reward(product, goal, 31.0, {"color": "light blue"})
    # 1 of 2 attributes, 1 of 1 options, price too high: 2 of 4 parts; both nouns are in the title
    assert reward.total == 0.5
    assert reward.as_dict() == {
        "r_type": 1.0,
        "r_att": 0.5,
        "w_att": 0.5,
        "query_match": False,
        "category_match": False,
        "title_score": 1.0,
        "r_option": 1.0,
        "w_option": 0.25,
        "r_price": False,
        "w_price": 0.25,
    }


def test_parts_leave_out_options_nobody_asked_for() -> None:
    goal = _goal({"name": "Clay Mug", "attributes": ["red"], "price_upper": 30.0})
    parts = purchase_reward(_product({"name": "Red Mug"}), goal, 30.0, {"size": "s"}).as_dict()
    assert "r_option" not in parts
    assert "w_option" not in parts
    assert parts["r_price"] is True  # the limit itself is still acceptable


def test_goal_without_attributes_is_named() -> None:
    with pytest.raises(DataFault, match="B000000002"):
        purchase_reward(_product({}), _goal({}), 1.0, {})


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("wash machine", "Machine-Wash!", True),
        ("tea", "tea tree", True),  # one set of words contains the other
        ("essential oil", "essential oils", True),
        ("anti slip", "non slip", False),
        ("", "", False),
        ("—", "—", False),
        ("café", "caf", True),  # letters of the Latin-1 half are dropped, not transcribed
    ],
)
def test_similar(left: str, right: str, expected: bool) -> None:
    assert similar(left, right) is expected
