"""The page-reading expert on invented products, on the official ones, and on pages somebody else chose."""

from __future__ import annotations

import os
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envrl.envs.demonstrate import Demonstration, demonstrate
from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.env import WebShopEnv, goal_games
from envrl.envs.webshop.expert import Expert, main
from envrl.envs.webshop.generate import generate_catalogue
from envrl.envs.webshop.goals import synthetic_goals
from envrl.envs.webshop.index import load_index
from envrl.envs.webshop.judging import Candidate, Judge
from envrl.envs.webshop.ordering import order_goals
from envrl.envs.webshop.reading import read_wish
from envrl.envs.webshop.shop import Shop
from envrl.types import Game, Observation
from unit.webshop_data import raw_product, write_shop

_LAST_LINE = re.compile(r"goals=(\d+) success=([\d.]+) mean_reward=([\d.]+) mean_steps=([\d.]+)")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    files = generate_catalogue(tmp_path_factory.mktemp("made") / "shop")
    rng = random.Random(0)
    loaded = load_catalog(files.items, files.attributes, rng=rng)
    goals = order_goals(synthetic_goals(loaded, rng), rng).goals
    return Shop(loaded.catalog, goals, load_index(loaded.catalog))


@pytest.fixture(scope="module")
def games(shop: Shop) -> tuple[Game, ...]:
    return goal_games(shop.goals, "all")


@pytest.fixture(scope="module")
def runs(shop: Shop, games: tuple[Game, ...]) -> list[Demonstration]:
    env = WebShopEnv(shop)
    return [demonstrate(env, game, Expert()) for game in games[:500]]


def test_expert_buys_what_was_asked_for(runs: list[Demonstration]) -> None:
    assert sum(run.won for run in runs) / len(runs) >= 0.99
    assert sum(len(run.commands) for run in runs) / len(runs) < 8.0


def test_expert_keeps_to_admissible_commands_and_the_step_limit(runs: list[Demonstration]) -> None:
    for run in runs:
        assert len(run.commands) <= 15
        assert run.commands[-1] == "click[buy now]"
        for command, shown in zip(run.commands, run.observations, strict=False):
            if command.startswith("search["):
                assert "search[<your query>]" in shown.admissible
            else:
                assert command in shown.admissible


def test_expert_is_deterministic(shop: Shop, games: tuple[Game, ...], runs: list[Demonstration]) -> None:
    again = Expert()
    assert [demonstrate(WebShopEnv(shop), game, again) for game in games[:20]] == runs[:20]


def test_expert_settles_before_few_steps_run_out(shop: Shop, games: tuple[Game, ...]) -> None:
    env = WebShopEnv(shop)
    short = [demonstrate(env, replace(game, max_steps=6), Expert(6)) for game in games[:60]]
    assert all(run.commands[-1] == "click[buy now]" for run in short)
    assert sum(run.won for run in short) > 20


def test_queries_vary_with_a_generator_only(shop: Shop, games: tuple[Game, ...]) -> None:
    env = WebShopEnv(shop)
    opening = env.reset(games[0], 0)

    def query(rng: np.random.Generator | None) -> str:
        expert = Expert(rng=rng)
        expert.reset(opening.text)
        return expert.act(opening)

    assert len({query(np.random.default_rng(seed)) for seed in range(12)}) > 2
    assert query(None) == query(None)


def test_expert_goes_on_after_somebody_elses_clicks(shop: Shop, games: tuple[Game, ...]) -> None:
    env, rng, won = WebShopEnv(shop), np.random.default_rng(0), 0
    for game in games[:60]:
        expert = Expert()
        observation = env.reset(game, 0)
        expert.reset(observation.text)
        for turn in range(game.max_steps):
            command = expert.act(observation)
            clicks = [a for a in observation.admissible if a.startswith("click[") and a != "click[buy now]"]
            if turn in (2, 4):
                command = str(rng.choice(clicks))
                expert.follow(command)
            result = env.step(command)
            observation = result.observation
            if result.terminated or result.truncated:
                break
        won += bool(result.info["won"])
    assert won >= 40


def test_expert_finds_its_way_on_a_page_it_did_not_open() -> None:
    expert = Expert()
    expert.reset("'Search'\n\nYour task is to: Find me hand made mugs with size: big")
    parts = [
        "Back to Search",
        "< Prev",
        "size",
        "small",
        "big",
        "Acme Hand Made Mug",
        "Price: $5.0",
        "Buy Now",
    ]
    clicks = ("back to search", "< prev", "buy now", "small", "big")
    page = Observation("'" + "' [SEP] '".join(parts) + "'", tuple(f"click[{name}]" for name in clicks))
    assert expert.act(page) == "click[big]"
    assert expert.act(page) == "click[buy now]"


def _candidate(title: str, price: float = 20.0, rank: int = 0) -> Candidate:
    return Candidate(title, price, price, (1, rank), title)


def test_judge_prefers_what_it_has_read() -> None:
    judge = Judge(
        read_wish("Find me lead free coffee mugs with bamboo lid, and price lower than 30.00 dollars")
    )
    full = _candidate("Acme Lead Free Coffee Mug with Bamboo Lid")
    half = _candidate("Acme Lead Free Coffee Mug")
    assert judge.fits(full)
    assert not judge.fits(half)
    assert judge.chance(full) > judge.chance(half) > 0.0
    assert judge.promise(half) > judge.promise(_candidate("Acme Lead Free Coffee Mug", rank=4))
    assert judge.chance(_candidate("Acme Lead Free Coffee Mug", price=31.0)) == 0.0
    assert judge.chance(half) > judge.chance(_candidate("Acme Lead Free Belt"))
    half.read = True
    assert judge.chance(half) < judge.chance(_candidate("Acme Lead Free Coffee Mug"))


def test_judge_wants_the_values_named_in_free_words() -> None:
    judge = Judge(read_wish("i need running shoes in navy blue, size 7.5 wide."))
    options = {"color": ("blue", "navy blue", "red"), "size": ("7.5", "7.5 wide"), "style": ("x",)}
    assert judge.wanted(options) == {"color": "navy blue", "size": "7.5 wide"}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = generate_catalogue(tmp_path / "shop", 120)
    named = ["--items", str(files.items), "--attributes", str(files.attributes)]
    assert main([*named, "--goals", "20", "--show", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = _LAST_LINE.fullmatch(lines[-1])
    assert found is not None
    assert found[1] == "20"
    assert float(found[2]) >= 0.9
    assert sum(line.startswith("> click[buy now]") for line in lines) == 1
    assert main([*named, "--human", str(files.human), "--goals", "5"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^0 of \d+ goals \(0\.0 %\) can't be bought at reward 1\ngoals=5 ", out)
    assert main(["--items", str(files.items)]) == 1
    assert main([*named, "--goals", "0"]) == 1
    assert "ask for at least 1 goal" in capsys.readouterr().err
    assert main([*named, "--show", "-1"]) == 1
    assert "--show -1: ask for 0 or more" in capsys.readouterr().err


def test_command_line_counts_goals_that_cannot_be_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The reward makes "tan" of a chosen "standard", and compares it with the pair of group and value.
    options = {"Color": [{"value": "standard"}, {"value": "plain"}]}
    items, about = write_shop(tmp_path, [raw_product(customization_options=options)])
    assert main(["--items", str(items), "--attributes", str(about)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 of 2 goals (50.0 %) can't be bought at reward 1 (options: 1)"
    assert lines[1].startswith("goals=2 success=0.5000 ")


def test_expert_on_official_products(capsys: pytest.CaptureFixture[str]) -> None:
    folder = os.environ.get("WEBSHOP_DATA")
    if not folder:
        pytest.skip("WEBSHOP_DATA is not set: the official products are not here")
    names = (Path(folder) / "items_shuffle_1000.json", Path(folder) / "items_ins_v2_1000.json")
    assert main(["--items", str(names[0]), "--attributes", str(names[1]), "--goals", "200"]) == 0
    found = _LAST_LINE.fullmatch(capsys.readouterr().out.splitlines()[-1])
    assert found is not None
    assert float(found[2]) >= 0.75
