"""The protocol every text environment follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from envrl.types import Game, Observation, StepResult


@runtime_checkable
class TextEnv(Protocol):
    """A text game: reset with a game, then step with commands until it ends.

    One instance plays one episode at a time and may be reset as often as wanted. ``step`` before
    ``reset`` or after the end raises :class:`envrl.errors.EnvFault`.
    """

    def reset(self, game: Game, seed: int) -> Observation:
        """Starts an episode of ``game``; ``seed`` feeds whatever randomness the game has."""
        ...

    def step(self, action: str) -> StepResult:
        """Carries out one command; an inadmissible one is answered by the game, never an error."""
        ...

    def close(self) -> None:
        """Frees what the environment holds; safe to call twice."""
        ...


def was_admissible(action: str | None, seen: Observation, step: StepResult) -> bool:
    """Whether an action was admissible where it was taken.

    It is what the environment says, where a list can't name every admissible action (a search has any words).

    Args:
        action: The action; None if none could be parsed.
        seen: The observation it answered.
        step: What came of it.
    """
    return bool(step.info.get("admissible", action in seen.admissible))


@runtime_checkable
class TextEnvKind(Protocol):
    """A kind of environment that a configuration can name: ``env.name: my_module:MyEnv``.

    A class that follows :class:`TextEnv`, is built without arguments and has ``games`` as a static or
    class method, follows this protocol.
    """

    def __call__(self) -> TextEnv:
        """Builds one environment; many are built in one process, each for one episode at a time."""
        ...

    def games(self, split: str) -> Sequence[Game]:
        """Every game of a split, in the same order and with the same ids at each call.

        Args:
            split: ``train``, or the panel's: ``test`` unless ``evaluation.split`` names another.
        """
        ...
