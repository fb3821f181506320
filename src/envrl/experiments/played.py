"""Recorded play, whoever played, in whatever environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envrl.envs.base import TextEnv
from envrl.prompts.render import without_banner
from envrl.types import Game, Observation

Choice = Callable[[Observation], tuple[str, bool]]
"""From an observation to the command, and whether the expert chose it."""


@dataclass(frozen=True, slots=True)
class PlayedStep:
    """One step of a recorded episode; ``expert`` tells whether the command is worth imitating."""

    command: str
    answer: Observation
    expert: bool


@dataclass(frozen=True, slots=True)
class PlayedEpisode:
    """A recorded episode of whoever played."""

    opening: Observation
    steps: tuple[PlayedStep, ...]


def record_play(
    env: TextEnv, game: Game, seed: int, most_steps: int, begin: Callable[[Observation], Choice]
) -> PlayedEpisode:
    """Plays one episode and keeps who chose what.

    Args:
        env: What is played.
        game: Its game.
        seed: Seed of the environment's own randomness.
        most_steps: Commands after which the recording ends.
        begin: Told the first observation; gives what chooses the commands.
    """
    observation = opening = env.reset(game, seed)
    choose = begin(opening)
    steps: list[PlayedStep] = []
    for _ in range(most_steps):
        command, by_expert = choose(observation)
        result = env.step(command)
        observation = result.observation
        steps.append(PlayedStep(command, observation, by_expert))
        if result.terminated or result.truncated:
            break
    return PlayedEpisode(opening, tuple(steps))


def corpus_texts(episodes: Sequence[PlayedEpisode]) -> list[str]:
    """What the tokenizer is trained on: every observation and every command."""
    texts = []
    for episode in episodes:
        texts.append(without_banner(episode.opening.text))
        for step in episode.steps:
            texts += [step.command, step.answer.text]
    return texts
