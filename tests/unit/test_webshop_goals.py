"""Goals of the shop: as the original makes, orders, filters and draws them."""

import random
import string
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from webshop_data import (
    ATTRIBUTES,
    HUMAN,
    ITEMS,
    fixture_shop,
    official_files,
    raw_product,
    recorded,
    write_shop,
)

from envrl.envs.webshop.catalog import LoadedCatalog, load_catalog
from envrl.envs.webshop.goals import (
    PRICE_RANGE,
    HumanInstruction,
    draw_price_limit,
    human_goals,
    read_human,
    synthetic_goals,
    wording,
)
from envrl.envs.webshop.ordering import (
    SPLITS,
    OrderedGoals,
    PaperWorkers,
    order_goals,
    paper_goals,
    random_index,
    split_goals,
)
from envrl.envs.webshop.records import Goal
from envrl.errors import ConfigFault, DataFault


def shop_and_goals(
    seed: int, *, human: bool = False, **options: Any
) -> tuple[LoadedCatalog, OrderedGoals, random.Random]:
    """The fixture's shop and goals, with one generator from the first price on."""
    rng = random.Random(seed)
    loaded = load_catalog(ITEMS, ATTRIBUTES, rng=rng)
    if human:
        goals = human_goals(loaded.catalog, read_human(HUMAN, loaded.catalog), rng).goals
    else:
        goals = synthetic_goals(loaded, rng)
    return loaded, order_goals(goals, rng, **options), rng


def first_session(ordered: OrderedGoals, rng: random.Random) -> tuple[str, str]:
    """Name and goal of the first session that is drawn, after everything else was."""
    name = "".join(rng.choices(string.ascii_lowercase, k=10))
    return name, ordered.goals[random_index(ordered.cumulative_weights, rng)].instruction_text


def texts(ordered: OrderedGoals) -> list[str]:
    return [goal.instruction_text for goal in ordered.goals]


@pytest.mark.parametrize("human", [False, True])
@pytest.mark.parametrize("seed", [0, 42, 233])
def test_goals_are_those_of_the_original(seed: int, human: bool) -> None:
    expected = recorded()["goals"][f"original human={human:d} prior_seed={seed} shuffle=233"]
    _, ordered, rng = shop_and_goals(seed, human=human)
    wanted = [goal if isinstance(goal, str) else goal["instruction_text"] for goal in expected["goals"]]
    assert texts(ordered) == wanted
    assert first_session(ordered, rng) == (expected["first_random_session"], expected["first_goal"])


@pytest.mark.parametrize("human", [False, True])
@pytest.mark.parametrize("seed", [0, 42, 233])
def test_paper_mode_is_the_worker_seeded_reshuffle(seed: int, human: bool) -> None:
    expected = recorded()["goals"][f"verl-agent human={human:d} seed={seed}"]
    loaded = fixture_shop(seed=7)
    rng = random.Random()
    instructions = read_human(HUMAN, loaded.catalog) if human else None
    priced = paper_goals(loaded, rng, seed, human=instructions)
    assert texts(priced.ordered) == expected["instructions"]
    assert first_session(priced.ordered, rng) == (expected["first_random_session"], expected["first_goal"])
    assert dict(priced.catalog.prices) == dict(fixture_shop(seed=seed).catalog.prices)


@pytest.mark.parametrize("human", [False, True])
def test_whole_goals_are_those_of_the_original(human: bool) -> None:
    expected = recorded()["goals"][f"original human={human:d} prior_seed=42 shuffle=233"]["goals"]
    _, ordered, _ = shop_and_goals(42, human=human)
    for goal, record in zip(ordered.goals, expected, strict=True):
        options = dict(goal.options) if isinstance(goal.options, Mapping) else list(goal.options)
        assert options == record["goal_options"]
        assert list(goal.attributes) == record["attributes"]
        for field in ("asin", "category", "query", "name", "product_category", "price_upper", "weight"):
            assert getattr(goal, field) == record[field], field


def test_limit_draws_by_weight_and_filter_keeps() -> None:
    goals = recorded()["goals"]
    _, limited, _ = shop_and_goals(9, limit=5)
    assert texts(limited) == goals["original human=0 prior_seed=9 limit_goals=5"]
    _, kept, _ = shop_and_goals(9, keep=lambda _, goal: goal.category == "fashion")
    assert texts(kept) == goals["original human=0 prior_seed=9 filter category==fashion"]
    _, everything, _ = shop_and_goals(9, limit=1000)
    assert len(everything.goals) == 20
    _, first, _ = shop_and_goals(9, keep=lambda place, _: place < 3)
    assert texts(first) == texts(everything)[:3]


def test_impossible_limits_and_filters_are_refused() -> None:
    with pytest.raises(ConfigFault, match="limit of 0"):
        shop_and_goals(9, limit=0)
    with pytest.raises(ConfigFault, match="no goal is left of 20"):
        shop_and_goals(9, keep=lambda *_: False)


def test_price_limit_is_the_larger_of_two_of_the_next_four() -> None:
    assert (len(PRICE_RANGE), PRICE_RANGE[0], PRICE_RANGE[-1]) == (99, 10.0, 990.0)
    rng = random.Random(0)
    drawn = {draw_price_limit(20.0, rng) for _ in range(200)}
    # 20 itself doesn't count; 30, the smallest of 30 to 60, is never the larger of two.
    assert drawn == {(limit, f", and price lower than {limit:.2f} dollars") for limit in (40.0, 50.0, 60.0)}
    assert {draw_price_limit(975.0, rng)[0] for _ in range(50)} == {990.0}


@pytest.mark.parametrize("price", [980.0, 1299.0])
def test_a_dear_product_has_no_price_limit_and_draws_nothing(price: float) -> None:
    rng = random.Random(0)
    before = rng.getstate()
    assert draw_price_limit(price, rng) == (1_000_000.0, "")
    assert rng.getstate() == before


def test_drawing_an_index_looks_one_place_too_far() -> None:
    # The original's own test.
    rng = random.Random(24)
    weights = [rng.randint(0, 10) for _ in range(50)]
    cumulative = [0, *accumulate(weights)]
    assert [random_index(cumulative, rng) for _ in range(3)] == [44, 15, 36]
    counts = [0, 0, 0, 0]
    for _ in range(4000):
        counts[random_index((0.0, 1.0, 2.0, 3.0, 4.0), rng)] += 1
    assert counts[0] == 0
    assert counts[1:] == [pytest.approx(n, rel=0.15) for n in (1000, 1000, 2000)]
    assert random_index((0.0, 1.0), rng) == 0


@pytest.mark.parametrize(
    ("count", "start"),
    [
        (12087, [8655, 10304, 6940, 2750, 3667, 2144, 3577, 9548]),
        (6910, [3963, 2638, 2193, 1856, 4358, 6149, 2504, 3220]),
    ],
)
def test_order_is_the_original_shuffle(count: int, start: list[int]) -> None:
    goal = shop_and_goals(0)[1].goals[0]
    goals = [replace(goal, price_upper=float(place)) for place in range(count)]
    ordered = order_goals(goals, random.Random(5))
    assert [int(goal.price_upper) for goal in ordered.goals[:8]] == start


def made(folder: Path, products: list[dict[str, Any]], attributes: Any = None) -> tuple[Goal, ...]:
    rng = random.Random(0)
    return synthetic_goals(load_catalog(*write_shop(folder, products, attributes), rng=rng), rng)


def test_options_vary_by_name_and_weights_count_combinations(tmp_path: Path) -> None:
    groups = {"Size": [{"value": "S"}, {"value": "L"}], "Color": [{"value": "Red"}, {"value": "Blue"}]}
    asked = {"attributes": [], "instruction": "Find me x", "instruction_attributes": ["oak"]}
    about = {"B0": asked, "B1": asked | {"instruction_attributes": ["oak", "pine"]}, "B2": {}}
    products = [
        raw_product("B0", customization_options=groups),
        raw_product("B1", customization_options=""),
        raw_product("B2"),
    ]
    goals = made(tmp_path, products, about)
    assert [dict(goal.options) for goal in goals if isinstance(goal.options, Mapping)] == [
        {"color": "red", "size": "s"},
        {"color": "red", "size": "l"},
        {"color": "blue", "size": "s"},
        {"color": "blue", "size": "l"},
        {},
    ]
    assert wording(goals[1]) == "Find me x with color: red, and size: l"
    assert wording(goals[4]) == "Find me x"
    # Five goals ask for oak, one for pine: (1/5 + 1) / 2 = 0.6.
    assert [goal.weight for goal in goals] == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.6])
    assert len({goal.price_upper for goal in goals[:4]}) == 1


def test_a_group_without_values_gives_no_goal_but_draws_a_price_limit(tmp_path: Path) -> None:
    empty = raw_product("B0", customization_options={"Size": []})
    other = raw_product("B1", customization_options="")
    goals = made(tmp_path, [empty, other])
    rng = random.Random(0)
    draw_price_limit(20.0, rng)
    assert [(goal.asin, goal.price_upper) for goal in goals] == [("B1", draw_price_limit(20.0, rng)[0])]


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({}, "B000000001 has no entry in the attribute file"),
        ({"B000000001": {"instruction": "Find me x"}}, "B000000001 has an instruction but no"),
        ({"B000000001": {"attributes": ["x"]}}, "no instruction for any product"),
    ],
)
def test_impossible_synthetic_goals_are_refused(tmp_path: Path, about: Any, said: str) -> None:
    with pytest.raises(DataFault, match=said):
        made(tmp_path, [raw_product()], about)


def test_human_goals_strip_dots_and_skip_those_without_attributes() -> None:
    loaded = fixture_shop()
    instructions = {
        "B0TEA00001": (
            HumanInstruction("..some tea. now..", ("gluten free",), ("a", "b")),
            HumanInstruction("nothing in particular", (), ("a",)),
        )
    }
    made = human_goals(loaded.catalog, instructions, random.Random(0))
    assert made.skipped == 1
    assert [(g.instruction_text, g.options, g.weight) for g in made.goals] == [
        ("some tea. now", ("a", "b"), 1.0)  # 1,299 dollars: no price limit
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"B0TEA00001": {"instruction": "x"}}', "entry B0TEA00001 is not a list of objects"),
        ('{"B0TEA00001": [{"instruction": "x", "instruction_attributes": []}]}', "instruction_options"),
        ('{"B0TEA00001": [{"instruction": 4}]}', "instruction 0 .*key 'instruction' holds 4, not text"),
    ],
)
def test_malformed_human_instructions_are_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "human.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataFault, match=said):
        read_human(path, fixture_shop().catalog)


def test_human_goals_need_a_product_of_the_catalogue(tmp_path: Path) -> None:
    path = tmp_path / "human.json"
    path.write_text('{"B0ELSEWHERE": [{"instruction": 4}]}', encoding="utf-8")
    catalog = fixture_shop().catalog
    assert read_human(path, catalog) == {}
    with pytest.raises(DataFault, match="no human instruction belongs"):
        human_goals(catalog, {}, random.Random(0))


def test_official_splits() -> None:
    goal = shop_and_goals(0)[1].goals[0]
    goals = [replace(goal, price_upper=float(place)) for place in range(12_087)]
    test, held_out, train = (split_goals(goals, name) for name in SPLITS)
    assert (len(test), len(held_out), len(train)) == (500, 1000, 10_587)
    assert (test[0], held_out[0], train[0], train[-1]) == (goals[0], goals[500], goals[1500], goals[-1])
    with pytest.raises(ConfigFault, match="unknown split 'dev'"):
        split_goals(goals, "dev")
    with pytest.raises(ConfigFault, match="split 'train' of 1500 goals is empty"):
        split_goals(goals[:1500], "train")


def test_paper_workers_have_the_seeds_and_indices_of_the_paper() -> None:
    train = PaperWorkers(seed=0, groups=3, group_size=2)
    assert train.seeds == (0, 0, 1, 1, 2, 2)
    # RandomState(0).choice(range(500, 6910), size=3, replace=False), twice
    assert train.draws(6910, resets=2) == (
        (2793, 2793, 3742, 3742, 1953, 1953),
        (792, 792, 2893, 2893, 2162, 2162),
    )
    validation = PaperWorkers(seed=0, groups=3, group_size=1, validation=True)
    assert validation.seeds == (1000, 1001, 1002)
    # RandomState(1000).choice(range(500), size=3, replace=False), twice
    assert validation.draws(6910, resets=2) == ((319, 207, 22), (417, 304, 117))
    assert all(type(index) is int for drawn in train.draws(6910, 1) for index in drawn)


def test_paper_indices_mean_another_goal_in_every_group() -> None:
    loaded = fixture_shop()
    first, second = (paper_goals(loaded, random.Random(), seed).ordered for seed in (0, 1))
    assert texts(first) != texts(second)


def test_impossible_workers_are_refused() -> None:
    with pytest.raises(ConfigFault, match="0 groups of 8"):
        PaperWorkers(seed=0, groups=0, group_size=8)
    with pytest.raises(ConfigFault, match="0 goals for 2 groups"):
        PaperWorkers(seed=0, groups=2, group_size=1).draws(500, 1)


def test_the_official_products_give_6910_goals() -> None:
    folder = official_files()
    rng = random.Random(0)
    items, about = folder / "items_shuffle_1000.json", folder / "items_ins_v2_1000.json"
    loaded = load_catalog(items, about, rng=rng)
    goals = synthetic_goals(loaded, rng)
    assert len(goals) == 6910
    ordered = order_goals(goals, rng)
    assert [goals.index(goal) for goal in ordered.goals[:8]] == [
        *(3963, 2638, 2193, 1856, 4358, 6149, 2504, 3220)
    ]
    people = human_goals(loaded.catalog, read_human(folder / "items_human_ins.json", loaded.catalog), rng)
    assert (len(people.goals), people.skipped) == (13, 0)
