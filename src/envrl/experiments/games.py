"""Which games a run trains and is evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envrl.envs.alfworld.engine import AlfworldEnv, load_game
from envrl.envs.alfworld.games import data_root, load_split
from envrl.envs.alfworld.generate import generate_games
from envrl.envs.base import TextEnv
from envrl.envs.panels import Panel, draw_games, make_panel
from envrl.envs.webshop.env import WebShopEnv
from envrl.errors import ConfigFault
from envrl.experiments.own_games import own_environment, own_panel, own_training_games
from envrl.experiments.places import cache_folder
from envrl.experiments.settings import EnvSettings, EvaluationSettings
from envrl.experiments.shop_games import shop_environment, shop_panel, shop_training_games
from envrl.experiments.shop_workers import worker_shops
from envrl.seeding import derive_seed
from envrl.types import Game

if TYPE_CHECKING:
    from envrl.rollout.choice import GameSchedule

_TRAINING_GAMES_TRIED = 16
"""Training games that are loaded before a run begins; the panel's are all loaded."""


@dataclass(frozen=True)
class GameSets:
    """Training games and the panel, disjoint by content unless there is a schedule.

    Attributes:
        training: Games an iteration's are drawn from.
        panel: Games to evaluate on.
        schedule: The games of an iteration, by its number and how many it needs, where a published order
            is followed; ``training`` then holds no more than the first iteration's.
    """

    training: tuple[Game, ...]
    panel: Panel
    schedule: GameSchedule | None = None


def game_sets(env: EnvSettings, evaluation: EvaluationSettings, groups: int = 1) -> GameSets:
    """Makes or finds the games of a run.

    Args:
        env: Environment and games.
        evaluation: Panel.
        groups: Games of an iteration.

    Raises:
        DataFault: Official games are asked for and not there or broken, or the panel overlaps with
            training.
        ConfigFault: The generator can't make such rooms.
    """
    panel = evaluation_panel(env, evaluation)
    if env.name == "webshop":
        if env.webshop.order == "workers":
            schedule = worker_shops(env).training_games
            return GameSets(tuple(schedule(0, groups)), panel, schedule)
        training = shop_training_games(env)
        panel.require_disjoint(training)
        return GameSets(training, panel)
    training = own_training_games(env) if env.own else _training_games(env)
    panel.require_disjoint(training)
    _require_playable(env, training[:: max(1, len(training) // _TRAINING_GAMES_TRIED)])
    return GameSets(training, panel)


def evaluation_panel(env: EnvSettings, evaluation: EvaluationSettings) -> Panel:
    """The fixed panel, each game once, task types balanced as far as the split allows.

    Raises:
        ConfigFault: The environment has no such split.
    """
    if env.name == "webshop":
        by_workers = env.webshop.order == "workers"
        return worker_shops(env).panel(evaluation) if by_workers else shop_panel(env, evaluation)
    if env.own:
        return own_panel(env, evaluation)
    split = evaluation.split or "valid_seen"
    if split == "test":
        raise ConfigFault("evaluation.split is test; alfworld has valid_seen and valid_unseen")
    if env.games == "official":
        games = load_split(data_root(), split, env.steps)
        count = min(evaluation.games, len(games))
        panel = make_panel(games, count, evaluation.seed, split)
        _require_playable(env, panel.games)
        return panel
    seed = derive_seed(env.games_seed, "panel", evaluation.seed)
    # A third more than needed, so that the panel can balance the task types.
    drawn = evaluation.games + evaluation.games // 3 + 6
    games = generate_games(env.rooms(), drawn, seed, split, cache_folder() / "games")
    return make_panel(games, evaluation.games, evaluation.seed, f"generated-{split}")


def _require_playable(env: EnvSettings, games: Sequence[Game]) -> None:
    """Loads official games with the native engine, so that a wrong version is told before a run begins.

    While playing, a game that can't be loaded is the fault of one episode; generated games are proven.
    """
    if env.games == "official" and env.backend == "native":
        for game in games:
            load_game(game.spec)


def _training_games(env: EnvSettings) -> tuple[Game, ...]:
    if env.games == "official":
        return draw_games(load_split(data_root(), "train", env.steps), env.train_games, env.games_seed)
    assert env.train_games is not None
    seed = derive_seed(env.games_seed, "training")
    return generate_games(env.rooms(), env.train_games, seed, "train", cache_folder() / "games")


def environment_factory(env: EnvSettings) -> Callable[[], TextEnv]:
    """Builds one environment of the chosen kind and backend."""
    if env.name == "webshop":
        if env.webshop.order == "workers":
            return lambda: WebShopEnv(worker_shops(env).shop)
        return lambda: shop_environment(env)
    if env.own:
        return own_environment(env.name)
    if env.backend == "textworld":
        from envrl.envs.alfworld.textworld import TextWorldEnv

        return TextWorldEnv
    return AlfworldEnv
