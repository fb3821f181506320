"""A hand-written player that searches, then acts, on what it has read only. Makes the demonstrations.

It gets the same observations as any policy (texts and admissible commands), never the game's facts.

    python -m envrl.envs.alfworld.expert PATH... [--max-steps 50]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np

from envrl.envs.alfworld.engine import AlfworldEnv
from envrl.envs.alfworld.games import find_game_files, read_game
from envrl.envs.alfworld.memory import Memory, TaskWords, kind_of, parse_task
from envrl.envs.alfworld.rooms import LAMP_PLACES, OPENABLE, TOOLS, TYPICAL_LOAD, holdable
from envrl.envs.demonstrate import demonstrate
from envrl.errors import ConfigFault, EnvrlError
from envrl.types import Observation

_CHANGES = {
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}
_OPENABLE = frozenset(kind.lower() for kind in OPENABLE)
_IMPLAUSIBLE = 1e-3
_PLACING_ONLY = ("pick_and_place_simple", "pick_two_obj_and_place")
_SEARCH_NOISE = 0.5  # standard deviation of the log score when the search order is varied


@cache
def plausibility(receptacle_kind: str, kind: str) -> float:
    """Expected number of objects of a type on a receptacle of a type, by common sense, not by looking.

    A receptacle's typical load is spread evenly over the types that may lie there; types that don't
    belong there get a thousandth, so that they are searched last but are searched.

    Args:
        receptacle_kind: Lower-case receptacle type.
        kind: Lower-case object type.
    """
    for name, load in TYPICAL_LOAD.items():
        if name.lower() == receptacle_kind:
            if kind.endswith("lamp"):
                return load if name in LAMP_PLACES else load * _IMPLAUSIBLE
            fits = {o.lower() for o in holdable(name)}
            return load / max(1, len(fits)) * (1.0 if kind in fits else _IMPLAUSIBLE)
    return _IMPLAUSIBLE


class Expert:
    """Search-then-act player for the six task types with template goals.

    It may be asked at any point of an episode, also when somebody else chose the commands before, as
    long as it was shown every observation (:meth:`act` shows it).

    Args:
        rng: Varies the order of search, for demonstrations that differ; None always searches the most
            promising receptacle per step first.
    """

    def __init__(self, rng: np.random.Generator | None = None) -> None:
        self._rng = rng
        self._memory = Memory()
        self._task = TaskWords("", "", "", "")
        self._refused: set[tuple[str, str]] = set()
        self._luck: dict[str, float] = {}
        self._admissible: frozenset[str] = frozenset()

    def reset(self, text: str) -> None:
        """Starts an episode.

        Args:
            text: First observation, with the task.

        Raises:
            DataFault: The task is missing or not one of the goal library's sentences.
        """
        self._task = parse_task(text)
        self._memory = Memory()
        self._memory.observe(text)
        self._refused = set()
        noise = [
            0.0 if self._rng is None else self._rng.normal(0, _SEARCH_NOISE) for _ in self._memory.receptacles
        ]
        self._luck = {r: float(np.exp(n)) for r, n in zip(self._memory.receptacles, noise, strict=True)}

    def act(self, observation: Observation) -> str:
        """Takes in an observation and chooses the next command, an admissible one whenever there is any."""
        self._memory.observe(observation.text)
        self._admissible = frozenset(observation.admissible)
        command = self._next()
        if command in self._admissible:
            return command
        return "look" if "look" in self._admissible else min(self._admissible, default="look")

    def _next(self) -> str:
        memory, task = self._memory, self._task
        if memory.holding is None:
            return self._fetch()
        if kind_of(memory.holding) != task.target:
            return self._put_away(memory.holding)
        if task.toggle:
            return self._light()
        change = _CHANGES.get(task.task_type)
        if change and (change, memory.holding) not in memory.changes:
            return self._use_tool(change, memory.holding)
        return self._deliver(memory.holding, self._destinations())

    def _near(self, receptacle: str) -> bool:
        return f"examine {receptacle}" in self._admissible

    def _reach(self, receptacle: str) -> str:
        """Next command on the way to a receptacle's inside; empty when everything is done."""
        if not self._near(receptacle):
            return f"go to {receptacle}"
        opening = f"open {receptacle}"
        return opening if opening in self._admissible else ""

    def _fetch(self) -> str:
        """Takes a known target object that is not where it belongs yet, or searches for one."""
        # Two objects have to share one receptacle, so what lies in another one of its type must move.
        settled = self._destinations()[:1] if self._task.task_type == "pick_two_obj_and_place" else []
        seen = self._memory.where(self._task.target)
        known = [pair for pair in seen if pair[1] not in settled and pair not in self._refused]
        known.sort(key=lambda pair: (not self._near(pair[1]), pair[1] in self._memory.closed))
        for target, receptacle in known:
            take = f"take {target} from {receptacle}"
            if take in self._admissible:
                return take
            if command := self._reach(receptacle):
                return command
            self._refused.add((target, receptacle))
        return self._search(self._task.target)

    def _search(self, kind: str) -> str:
        """Goes for the unseen receptacle with the best chance per command."""
        unseen = [r for r in self._memory.receptacles if r not in self._memory.contents]
        if not unseen:
            return "look"

        def chance_per_command(receptacle: str) -> float:
            shut = kind_of(receptacle) in _OPENABLE
            commands = (0 if self._near(receptacle) else 1) + shut or 1
            chance = plausibility(kind_of(receptacle), kind) * self._luck[receptacle] / commands
            # Who asks only to move a thing somewhere does not have it there already.
            asked_for = kind_of(receptacle) == self._task.receptacle and self._task.task_type in _PLACING_ONLY
            return chance * (_IMPLAUSIBLE if asked_for else 1.0)

        best = max(unseen, key=chance_per_command)
        return self._reach(best) or f"examine {best}"

    def _destinations(self) -> list[str]:
        """Receptacles of the goal's type, best first: most targets there already, then least walking."""

        def rank(receptacle: str) -> tuple[int, bool, bool]:
            there = sum(kind_of(o) == self._task.target for o in self._memory.contents.get(receptacle, ()))
            if (
                there
            ):  # then where the player stands must not matter, or two half-filled ones would take turns
                return (-there, False, False)
            is_open = receptacle in self._memory.contents and receptacle not in self._memory.closed
            return (0, not self._near(receptacle), not is_open)

        places = [r for r in self._memory.receptacles if kind_of(r) == self._task.receptacle]
        return sorted((r for r in places if (self._task.target, r) not in self._refused), key=rank)

    def _put_away(self, thing: str) -> str:
        """Frees the hand of something that is not wanted, here if possible."""
        kind = kind_of(thing)
        return self._deliver(
            thing,
            sorted(
                self._memory.receptacles, key=lambda r: (not self._near(r), -plausibility(kind_of(r), kind))
            ),
        )

    def _deliver(self, thing: str, places: Sequence[str]) -> str:
        """Next command that brings the thing to the first place that accepts it."""
        for receptacle in places:
            refused = (kind_of(thing), receptacle)
            if refused in self._refused:
                continue
            if self._near(receptacle) and (command := self._deposit(thing, receptacle)):
                return command
            if command := self._reach(receptacle):
                return command
            self._refused.add(refused)
        return "look"

    def _deposit(self, thing: str, receptacle: str) -> str:
        """The admissible command that puts the thing there, in either grammar's words; empty if none."""
        words = (f"move {thing} to {receptacle}", f"put {thing} in/on {receptacle}")
        return next((command for command in words if command in self._admissible), "")

    def _use_tool(self, change: str, thing: str) -> str:
        kind = TOOLS[self._task.task_type].lower()
        tools = [r for r in self._memory.receptacles if kind_of(r) == kind]
        tools.sort(key=lambda r: not self._near(r))
        for tool in tools:
            command = f"{change} {thing} with {tool}"
            if command in self._admissible:
                return command
            if not self._near(tool):
                return f"go to {tool}"
        return "look"

    def _light(self) -> str:
        for lamp, receptacle in self._memory.where(self._task.toggle):
            if f"use {lamp}" in self._admissible:
                return f"use {lamp}"
            if not self._near(receptacle):
                return f"go to {receptacle}"
        return self._search(self._task.toggle)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays game files with the expert and prints how many it wins; returns the exit code."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.envs.alfworld.expert",
        description="Plays ALFWorld games with the search-then-act expert and counts what it wins.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="game files (.tw-pddl) or folders of them")
    parser.add_argument("--max-steps", type=int, default=50, help="commands an episode may use (default: 50)")
    options = parser.parse_args(arguments)
    try:
        if options.max_steps < 1:
            raise ConfigFault(f"--max-steps {options.max_steps}: allow at least 1 command")
        games = [read_game(path, "unknown", options.max_steps) for path in find_game_files(options.paths)]
        env, expert = AlfworldEnv(), Expert()
        played = [demonstrate(env, game, expert) for game in games]
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for run in played:
        print(f"{'won ' if run.won else 'lost'} {len(run.commands):3d} {run.game.family} {run.game.spec}")
    mean_steps = sum(len(run.commands) for run in played) / len(played)
    print(f"games={len(played)} won={sum(run.won for run in played)} mean_steps={mean_steps:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
