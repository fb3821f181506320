"""Goals by content: identifiers, panels that share nothing, goals that no purchase meets."""

import random
from dataclasses import replace

import pytest
from webshop_data import fixture_shop, official_files

from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.goal_sets import (
    best_options,
    goal_id,
    make_panels,
    report_unreachable,
)
from envrl.envs.webshop.goals import synthetic_goals
from envrl.envs.webshop.ordering import order_goals
from envrl.envs.webshop.records import Catalog, Goal, Product
from envrl.errors import ConfigFault, DataFault

GOAL = Goal(
    asin="B1",
    category="garden",
    query="stools",
    name="Oak Stool",
    product_category="Home › Stools",
    instruction_text="Find me oak, and price lower than 40.00 dollars",
    attributes=("oak",),
    price_upper=40.0,
    options={"color": "red", "size": "s"},
)
PRODUCT = Product(
    asin="B1",
    title="Oak Stool",
    description="",
    bullets=(),
    price_text="$20.0",
    pricing=(20.0,),
    category="garden",
    query="stools",
    product_category="Home › Stools",
    options={"color": ("red", "titanium"), "size": ("s", "l")},
    option_images={},
    image="",
    attributes=("oak",),
)
CATALOG = Catalog((PRODUCT,), {"B1": PRODUCT}, {"B1": 20.0})


def test_id_is_the_one_worked_out_by_hand() -> None:
    # printf '%s' '["B1", "garden", "stools", "Oak Stool", "Home \u203a Stools", "Find me oak, and price
    # lower than 40.00 dollars", ["oak"], 40.0, true, [["color", "red"], ["size", "s"]]]' | b2sum -l 128
    assert goal_id(GOAL) == "123e84cf3832a7bd7dd41070d4474504"


def test_id_depends_on_content_only() -> None:
    same = replace(GOAL, weight=0.1, price_upper=40, options={"size": "s", "color": "red"})
    assert goal_id(same) == goal_id(GOAL)
    others = [
        replace(GOAL, asin="B2"),
        replace(GOAL, category="fashion"),
        replace(GOAL, query="chairs"),
        replace(GOAL, name="Pine Stool"),
        replace(GOAL, product_category="Home"),
        replace(GOAL, instruction_text="Find me oak"),
        replace(GOAL, attributes=("oak", "pine")),
        replace(GOAL, price_upper=50.0),
        replace(GOAL, options={"color": "red", "size": "l"}),
        replace(GOAL, options={}),
        replace(GOAL, options=()),
        replace(GOAL, options=("red", "s")),
    ]
    assert len({goal_id(goal) for goal in [GOAL, *others]}) == len(others) + 1


def numbered(number: int) -> Goal:
    return replace(GOAL, asin=f"B{number}", instruction_text=f"Find me {number}", options={})


def test_panels_take_the_first_and_exclude_what_gives_them_away() -> None:
    test = [replace(numbered(0), options={"color": "red", "size": "s"}), numbered(1)]
    alike = [
        # the same wording, for another product and price
        replace(numbered(2), instruction_text="Find me 1, and price lower than 70.00 dollars"),
        # the same product and options, asked for in other words
        replace(numbered(0), instruction_text="I want it", options={"size": "s", "color": "red"}),
    ]
    rest = [numbered(3), replace(numbered(0), instruction_text="Other", options={"color": "blue"})]
    panels = make_panels([*test, test[0], alike[0], rest[0], alike[1], rest[1], rest[0]], test_goals=2)
    assert panels.test == tuple(test)
    assert panels.train == tuple(rest)
    assert (panels.excluded, panels.repeated) == (2, 2)


def test_wished_values_count_in_whatever_order() -> None:
    test = replace(numbered(0), options=("red", "s"))
    alike = replace(numbered(0), instruction_text="Other", options=("s", "red"))
    panels = make_panels([test, alike, numbered(1)], test_goals=1)
    assert panels.train == (numbered(1),)


@pytest.mark.parametrize(("goals", "test_goals"), [(3, 3), (3, 4), (3, 0)])
def test_panels_that_leave_nothing_are_refused(goals: int, test_goals: int) -> None:
    with pytest.raises(ConfigFault, match=f"panel of {test_goals} "):
        make_panels([numbered(i) for i in range(goals)], test_goals=test_goals)


def test_a_goal_its_own_value_does_not_meet_is_reported() -> None:
    # The chosen titanium is compared as its colour "tan", the wanted one as "color titanium".
    hopeless = replace(GOAL, options={"color": "titanium", "size": "s"})
    report = report_unreachable([GOAL, hopeless], CATALOG)
    assert report.goals == 2
    (item,) = report.unreachable
    assert item.goal is hopeless
    assert item.options == {"size": "s"}
    # One attribute, one of two options and the price of four parts.
    assert item.best.total == 0.75
    assert report.shortfalls == {"options": 1}
    assert report.summary() == "1 of 2 goals (50.0 %) can't be bought at reward 1 (options: 1)"


def test_attributes_and_price_are_reported_too() -> None:
    unmet = replace(GOAL, attributes=("oak", "waterproof"), price_upper=10.0)
    report = report_unreachable([unmet], CATALOG)
    assert report.shortfalls == {"attributes": 1, "price": 1}
    assert report.unreachable[0].best.total == 0.6  # oak, red and s of five parts
    assert report_unreachable([], CATALOG).summary() == "0 of 0 goals (0.0 %) can't be bought at reward 1"


def test_best_options_meet_as_many_wishes_as_one_value_per_group_can() -> None:
    product = replace(PRODUCT, options={"a": ("one", "two", "one three"), "b": ("two", "four")})
    wanted = replace(GOAL, options=("three", "one", "two"))
    assert best_options(product, wanted) == {"a": "one three", "b": "two"}
    # "two" of the second group would bar "four".
    assert best_options(product, replace(GOAL, options=("two", "four"))) == {"a": "two", "b": "four"}
    # Two wishes that only one group offers can't both be met.
    report = report_unreachable([replace(GOAL, options=("s", "l"))], CATALOG)
    assert [item.best.r_option for item in report.unreachable] == [0.5]


def test_a_goal_of_another_catalogue_is_refused() -> None:
    with pytest.raises(DataFault, match="product B9 is not in the catalogue"):
        report_unreachable([replace(GOAL, asin="B9")], CATALOG)


def test_every_goal_of_the_fixture_can_be_reached() -> None:
    loaded = fixture_shop()
    report = report_unreachable(synthetic_goals(loaded, random.Random(0)), loaded.catalog)
    assert (report.goals, report.unreachable) == (20, ())


def test_panels_of_the_official_products() -> None:
    folder = official_files()
    rng = random.Random(0)
    items, about = folder / "items_shuffle_1000.json", folder / "items_ins_v2_1000.json"
    loaded = load_catalog(items, about, rng=rng)
    ordered = order_goals(synthetic_goals(loaded, rng), rng)
    panels = make_panels(ordered.goals)
    assert len(panels.test) == 500
    assert not {goal_id(goal) for goal in panels.test} & {goal_id(goal) for goal in panels.train}
    assert len(panels.test) + len(panels.train) + panels.excluded + panels.repeated == 6910
    report = report_unreachable(ordered.goals, loaded.catalog)
    assert (len(report.unreachable), report.shortfalls) == (458, {"options": 458})
