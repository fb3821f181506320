"""Recorded play, whoever played, in whatever environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envrl.prompts.render import without_banner
from envrl.types import Observation


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


def corpus_texts(episodes: Sequence[PlayedEpisode]) -> list[str]:
    """What the tokenizer is trained on: every observation and every command."""
    texts = []
    for episode in episodes:
        texts.append(without_banner(episode.opening.text))
        for step in episode.steps:
            texts += [step.command, step.answer.text]
    return texts
