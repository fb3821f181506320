"""One environment of a pool, whose failures are results instead of exceptions."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from envrl.envs.base import TextEnv
from envrl.errors import EnvFault
from envrl.types import Game, Observation, StepResult

MOST_CHARACTERS = 1_000_000
"""Longest text of an observation, and of all its admissible commands together. Far more than any context
holds; episodes keep what they saw, so without a bound one environment could fill the memory of the run."""
MOST_ADMISSIBLE = 10_000
"""Most admissible commands of an observation."""
_TOLD = 500
"""Characters of an error's own text that a fault repeats."""


@dataclass(frozen=True, slots=True)
class SlotResult:
    """What one slot answered; exactly one of the three is set.

    Attributes:
        observation: Answer to ``reset``.
        step: Answer to ``step``.
        fault: The environment raised, hung or broke its protocol. The episode is over; the slot can be
            reset and then has a new environment.
    """

    observation: Observation | None = None
    step: StepResult | None = None
    fault: EnvFault | None = None

    def __post_init__(self) -> None:
        """Refuses a result that says nothing or two things."""
        if sum(part is not None for part in (self.observation, self.step, self.fault)) != 1:
            raise ValueError(f"A slot's result must be one of observation, step, fault, got {self}.")


class SlotHost:
    """One environment, built when needed, whose failures are turned into results."""

    def __init__(self, make_env: Callable[[], TextEnv], slot: int) -> None:
        self._make_env = make_env
        self._slot = slot
        self._env: TextEnv | None = None
        self._episode = "no game yet"
        self._action: str | None = None
        self._steps = self._most_steps = 0

    def reset(self, game: Game, seed: int) -> SlotResult:
        """Starts an episode; any failure is a fault."""
        self._episode = f"game {game.game_id!r} ({_told(game.spec)}), seed {seed}"
        self._action, self._steps, self._most_steps = None, 0, game.max_steps
        try:
            if self._env is None:
                self._env = self._make_env()
            return SlotResult(observation=_checked_observation(self._env.reset(game, seed)))
        except Exception as error:
            return self._failed(error)

    def step(self, action: str) -> SlotResult:
        """Carries out one command; any failure is a fault."""
        if self._env is None:
            return self.fault("has no episode under way; reset the slot first")
        self._action = action
        self._steps += 1
        try:
            if self._steps > self._most_steps:
                raise EnvFault(f"did not end the episode within the game's {self._most_steps} steps")
            return SlotResult(step=_checked_step(self._env.step(action)))
        except Exception as error:
            return self._failed(error)

    def discard(self) -> None:
        """Closes the environment and forgets it; what ``close`` raises is of no more interest."""
        env, self._env = self._env, None
        if env is not None:
            try:
                env.close()
            except Exception:  # the episode is over and its result known
                return

    def fault(self, what: str) -> SlotResult:
        """A result that says what happened where."""
        place = "at the reset" if self._action is None else f"at the action {self._action!r}"
        return SlotResult(fault=EnvFault(f"Environment {self._slot} {what} ({self._episode}, {place})."))

    def _failed(self, error: Exception) -> SlotResult:
        """The fault of an exception; its state being unknown, the environment goes."""
        # Named in words: a kept traceback would keep the environment alive through its frames.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        result = self.fault(f"raised {type(error).__name__}: {_message(error)} [{where}]")
        self.discard()
        return result


def _checked_observation(value: object) -> Observation:
    """Refuses what is no observation, before it fails far from the environment that made it."""
    if not isinstance(value, Observation):
        raise EnvFault(f"answered {_shown(value)} instead of an Observation")
    if not isinstance(value.text, str):
        raise EnvFault(f"answered an Observation whose text is {_shown(value.text)}, not a string")
    # Length first: everything else would copy a text of gigabytes.
    if len(value.text) > MOST_CHARACTERS:
        raise EnvFault(f"answered a text of {len(value.text)} characters, more than {MOST_CHARACTERS}")
    _refuse_unwritable(value.text, "a text")
    # By type first: one check for each of dozens of commands would cost more than everything else here.
    if not isinstance(value.admissible, tuple):
        raise EnvFault(
            f"answered an Observation whose admissible is {_shown(value.admissible)}, no tuple of strings"
        )
    if len(value.admissible) > MOST_ADMISSIBLE:
        raise EnvFault(f"answered {len(value.admissible)} admissible commands, more than {MOST_ADMISSIBLE}")
    for kind in set(map(type, value.admissible)):
        if not issubclass(kind, str):
            raise EnvFault(f"answered an Observation with a {kind.__name__} among its admissible commands")
    if (characters := sum(map(len, value.admissible))) > MOST_CHARACTERS:
        raise EnvFault(
            f"answered admissible commands of {characters} characters together, more than {MOST_CHARACTERS}"
        )
    _refuse_unwritable("".join(value.admissible), "an admissible command")
    return value


def _checked_step(value: object) -> StepResult:
    """Refuses what is no step result, see :class:`envrl.types.StepResult`."""
    if not isinstance(value, StepResult):
        raise EnvFault(f"answered {_shown(value)} instead of a StepResult")
    _checked_observation(value.observation)
    if not math.isfinite(value.reward):
        raise EnvFault(f"answered the reward {value.reward!r}, which is not finite")
    if missing := {"won", "task_score"} - value.info.keys():
        raise EnvFault(f"answered a StepResult whose info lacks {sorted(missing)}")
    for name in ("terminated", "truncated"):
        _refuse_unclear(name, getattr(value, name))
    for name in ("won", "admissible"):
        _refuse_unclear(f"info[{name!r}]", value.info.get(name, False))
    score = value.info["task_score"]
    if not isinstance(score, (int, float, np.number)) or not math.isfinite(score):
        raise EnvFault(f"answered the task_score {_shown(score)}, which is no finite number")
    if type(value.reward) is not float:
        # A number of numpy's would be refused by whatever writes it down later.
        value = replace(value, reward=float(value.reward))
    return value


def _refuse_unclear(name: str, value: Any) -> None:
    """Everything but true and false, whose truth may be an error that is raised far from here."""
    if not (isinstance(value, (bool, int, float, np.generic)) and value in (0, 1)):
        raise EnvFault(f"answered a StepResult whose {name} is {_shown(value)}, neither true nor false")


def _refuse_unwritable(text: str, what: str) -> None:
    """Half a surrogate pair can be held in a string, and neither be tokenised nor written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EnvFault(f"answered {what} that is no Unicode at character {error.start}") from error


def _shown(value: object) -> str:
    """A value in an error's words, without writing out one that may be huge."""
    if isinstance(value, (str, bytes)):
        return repr(value[:100])
    return repr(value) if value is None or isinstance(value, (bool, float)) else f"a {type(value).__name__}"


def _message(error: Exception) -> str:
    """Text of an environment's own error, which may fail at that too."""
    try:
        return _told(str(error))
    except Exception as another:
        return f"(its text raised {type(another).__name__})"


def _told(text: str) -> str:
    """As much of a text as a fault repeats, in letters that can be written."""
    cut = text if len(text) <= _TOLD else text[:_TOLD] + "…"
    return cut.encode("utf-8", "backslashreplace").decode()
