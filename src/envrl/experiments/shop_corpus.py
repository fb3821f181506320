"""WebShop play that the embedded policy learns from: the expert with detours, and random clicks."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from envrl.envs.webshop.actions import SEARCH_PLACEHOLDER
from envrl.envs.webshop.expert import Expert
from envrl.experiments.played import Choice, PlayedEpisode, record_play
from envrl.experiments.settings import EnvSettings, WebShopSettings
from envrl.experiments.shop_games import shop_environment, shop_training_games
from envrl.prompts.render import task_of
from envrl.rollout.random_play import random_query
from envrl.seeding import derive_seed, generator
from envrl.types import Game, Observation

SHOP_PHRASES = (
    "'search'\n\nyour task is to: ",
    "find me",
    ", and price lower than ",
    ".00 dollars",
    "search[",
    "click[",
    "click[b0",
    "click[buy now]",
    "click[< prev]",
    "click[next >]",
    "click[back to search]",
    "click[features]",
    "click[description]",
    "click[reviews]",
    "' [sep] '",
    "' [sep] 'b0",
    "' [sep] '$",
    "'back to search' [sep] 'page ",
    " (total results: ",
    "' [sep] '< prev' [sep] 'next >",
    "' [sep] 'next >",
    "'back to search' [sep] '< prev",
    "' [sep] 'price: $",
    "' [sep] 'rating: n.a.' [sep] 'description' [sep] 'features' [sep] 'reviews' [sep] 'buy now'",
    "thank you for shopping with us! [sep] your code: [sep] none [sep] (paste it in your mturk interface.)"
    " [sep] purchased [sep] asin [sep] b0",
    " [sep] attrs [sep] none [sep] category [sep] none [sep] query [sep] none [sep] product category [sep]"
    " none [sep] target [sep] asin [sep] options [sep] attrs [sep] price upper [sep] instuction text [sep]"
    " category [sep] product category [sep] query [sep] goal [sep] none [sep] reward [sep] your score (min"
    " 0.0, max 1.0) [sep] ",
    " [sep] options [sep] {",
    " [sep] reward details [sep] none",
)
"""What pages say around their products, in small letters: one token each."""
PRODUCT_CLICK = re.compile(r"click\[b0[a-z0-9]{8}\]")
"""Choosing a product of a results page."""


@dataclass(frozen=True)
class ShopCorpusSettings:
    """Catalogues and play the embedded policy of the WebShop learns from."""

    catalogues: int = 8
    """Invented catalogues, each of other products than the default one that runs are made on."""
    products: int = 1000
    """Products of each."""
    goals: int = 1000
    """Training goals played in each."""
    most_steps: int = 7
    """Demonstrations of more steps are left out: the shortest way is what is worth imitating."""
    random_share: float = 0.06
    """Share of the goals that are also played at random (for the language model only)."""
    random_steps: int = 8
    """Steps of random play: it rarely ends by itself."""
    detour: float = 0.1
    """Probability that an expert's step is replaced by a random one (never cloned)."""
    questions_per_episode: float = 0.3
    """Mean number of state-prediction and of inverse-dynamics questions drawn from an episode."""
    seed: int = 1000
    """Seed of the first catalogue, and root of every random choice."""


def play(
    env_settings: EnvSettings, game: Game, rng: np.random.Generator, detour: float, most_steps: int
) -> PlayedEpisode:
    """Plays one goal: the expert's command, or with probability ``detour`` a random one."""
    expert = Expert(game.max_steps, rng)

    def begin(opening: Observation) -> Choice:
        expert.reset(opening.text)

        def choose(observation: Observation) -> tuple[str, bool]:
            command = expert.act(observation)
            if rng.random() >= detour:
                return command, True
            command = _random_command(opening, observation, rng)
            expert.follow(command)
            return command, False

        return choose

    return record_play(shop_environment(env_settings), game, int(rng.integers(2**31)), most_steps, begin)


def _random_command(opening: Observation, observation: Observation, rng: np.random.Generator) -> str:
    commands = observation.admissible
    command = commands[int(rng.integers(len(commands)))]
    if command in (SEARCH_PLACEHOLDER, "click[search]"):
        return random_query(task_of(opening.text), rng)
    return command


def record_shop_corpus(settings: ShopCorpusSettings, say: Console) -> list[PlayedEpisode]:
    """Makes the catalogues, which the cache keeps, and plays their goals."""
    episodes: list[PlayedEpisode] = []
    for number in range(settings.catalogues):
        env = EnvSettings(
            name="webshop",
            train_games=settings.goals,
            games_seed=settings.seed + number,
            webshop=WebShopSettings(products=settings.products),
        )
        for game in shop_training_games(env):
            rng = generator(derive_seed(settings.seed, "play", game.game_id))
            shown = play(env, game, rng, settings.detour, game.max_steps)
            if len(shown.steps) <= settings.most_steps:
                episodes.append(shown)
            if rng.random() < settings.random_share:
                episodes.append(play(env, game, rng, 1.0, settings.random_steps))
    say.print(f"{len(episodes)} episodes in {settings.catalogues} shops")
    return episodes
