"""The shop as agents see it: observations, admissible actions, rewards, games."""

import importlib
import json
import re
from pathlib import Path

import pytest

from envrl.envs.base import TextEnv
from envrl.envs.panels import make_panel
from envrl.envs.webshop.env import WebShopEnv, admits, goal_games
from envrl.envs.webshop.generate import generate_catalogue
from envrl.envs.webshop.goal_sets import goal_id
from envrl.errors import ConfigFault, DataFault, EnvFault
from unit.webshop_shops import goal, product, shop_of

STOOL, TABLE = product(), product("B000000002", title="Oak Table", category="beauty")
GOALS = (goal(STOOL), goal(TABLE, instruction_text="find a table [SEP] of oak"))


@pytest.fixture
def env():
    return WebShopEnv(shop_of([STOOL, TABLE], GOALS))


def test_an_episode_is_shown_as_in_the_published_protocol(env):
    stool, _ = goal_games(GOALS, "test")
    first = env.reset(stool, seed=0)
    assert first.text == "'Search'\n\nYour task is to: find a red oak stool"
    assert first.admissible == ("search[<your query>]", "click[search]")
    results = env.step("search[oak]").observation
    assert results.text == (
        "'Back to Search' [SEP] 'Page 1 (Total results: 2)' [SEP] 'Next >' [SEP] 'B000000001' [SEP] "
        "'Oak Stool' [SEP] '$20.0' [SEP] 'B000000002' [SEP] 'Oak Table' [SEP] '$20.0'"
    )
    assert results.admissible == (
        *("click[back to search]", "click[next >]", "click[b000000001]", "click[b000000002]"),
    )
    item = env.step("click[b000000001]").observation
    assert item.text == (
        "'Back to Search' [SEP] '< Prev' [SEP] 'color' [SEP] 'red' [SEP] 'blue' [SEP] 'Oak Stool' [SEP] "
        "'Price: $20.0' [SEP] 'Rating: N.A.' [SEP] 'Description' [SEP] 'Features' [SEP] 'Reviews' [SEP] "
        "'Buy Now'"
    )
    assert item.admissible[-3:] == ("click[buy now]", "click[red]", "click[blue]")
    again = env.step("click[red]")
    assert (again.observation, again.reward, again.terminated) == (item, 0.0, False)
    assert again.info == {"won": False, "task_score": 0.0, "admissible": True}
    last = env.step("click[buy now]")
    assert last.observation.text.startswith("Thank you for shopping with us! [SEP] Your code: [SEP] None")
    assert last.observation.admissible == ()
    assert (last.reward, last.terminated, last.truncated) == (1.0, True, False)
    assert (last.info["won"], last.info["task_score"]) == (True, 1.0)
    assert last.info["reward_parts"]["r_option"] == 1.0


def test_a_purchase_that_is_not_perfect_ends_the_episode_unrewarded(env):
    env.reset(goal_games(GOALS, "test")[0], seed=0)
    env.step("search[oak]")
    env.step("click[b000000001]")
    last = env.step("click[buy now]")
    assert (last.reward, last.terminated, last.info["won"]) == (0.0, True, False)
    assert last.info["task_score"] == pytest.approx(2 / 3)  # attribute and price, not the option
    with pytest.raises(EnvFault):
        env.step("search[oak]")


def test_searches_are_admissible_where_the_page_has_a_search_bar(env):
    env.reset(goal_games(GOALS, "test")[0], seed=0)
    assert env.step("search[]").info["admissible"] is False
    assert env.step("search[oak]").info["admissible"] is True
    second = env.step("search[table]")
    assert second.info["admissible"] is False
    assert "'Page 1 (Total results: 2)'" in second.observation.text  # carried out all the same
    assert env.step("click[B000000002]").info["admissible"] is True
    assert env.step("click[red] please").info["admissible"] is True


def test_the_step_limit_scores_nothing(env):
    env.reset(goal_games(GOALS, "test", max_steps=2)[0], seed=0)
    assert not env.step("search[oak]").truncated
    last = env.step("click[b000000001]")
    assert (last.truncated, last.terminated) == (True, False)
    assert last.info == {"won": False, "task_score": 0.0, "admissible": True}


def test_a_task_with_a_separator_does_no_harm(env):
    first = env.reset(goal_games(GOALS, "test")[1], seed=0)
    assert first.text == "'Search'\n\nYour task is to: find a table [SEP] of oak"
    assert env.step("nonsense").observation.text == "'Search'"


def test_episodes_don_t_know_each_other():
    shop = shop_of([STOOL, TABLE], GOALS)
    one, two = WebShopEnv(shop), WebShopEnv(shop)
    stool, table = goal_games(GOALS, "test")
    one.reset(stool, 0)
    two.reset(stool, 0)
    one.step("search[oak]")
    one.step("click[b000000001]")
    one.step("click[blue]")
    assert two.step("x").observation.text == "'Search'"
    assert one.step("click[buy now]").info["task_score"] == pytest.approx(2 / 3)
    two.reset(table, 0)
    one.reset(table, 0)
    assert one.step("search[oak]") == two.step("search[oak]")


def test_the_seed_decides_random_searches():
    products = [product(f"B{n:09d}") for n in range(60)]
    env = WebShopEnv(shop_of(products))
    game = goal_games([goal(products[0])], "test")[0]

    def found(seed):
        env.reset(game, seed)
        return env.step("search[<r>]").observation.text

    assert found(1) == found(1) != found(2)


def test_it_follows_the_protocol(env):
    assert isinstance(env, TextEnv)


def test_games_are_known_by_what_their_goals_ask_for():
    twice = (*GOALS, goal(STOOL, weight=0.5))
    games = goal_games(twice, "train", max_steps=9)
    assert [game.game_id for game in games] == [goal_id(GOALS[0]), goal_id(GOALS[1])]
    assert [game.family for game in games] == ["garden", "beauty"]
    assert {(game.env, game.split, game.max_steps) for game in games} == {("webshop", "train", 9)}
    assert goal_games(GOALS, "test")[0].max_steps == 15
    assert len(make_panel(games, None, 0).games) == 2
    with pytest.raises(ConfigFault, match="at least 1"):
        goal_games(GOALS, "train", max_steps=0)


def test_a_goal_of_another_shop_is_refused(env):
    other = goal_games([goal(STOOL, price_upper=20.0)], "test")[0]
    with pytest.raises(DataFault, match="no goal"):
        env.reset(other, 0)


def test_hostile_products_are_shown_literally():
    odd = product(title="<b>'Oak'</b> [SEP] \x07", options={"": ("", "a]b", "x[y]"), "'": ("'",)})
    env = WebShopEnv(shop_of([odd], [goal(odd)]))
    env.reset(goal_games([goal(odd)], "test")[0], 0)
    env.step("search[oak]")
    item = env.step("click[b000000001]").observation
    assert "'<b>'Oak'</b> [SEP] \x07'" in item.text
    assert item.admissible[-4:] == ("click[]", "click[a]b]", "click[x[y]]", "click[']")
    for name in item.admissible[-4:]:
        assert env.step(name).observation == item
    assert admits(item.admissible, "click[a]b]")
    # As in the original an empty name and one with an opening bracket can't be clicked.
    assert env.step("click[buy now]").terminated


def test_the_benchmark_ends_with_its_rates(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    module = importlib.import_module("webshop_env")
    monkeypatch.setattr("webshop_search._VOCABULARY", 500)
    small = ["--episodes", "3", "--products", "90", "--documents", "1000", "--queries", "5"]
    small += ["--out", str(tmp_path / "o.json")]
    assert module.main(small) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    rates = dict(pair.split("=") for pair in last.split())
    assert list(rates) == ["steps_per_s", "search_ms", "search_ms_1k"]
    assert all(float(rate) > 0 for rate in rates.values())
    written = json.loads((tmp_path / "o.json").read_text())
    assert (written["env"]["products"], written["env"]["episodes"]) == (90, 3)
    assert module.main([*small, "--episodes", "0"]) == 1


def test_the_documented_way_to_play_works(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "webshop.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    generate_catalogue(Path("shop"), 120)
    names: dict = {}
    exec(compile(snippet, "docs/webshop.md", "exec"), names)
    assert names["first"].startswith("WebShop\nInstruction: \n")
    assert names["customer"].available.clickables[:2] == ("back to search", "next >")
    assert (names["step"].reward, names["step"].done) == (0.0, False)
