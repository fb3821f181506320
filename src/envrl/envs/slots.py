"""One environment of a pool, whose failures are results instead of exceptions."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from envrl.envs.base import TextEnv
from envrl.errors import EnvFault
from envrl.types import Game, Observation, StepResult


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

    def reset(self, game: Game, seed: int) -> SlotResult:
        """Starts an episode; any failure is a fault."""
        self._episode, self._action = f"game {game.game_id!r} ({game.spec}), seed {seed}", None
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
        try:
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
        result = self.fault(f"raised {type(error).__name__}: {error} [{where}]")
        self.discard()
        return result


def _checked_observation(value: object) -> Observation:
    """Refuses what is no observation, before it fails far from the environment that made it."""
    if not isinstance(value, Observation):
        raise EnvFault(f"answered {value!r:.200} instead of an Observation")
    if not isinstance(value.text, str):
        raise EnvFault(f"answered an Observation whose text is {value.text!r:.200}, not a string")
    _refuse_unwritable(value.text)
    # By type first: one check for each of dozens of commands would cost more than everything else here.
    kinds = set(map(type, value.admissible)) if isinstance(value.admissible, tuple) else {object}
    if not all(issubclass(kind, str) for kind in kinds):
        raise EnvFault(
            f"answered an Observation whose admissible is {value.admissible!r:.200}, no tuple of strings"
        )
    return value


def _checked_step(value: object) -> StepResult:
    """Refuses what is no step result, see :class:`envrl.types.StepResult`."""
    if not isinstance(value, StepResult):
        raise EnvFault(f"answered {value!r:.200} instead of a StepResult")
    _checked_observation(value.observation)
    if not math.isfinite(value.reward):
        raise EnvFault(f"answered the reward {value.reward!r}, which is not finite")
    if missing := {"won", "task_score"} - value.info.keys():
        raise EnvFault(f"answered a StepResult whose info lacks {sorted(missing)}")
    if type(value.reward) is not float:
        # A number of numpy's would be refused by whatever writes it down later.
        value = replace(value, reward=float(value.reward))
    return value


def _refuse_unwritable(text: str) -> None:
    """Half a surrogate pair can be held in a string, and neither be tokenised nor written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EnvFault(f"answered a text that is no Unicode at character {error.start}") from error
