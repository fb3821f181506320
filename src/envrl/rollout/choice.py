"""Which games an iteration plays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from envrl.seeding import generator
from envrl.types import Game

GameSchedule = Callable[[int, int], Sequence[Game]]
"""From an iteration's number and how many games it needs to these games."""


@dataclass(frozen=True)
class TrainingGames:
    """Games to train on.

    Attributes:
        games: All of them.
        schedule: Names an iteration's games, where a published order is followed instead of a draw.
    """

    games: tuple[Game, ...]
    schedule: GameSchedule | None = None

    def of(self, iteration: int, count: int, seed: int) -> Sequence[Game]:
        """Different games for an iteration, at most ``count``, which depend on it and the seed alone."""
        if self.schedule is not None:
            return self.schedule(iteration, count)
        picker = generator(seed, "iteration", iteration, "games")
        return picked(picker, self.games, min(count, len(self.games)))


def picked(picker: np.random.Generator, games: Sequence[Game], count: int) -> list[Game]:
    """Different ones of the games."""
    return [games[i] for i in picker.choice(len(games), size=count, replace=False).tolist()]
