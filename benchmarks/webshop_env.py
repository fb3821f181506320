"""Times the WebShop environment over expert episodes on 1,000 products, and its search.

    python benchmarks/webshop_env.py [--episodes N] [--products P] [--documents M]
                                       [--queries Q] [--seed S] [--out FILE]

With ``WEBSHOP_DATA`` set, the products are the official 1,000, otherwise invented ones. The expert plays N
goals once; then the same actions are played again on a shop that was just opened, so that every page is
worked out and every query searched for the first time. ``steps_per_s`` is the rate of that pass: resets,
observations, admissible actions and rewards included, the expert's thinking not. ``again_steps_per_s`` is
the rate of a second pass on the same shop, as in training, where a group plays each goal many times.
``env_kib`` is the growth of the process per environment in the middle of an episode, over 1,000 of them.
Searches are timed by ``webshop_search.py``. Times are CPU seconds of one core.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.env import WebShopEnv, goal_games
from envrl.envs.webshop.expert import Expert
from envrl.envs.webshop.files import ShopFiles, find_files
from envrl.envs.webshop.generate import generate_catalogue
from envrl.envs.webshop.goals import synthetic_goals
from envrl.envs.webshop.index import SearchIndex, documents
from envrl.envs.webshop.ordering import order_goals
from envrl.envs.webshop.shop import Shop
from envrl.errors import ConfigFault, EnvrlError
from envrl.types import Game
from webshop_search import LARGE, QUERIES, time_generated, time_small

DEFAULT_OUT = Path(__file__).parent / "results" / "webshop_env.json"
PRODUCTS = 1_000
HELD = 1_000


@dataclass(frozen=True, slots=True)
class Episode:
    """A game and the actions the expert played in it."""

    game: Game
    actions: tuple[str, ...]
    won: bool


@dataclass(frozen=True, slots=True)
class EnvTiming:
    """Rates of the environment; see the module's description."""

    source: str
    products: int
    episodes: int
    steps: int
    expert_won: float
    steps_per_s: float
    again_steps_per_s: float
    env_kib: float


def open_shop(files: ShopFiles, seed: int) -> Callable[[], Shop]:
    """What opens the same shop again and again, with nothing remembered."""
    rng = random.Random(seed)
    loaded = load_catalog(files.items, files.attributes, rng=rng)
    goals = order_goals(synthetic_goals(loaded, rng), rng).goals
    index = SearchIndex.build(documents(loaded.catalog))
    return lambda: Shop(loaded.catalog, goals, index)


def play_expert(shop: Shop, games: Sequence[Game]) -> list[Episode]:
    """The expert's episodes."""
    env = WebShopEnv(shop)
    episodes = []
    for game in games:
        expert, actions = Expert(game.max_steps), []
        observation = env.reset(game, 0)
        expert.reset(observation.text)
        while True:
            actions.append(expert.act(observation))
            result = env.step(actions[-1])
            observation = result.observation
            if result.terminated or result.truncated:
                break
        episodes.append(Episode(game, tuple(actions), result.info["won"]))
    return episodes


def steps_per_s(shop: Shop, episodes: Sequence[Episode]) -> float:
    """Rate at which one environment plays the episodes, one after the other."""
    env = WebShopEnv(shop)
    shop.goal_place(episodes[0].game.spec)  # hashes all goals, once in the life of a shop
    shown = steps = 0
    start = time.process_time()
    for episode in episodes:
        shown += len(env.reset(episode.game, 0).text)
        for action in episode.actions:
            observation = env.step(action).observation
            shown += len(observation.text) + len(observation.admissible)
        steps += len(episode.actions)
    return steps / (time.process_time() - start)


def held_kib(shop: Shop, episodes: Sequence[Episode]) -> float:
    """KiB of resident memory per environment that is in the middle of an episode."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    held = []
    for number in range(HELD):
        episode = episodes[number % len(episodes)]
        env = WebShopEnv(shop)
        env.reset(episode.game, 0)
        for action in episode.actions[:3]:
            env.step(action)
        held.append(env)
    grown: int = psutil.Process().memory_info().rss - before
    held.clear()
    return grown / 1024 / HELD


def time_env(files: ShopFiles, source: str, count: int, seed: int) -> EnvTiming:
    """Times the environment on the first goals of a shop."""
    fresh = open_shop(files, seed)
    shop = fresh()
    games = goal_games(shop.goals[:count], "test")
    episodes = play_expert(shop, games)
    shop = fresh()
    first, again = steps_per_s(shop, episodes), steps_per_s(shop, episodes)
    return EnvTiming(
        source=source,
        products=len(shop.catalog.products),
        episodes=len(episodes),
        steps=sum(len(episode.actions) for episode in episodes),
        expert_won=sum(episode.won for episode in episodes) / len(episodes),
        steps_per_s=first,
        again_steps_per_s=again,
        env_kib=held_kib(shop, episodes),
    )


def time_any(count: int, products: int, seed: int) -> EnvTiming:
    """Times the environment on the official products, or on invented ones where they are not there."""
    official = os.environ.get("WEBSHOP_DATA")
    if official:
        return time_env(find_files(Path(official)), "official", count, seed)
    with tempfile.TemporaryDirectory() as folder:
        files = generate_catalogue(Path(folder) / "shop", products, seed)
        return time_env(files, "invented", count, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Times the WebShop environment and its search; returns the exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--episodes", type=int, default=500, help="goals to play (default: 500)")
    parser.add_argument("--products", type=int, default=PRODUCTS, help="invented ones (default: 1000)")
    parser.add_argument("--documents", type=int, default=LARGE, help="large search (default: 100000)")
    parser.add_argument("--queries", type=int, default=QUERIES, help="generated queries (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="seed of products and prices (default: 0)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        if min(options.episodes, options.documents, options.queries) < 1:
            raise ConfigFault("--episodes, --documents and --queries must be at least 1")
        env = time_any(options.episodes, options.products, options.seed)
        small = time_small(options.queries, options.seed)
        large = time_generated(options.documents, options.queries, options.seed)
        content = {
            "env": asdict(env),
            "search": {"small": asdict(small), "large": asdict(large)},
            "platform": {"python": platform.python_version(), "machine": platform.machine()},
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except (EnvrlError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{env.source}: products={env.products} episodes={env.episodes} steps={env.steps} "
        f"expert_won={env.expert_won:.3f} again_steps_per_s={env.again_steps_per_s:.0f} "
        f"env_kib={env.env_kib:.1f}"
    )
    large_name = f"search_ms_{options.documents // 1000}k"
    searches = f"search_ms={small.search_ms:.3f} {large_name}={large.search_ms:.3f}"
    print(f"steps_per_s={env.steps_per_s:.0f} {searches}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
