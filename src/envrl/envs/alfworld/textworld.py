"""Plays ALFWorld's games on the alfworld package's own stack: the oracle of the native engine.

``textworld.envs.PddlEnv`` in the wrappers ``AlfredDemangler`` and ``AlfredInfos``, as the package sets
them up. Slow (seconds to load, tens of milliseconds a step), and nothing but a reference.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from envrl.errors import DataFault, EnvFault
from envrl.types import Game, Observation, StepResult

# fast-downward's translator replaces sys.argv and sys.stdout while it runs.
_TRANSLATOR = threading.Lock()
# Unloading the planner library crashes the process at its end, so stacks are used again instead.
_idle_stacks: list[Any] = []


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a player can see after a command (or at the start)."""

    feedback: str
    admissible: tuple[str, ...]
    won: bool


class ReferenceGame:
    """One game file on the reference stack, without limits: it can be played on after the goal.

    Raises:
        EnvFault: The alfworld package is not installed, or the reference fails on the game.
        DataFault: The file does not exist.
    """

    def __init__(self, path: str) -> None:
        if not os.path.isfile(path):
            raise DataFault(f"game file {path!r} doesn't exist; check the path")
        self.path = path
        self._env: Any = _reference_stack()
        with _guarded(f"loading {path}"):
            self._env.load(path)

    def reset(self) -> Snapshot:
        """Starts the game from its beginning."""
        with _guarded(f"resetting {self.path}"):
            return _snapshot(self._env.reset())

    def step(self, command: str) -> Snapshot:
        """Carries out a command."""
        with _guarded(f"command {command!r} in {self.path}"):
            state, score, done = self._env.step(command)
        won = bool(state["won"])
        if (int(score), bool(done)) != (int(won), won):
            raise EnvFault(f"reference has score {score} and done {done} with won {won} in {self.path}")
        return _snapshot(state)

    def close(self) -> None:
        """Gives the stack back for the next game; the game can't be played any more."""
        if self._env is not None:
            _idle_stacks.append(self._env)
        self._env = None


class TextWorldEnv:
    """The reference as a :class:`envrl.envs.base.TextEnv`; the same protocol as the native engine."""

    def __init__(self) -> None:
        self._game: ReferenceGame | None = None
        self._steps_left = 0
        self._over = True

    def reset(self, game: Game, seed: int) -> Observation:
        """Starts an episode; the game has no randomness, so ``seed`` makes no difference.

        Raises:
            DataFault: The game file does not exist.
            EnvFault: alfworld is not installed, or the reference can't load the game.
        """
        del seed
        if self._game is None or self._game.path != game.spec:
            self.close()
            self._game = ReferenceGame(game.spec)
        shown = self._game.reset()
        self._steps_left = game.max_steps
        self._over = False
        return Observation(shown.feedback, shown.admissible)

    def step(self, action: str) -> StepResult:
        """Carries out a command; ``info`` has won, task_score and score (1.0 or 0.0).

        Raises:
            EnvFault: Before the first ``reset``, after the end of the episode, or if the reference fails.
        """
        if self._game is None or self._over:
            raise EnvFault("step() without a running episode; call reset(game, seed) first")
        shown = self._game.step(action)
        self._steps_left -= 1
        truncated = not shown.won and self._steps_left <= 0
        self._over = shown.won or truncated
        score = 1.0 if shown.won else 0.0
        return StepResult(
            Observation(shown.feedback, shown.admissible),
            reward=score,
            terminated=shown.won,
            truncated=truncated,
            info={"won": shown.won, "task_score": score, "score": score},
        )

    def close(self) -> None:
        """Unloads the game; the environment can be reset again."""
        if self._game is not None:
            self._game.close()
        self._game = None
        self._over = True


def _reference_stack() -> Any:
    if _idle_stacks:
        return _idle_stacks.pop()
    try:
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos
        from textworld import EnvInfos
        from textworld.envs import PddlEnv
    except ImportError as error:
        raise EnvFault(
            f"backend textworld needs the alfworld package ({error}); install it with "
            "'pip install alfworld', or use backend native"
        ) from error
    return AlfredInfos(AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True))))


@contextmanager
def _guarded(doing: str) -> Iterator[None]:
    """Runs the reference alone, undoes what it does to sys.argv, and names what failed."""
    with _TRANSLATOR:
        arguments = sys.argv
        try:
            yield
        except (Exception, SystemExit) as error:
            raise EnvFault(f"reference failed at {doing}: {type(error).__name__}: {error}") from error
        finally:
            sys.argv = arguments


def _snapshot(state: Any) -> Snapshot:
    return Snapshot(state.feedback, tuple(state["admissible_commands"]), bool(state["won"]))
