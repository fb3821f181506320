"""Which goals of which WebShop a run trains on and is evaluated on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from envrl.envs.panels import Panel, draw_games, make_panel
from envrl.envs.webshop.catalog import LoadedCatalog, load_catalog
from envrl.envs.webshop.env import WebShopEnv, goal_games
from envrl.envs.webshop.files import ShopFiles, data_root, find_files
from envrl.envs.webshop.generate import default_catalogue
from envrl.envs.webshop.goal_sets import GoalPanels, make_panels
from envrl.envs.webshop.goals import human_goals, read_human, synthetic_goals
from envrl.envs.webshop.index import load_index
from envrl.envs.webshop.ordering import order_goals
from envrl.envs.webshop.records import Goal
from envrl.envs.webshop.shop import Shop
from envrl.errors import ConfigFault
from envrl.experiments.config import EnvSettings, EvaluationSettings
from envrl.experiments.places import cache_folder
from envrl.seeding import derive_seed
from envrl.types import Game


@dataclass(frozen=True)
class OpenShop:
    """A shop and its goals, parted into test and training."""

    shop: Shop
    panels: GoalPanels


def open_shop(env: EnvSettings) -> OpenShop:
    """The shop of a configuration; a process opens it once and all its episodes share it.

    Raises:
        DataFault: Files are missing or broken, or the cache can't be written.
        ConfigFault: There are too few goals for the panel.
    """
    shop = env.webshop
    return _open(env.games, shop.products, shop.catalogue, shop.goals, shop.test_goals, env.games_seed)


@lru_cache(maxsize=2)
def _open(
    games: str, products: int, catalogue: str, goals: str, test_goals: int, games_seed: int
) -> OpenShop:
    files = _files(games, products, catalogue, goals, games_seed)
    # Prices within a range and price limits are drawn; with the seed they belong to what a goal is.
    rng = random.Random(derive_seed(games_seed, "webshop-prices"))
    loaded = load_catalog(files.items, files.attributes, rng=rng)
    ordered = order_goals(_goals(goals, files, loaded, rng), rng).goals
    index = load_index(loaded.catalog, cache_folder() / "webshop")
    try:
        panels = make_panels(ordered, test_goals)
    except ConfigFault as error:
        raise ConfigFault(
            f"{error}: lower env.webshop.test_goals ({test_goals}), or raise env.webshop.products"
        ) from error
    return OpenShop(Shop(loaded.catalog, ordered, index), panels)


def _files(games: str, products: int, catalogue: str, goals: str, games_seed: int) -> ShopFiles:
    if games == "official":
        return find_files(data_root(), full=catalogue == "full", human=goals == "human")
    return default_catalogue(cache_folder() / "webshop", products, games_seed)


def _goals(goals: str, files: ShopFiles, loaded: LoadedCatalog, rng: random.Random) -> tuple[Goal, ...]:
    if goals == "synthetic":
        return synthetic_goals(loaded, rng)
    assert files.human is not None
    return human_goals(loaded.catalog, read_human(files.human, loaded.catalog), rng).goals


def shop_panel(env: EnvSettings, evaluation: EvaluationSettings) -> Panel:
    """Games of the test goals, departments balanced as far as they allow.

    Raises:
        ConfigFault: The panel is to be larger than the test goals, or of another split.
    """
    if evaluation.split not in (None, "test"):
        raise ConfigFault(f"evaluation.split is {evaluation.split}; webshop has only the split test")
    if evaluation.games > env.webshop.test_goals:
        raise ConfigFault(
            f"evaluation.games is {evaluation.games}, more than the env.webshop.test_goals="
            f"{env.webshop.test_goals} set apart; lower the one or raise the other"
        )
    games = goal_games(open_shop(env).panels.test, "test", env.steps)
    return make_panel(games, evaluation.games, evaluation.seed, f"{env.games}-webshop-test")


def shop_training_games(env: EnvSettings) -> tuple[Game, ...]:
    """Games of training goals; ``env.train_games`` of them, drawn by the seed of the games."""
    games = goal_games(open_shop(env).panels.train, "train", env.steps)
    return draw_games(games, env.train_games, env.games_seed)


def shop_environment(env: EnvSettings) -> WebShopEnv:
    """An environment on the process's shop."""
    return WebShopEnv(open_shop(env).shop)
