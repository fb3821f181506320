"""Which goals of which WebShop a run trains on and is evaluated on."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from envrl.envs.panels import Panel, draw_games, make_panel
from envrl.envs.webshop.catalog import LoadedCatalog, load_catalog
from envrl.envs.webshop.env import WebShopEnv, goal_games
from envrl.envs.webshop.files import ShopFiles, data_root, find_files
from envrl.envs.webshop.generate import default_catalogue
from envrl.envs.webshop.goal_sets import GoalPanels, make_panels
from envrl.envs.webshop.goals import HumanInstruction, human_goals, read_human, synthetic_goals
from envrl.envs.webshop.index import SearchIndex, load_index
from envrl.envs.webshop.ordering import order_goals
from envrl.envs.webshop.shop import Shop
from envrl.errors import ConfigFault
from envrl.experiments.places import cache_folder
from envrl.experiments.settings import EnvSettings, EvaluationSettings
from envrl.seeding import derive_seed
from envrl.types import Game

HumanInstructions = Mapping[str, tuple[HumanInstruction, ...]]
"""Instructions of each product."""


@dataclass(frozen=True)
class Stock:
    """Products and their search, before any goals.

    Attributes:
        loaded: Products with prices drawn by the seed of the games.
        files: Where they are from.
        index: Search over them.
        rng_state: State of the generator that drew the prices: the goals are drawn from there on.
    """

    loaded: LoadedCatalog
    files: ShopFiles
    index: SearchIndex
    rng_state: tuple[Any, ...]


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
    stock = _stock(games, products, catalogue, goals, games_seed)
    rng = random.Random()
    rng.setstate(stock.rng_state)
    loaded = stock.loaded
    human = _human(goals, stock)
    made = synthetic_goals(loaded, rng) if human is None else human_goals(loaded.catalog, human, rng).goals
    ordered = order_goals(made, rng).goals
    try:
        panels = make_panels(ordered, test_goals)
    except ConfigFault as error:
        raise ConfigFault(
            f"{error}: lower env.webshop.test_goals ({test_goals}), or raise env.webshop.products"
        ) from error
    return OpenShop(Shop(loaded.catalog, ordered, stock.index), panels)


def open_stock(env: EnvSettings) -> Stock:
    """The products of a configuration and their search, once per process.

    Raises:
        DataFault: Files are missing or broken, or the cache can't be written.
    """
    shop = env.webshop
    return _stock(env.games, shop.products, shop.catalogue, shop.goals, env.games_seed)


@lru_cache(maxsize=2)
def _stock(games: str, products: int, catalogue: str, goals: str, games_seed: int) -> Stock:
    files = _files(games, products, catalogue, goals, games_seed)
    # Prices within a range and price limits are drawn; with the seed they belong to what a goal is.
    rng = random.Random(derive_seed(games_seed, "webshop-prices"))
    loaded = load_catalog(files.items, files.attributes, rng=rng)
    index = load_index(loaded.catalog, cache_folder() / "webshop")
    return Stock(loaded, files, index, rng.getstate())


def human_instructions(env: EnvSettings) -> HumanInstructions | None:
    """What people wrote about the products; None if the configuration asks for synthetic goals."""
    return _human(env.webshop.goals, open_stock(env))


def _human(goals: str, stock: Stock) -> HumanInstructions | None:
    if goals == "synthetic":
        return None
    assert stock.files.human is not None
    return read_human(stock.files.human, stock.loaded.catalog)


def _files(games: str, products: int, catalogue: str, goals: str, games_seed: int) -> ShopFiles:
    if games == "official":
        return find_files(data_root(), full=catalogue == "full", human=goals == "human")
    return default_catalogue(cache_folder() / "webshop", products, games_seed)


def check_shop_panel(env: EnvSettings, evaluation: EvaluationSettings) -> None:
    """Refuses a panel that the shop doesn't have.

    Raises:
        ConfigFault: It is to be larger than the test goals, or of another split.
    """
    if evaluation.split not in (None, "test"):
        raise ConfigFault(f"evaluation.split is {evaluation.split}; webshop has only the split test")
    if evaluation.games > env.webshop.test_goals:
        raise ConfigFault(
            f"evaluation.games is {evaluation.games}, more than the env.webshop.test_goals="
            f"{env.webshop.test_goals} set apart; lower the one or raise the other"
        )


def shop_panel(env: EnvSettings, evaluation: EvaluationSettings) -> Panel:
    """Games of the test goals, departments balanced as far as they allow.

    Raises:
        ConfigFault: The panel is to be larger than the test goals, or of another split.
    """
    check_shop_panel(env, evaluation)
    games = goal_games(open_shop(env).panels.test, "test", env.steps)
    return make_panel(games, evaluation.games, evaluation.seed, f"{env.games}-webshop-test")


def shop_training_games(env: EnvSettings) -> tuple[Game, ...]:
    """Games of training goals; ``env.train_games`` of them, drawn by the seed of the games."""
    games = goal_games(open_shop(env).panels.train, "train", env.steps)
    return draw_games(games, env.train_games, env.games_seed)


def shop_environment(env: EnvSettings) -> WebShopEnv:
    """An environment on the process's shop."""
    return WebShopEnv(open_shop(env).shop)
