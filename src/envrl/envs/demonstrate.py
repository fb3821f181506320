"""An episode played by somebody who knows how: the same loop for every environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from envrl.envs.base import TextEnv
from envrl.types import Game, Observation


class Player(Protocol):
    """Somebody who reads observations and answers with commands."""

    def reset(self, text: str) -> None:
        """Starts an episode; ``text`` is its first observation's."""
        ...

    def act(self, observation: Observation) -> str:
        """Takes in an observation and chooses the next command."""
        ...


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One episode of a player.

    Attributes:
        game: What was played.
        observations: What was seen, one more than there are commands: the last is the last answer.
        commands: What was done.
        won: The game was won.
        task_score: Its score at the end, in [0, 1].
    """

    game: Game
    observations: tuple[Observation, ...]
    commands: tuple[str, ...]
    won: bool
    task_score: float


def demonstrate(env: TextEnv, game: Game, player: Player, seed: int = 0) -> Demonstration:
    """Plays one episode, until it ends or ``game.max_steps`` commands are used up."""
    observation = env.reset(game, seed)
    player.reset(observation.text)
    observations, commands = [observation], list[str]()
    won, score = False, 0.0
    for _ in range(game.max_steps):
        commands.append(player.act(observation))
        result = env.step(commands[-1])
        observation = result.observation
        observations.append(observation)
        won, score = bool(result.info.get("won", False)), float(result.info.get("task_score", 0.0))
        if result.terminated or result.truncated:
            break
    return Demonstration(game, tuple(observations), tuple(commands), won, score)
