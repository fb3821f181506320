"""ALFWorld play that the embedded policy learns from: the expert with detours, and random commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from envrl.envs.alfworld.engine import AlfworldEnv
from envrl.envs.alfworld.expert import Expert
from envrl.envs.alfworld.generate import RoomSettings, generate_games
from envrl.experiments.played import Choice, PlayedEpisode, record_play
from envrl.seeding import derive_seed, generator
from envrl.types import Game, Observation


@dataclass(frozen=True)
class CorpusSettings:
    """Games and play the embedded policy learns from."""

    small_games: int = 5000
    """Generated games with 6 to 10 receptacles."""
    full_games: int = 400
    """Generated games in full rooms."""
    random_share: float = 0.15
    """Share of the games that are also played at random (for the language model only)."""
    detour: float = 0.1
    """Probability that an expert's step is replaced by a random command (never cloned)."""
    questions_per_episode: float = 1
    """Mean number of state-prediction and of inverse-dynamics questions drawn from an episode."""
    seed: int = 0
    """Root of every random choice."""


def play(game: Game, rng: np.random.Generator, detour: float) -> PlayedEpisode:
    """Plays one game: the expert's command, or with probability ``detour`` a random one.

    A random command is drawn by verb first, so that rare verbs are seen often; one in five of them is an
    inadmissible one (a verb with a wrong place), whose answer the language model must know too.
    """
    expert = Expert()

    def begin(opening: Observation) -> Choice:
        expert.reset(opening.text)
        return choose

    def choose(observation: Observation) -> tuple[str, bool]:
        command = expert.act(observation)
        if rng.random() >= detour:
            return command, True
        return _random_command(observation, rng), False

    return record_play(AlfworldEnv(), game, 0, game.max_steps, begin)


def _random_command(observation: Observation, rng: np.random.Generator) -> str:
    commands = [c for c in observation.admissible if c != "help"]
    verbs = sorted({c.split(" ", 1)[0] for c in commands})
    verb = verbs[int(rng.integers(len(verbs)))]
    chosen = [c for c in commands if c.startswith(verb)]
    command = chosen[int(rng.integers(len(chosen)))]
    if rng.random() < 0.2:
        head, blank, number = command.rpartition(" ")
        if blank and number.isdigit():
            return f"{head} {int(number) + int(rng.integers(1, 4))}"
    return command


def record_corpus(settings: CorpusSettings, folder: Path, say: Console) -> list[PlayedEpisode]:
    """Generates the games below ``folder`` and plays them."""
    games: list[Game] = []
    for receptacles in (6, 8, 10):
        rooms = RoomSettings(receptacles=receptacles, objects_per_receptacle=1.5, max_steps=30)
        count = settings.small_games // 3
        games += generate_games(rooms, count, derive_seed(settings.seed, receptacles), "train", folder)
    if settings.full_games:
        full = RoomSettings(max_steps=50)
        games += generate_games(
            full, settings.full_games, derive_seed(settings.seed, "full"), "train", folder
        )
    say.print(f"{len(games)} games generated")
    episodes = []
    for game in games:
        rng = generator(settings.seed, "play", game.game_id)
        episodes.append(play(game, rng, settings.detour))
        if rng.random() < settings.random_share:
            episodes.append(play(game, rng, 1.0))
    return episodes
