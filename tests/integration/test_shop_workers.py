"""The WebShop in the order of the paper's code, as a setting of a run."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from envrl.envs.webshop.env import WebShopEnv
from envrl.envs.webshop.ordering import PaperWorkers, PricedGoals, paper_goals
from envrl.errors import ConfigFault, DataFault
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.evaluation import play_panel
from envrl.experiments.games import GameSets, environment_factory, game_sets
from envrl.experiments.preflight import preflight
from envrl.experiments.run import build
from envrl.experiments.settings import EnvSettings
from envrl.experiments.shop_games import human_instructions, open_stock
from envrl.experiments.shop_workers import worker_shops
from envrl.prompts.render import task_of
from envrl.types import Game

BASE = {
    "env": {
        "name": "webshop",
        "max_steps": 3,
        "train_games": None,
        "games_seed": 7,
        "webshop": {"products": 200, "order": "workers"},
    },
    "rollout": {"games": 3, "episodes_per_game": 2},
    "sampling": {"max_new_tokens": 6},
    "train": {"iterations": 2},
    "evaluation": {"games": 4},
}


def configured(**changes: Any) -> RunConfig:
    return config_from(BASE, changes)


def games_of(config: RunConfig) -> GameSets:
    return game_sets(config.env, config.evaluation, config.rollout.games)


def worker(env: EnvSettings, seed: int) -> PricedGoals:
    """The worker's goals, made anew."""
    return paper_goals(open_stock(env).loaded, random.Random(), seed, human=human_instructions(env))


def task(env: WebShopEnv, game: Game) -> str:
    return task_of(env.reset(game, 0).text)


@pytest.mark.parametrize(("goals", "products"), [("synthetic", 200), ("human", 1200)])
def test_a_group_plays_what_its_worker_is_reset_with(goals: str, products: int) -> None:
    config = configured(**{"env.webshop.goals": goals, "env.webshop.products": products})
    games = games_of(config)
    assert games.schedule is not None
    assert list(games.training) == list(games.schedule(0, 3))
    env = environment_factory(config.env)()
    assert isinstance(env, WebShopEnv)
    for iteration in (0, 2):
        played = games.schedule(iteration, 3)
        for group, game in enumerate(played):
            theirs = worker(config.env, 7 + group).ordered.goals
            drawn = PaperWorkers(7, 3, 1).draws(len(theirs), iteration + 1)[iteration]
            assert drawn[group] >= 500
            assert task(env, game) == theirs[drawn[group]].instruction_text
            assert game.family == theirs[drawn[group]].category
        assert len({game.game_id for game in played}) == 3
    assert games.schedule(2, 3) != games.schedule(0, 3)


def test_the_panel_is_the_first_validation_draw_and_stays() -> None:
    config = configured()
    games = games_of(config)
    count = len(worker(config.env, 1007).ordered.goals)
    drawn = PaperWorkers(7, 4, 1, validation=True).draws(count, 1)[0]
    env = environment_factory(config.env)()
    assert isinstance(env, WebShopEnv)
    for group, (game, index) in enumerate(zip(games.panel.games, drawn, strict=True)):
        assert index < 500
        assert task(env, game) == worker(config.env, 1007 + group).ordered.goals[index].instruction_text
    assert games_of(config).panel.panel_hash == games.panel.panel_hash
    other = configured(**{"env.games_seed": 8})
    assert games_of(other).panel.panel_hash != games.panel.panel_hash


def test_a_worker_sells_at_its_own_prices() -> None:
    config = configured()
    shops = [worker_shops(config.env).shop(game) for game in games_of(config).training]
    prices = [dict(shop.catalog.prices) for shop in shops]
    assert prices == [dict(worker(config.env, seed).catalog.prices) for seed in (7, 8, 9)]
    assert prices[0] != prices[1] != prices[2]
    assert [len(shop.goals) for shop in shops] == [1, 1, 1]


def test_a_run_learns_from_the_schedule_and_is_evaluated_on_the_panel() -> None:
    config = configured()
    assert preflight(config).schedule is not None
    parts = build(config)
    with parts.pool:
        experience = parts.source.collect(1, 0)
        assert parts.games.schedule is not None
        assert [group.game for group in experience.groups] == list(parts.games.schedule(1, 3))
        result = play_panel(
            parts.module.policy, parts.collector, parts.games.panel, temperature=1.0, iteration=0
        )
    assert len(result.trajectories) == 4
    assert not any("fault" in t.stop.value for t in result.trajectories)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env.train_games": 64}, r"env\.train_games is 64, but env\.webshop\.order=workers .* null"),
        ({"rollout.refill_rounds": 1}, r"rollout\.refill_rounds is 1, .* refill_rounds=0"),
        ({"env.webshop.test_goals": 100}, r"env\.webshop\.test_goals is 100, .* first 500 goals"),
        ({"evaluation.games": 501}, r"evaluation\.games is 501, more than"),
        ({"evaluation.split": "valid_seen"}, r"webshop has only the split test"),
        ({"env.webshop.products": 100}, r"needs 3 goals after the first 500, but there are only \d+"),
    ],
)
def test_what_the_order_can_not_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigFault, match=message):
        preflight(configured(**changes))


def test_a_game_of_the_fixed_order_is_not_a_workers() -> None:
    config = configured()
    game = replace(games_of(config).training[0], spec="0123abcd")
    with pytest.raises(DataFault, match="'0123abcd' is no game of a worker"):
        environment_factory(config.env)().reset(game, 0)
