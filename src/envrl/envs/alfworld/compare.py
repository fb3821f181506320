"""Plays games on the native engine and on the reference and prints every difference.

    python -m envrl.envs.alfworld.compare PATH... [--steps N] [--seed S]

Each game is played at random first (rare actions preferred; inadmissible and malformed commands mixed
in), then by the expert. After every command the answer, the admissible commands (set and order) and
whether the goal holds are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from envrl.envs.alfworld.engine import GameState, load_game
from envrl.envs.alfworld.games import find_game_files
from envrl.envs.alfworld.textworld import ReferenceGame, Snapshot
from envrl.errors import ConfigFault, EnvrlError
from envrl.seeding import generator
from envrl.types import Observation

EXPERT_STEPS = 50
_MALFORMED_SHARE = 0.12
_WEIGHTS = {"go": 3.0, "look": 1.0, "inventory": 1.0, "help": 0.3, "examine": 1.5}
_USUAL_WEIGHT = 3.0
_RARE = ("heat", "cool", "clean", "use", "slice")
_RARE_WEIGHT = 8.0


@dataclass(frozen=True, slots=True)
class Difference:
    """What the two backends said differently.

    Attributes:
        game: Path of the game file.
        phase: ``random`` or ``expert``.
        step: Number of commands given in this phase, 0 for the start.
        command: The last command.
        what: ``feedback``, ``admissible`` or ``won``.
        native, reference: The two texts.
    """

    game: str
    phase: str
    step: int
    command: str
    what: str
    native: str
    reference: str

    def __str__(self) -> str:
        head = f"{self.game}: {self.phase} step {self.step} {self.command!r}: {self.what} differs"
        return f"{head}\n  native:    {self.native!r}\n  reference: {self.reference!r}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result for one game: commands compared, and the differences (a phase stops at its first)."""

    steps: int
    differences: tuple[Difference, ...]


class RandomPlayer:
    """Random commands from what is admissible, rare ones preferred, with nonsense mixed in."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._seen: dict[str, None] = {}

    def act(self, admissible: Sequence[str]) -> str:
        """Next command for a state with these admissible commands."""
        self._seen.update(dict.fromkeys(admissible))
        by_verb: dict[str, list[str]] = {}
        for command in admissible:
            by_verb.setdefault(command.split()[0], []).append(command)
        verbs = list(by_verb)
        weights = np.array([_RARE_WEIGHT if v in _RARE else _WEIGHTS.get(v, _USUAL_WEIGHT) for v in verbs])
        chosen = by_verb[verbs[int(self._rng.choice(len(verbs), p=weights / weights.sum()))]]
        command = chosen[int(self._rng.integers(len(chosen)))]
        return self._spoiled(command) if self._rng.random() < _MALFORMED_SHARE else command

    def _spoiled(self, command: str) -> str:
        seen = list(self._seen)
        earlier = seen[int(self._rng.integers(len(seen)))]
        choices = (
            earlier,  # was admissible once, may not be now
            f"  {command}\t",
            command.upper(),
            f"{command} 1",
            command.rsplit(" ", 1)[0],
            command.replace(" ", "  ", 1),
            "",
            "fly to the moon",
            "take mug 99 from desk 99",
            "go to loc 1",
        )
        return choices[int(self._rng.integers(len(choices)))]


def compare_game(path: str | Path, steps: int, seed: int, expert_steps: int = EXPERT_STEPS) -> Comparison:
    """Plays one game on both backends.

    Args:
        path: Game file.
        steps: Random commands.
        seed: Root of the random numbers; each game draws its own from it and its path's name.
        expert_steps: Limit of the expert's commands after that; 0 leaves the expert out.

    Raises:
        DataFault: The native engine can't load the game.
        EnvFault: The reference fails.
    """
    game = load_game(path)
    reference = ReferenceGame(str(path))
    try:
        player = RandomPlayer(generator(seed, "compare", Path(path).parent.name, Path(path).name))
        random_play = _Duel(str(path), "random", game.new_state(), reference)
        random_play.play(lambda shown: player.act(shown.admissible), steps, stop_when_won=False)
        duels = [random_play]
        if expert_steps:
            duels.append(_expert_duel(str(path), game.new_state(), reference, expert_steps))
    finally:
        reference.close()
    return Comparison(sum(d.steps for d in duels), tuple(x for d in duels for x in d.differences))


def _expert_duel(path: str, state: GameState, reference: ReferenceGame, limit: int) -> _Duel:
    from envrl.envs.alfworld.expert import Expert

    expert = Expert()
    expert.reset(state.feedback)
    duel = _Duel(path, "expert", state, reference)
    duel.play(
        lambda shown: expert.act(Observation(shown.feedback, shown.admissible)), limit, stop_when_won=True
    )
    return duel


class _Duel:
    """One episode on both backends, until a difference or the limit."""

    def __init__(self, path: str, phase: str, state: GameState, reference: ReferenceGame) -> None:
        self._path = path
        self._phase = phase
        self._state = state
        self._reference = reference
        self.steps = 0
        self.differences: list[Difference] = []

    def play(self, act: Callable[[Snapshot], str], limit: int, stop_when_won: bool) -> None:
        shown = self._reference.reset()
        self._check("", shown)
        while self.steps < limit and not self.differences and not (stop_when_won and shown.won):
            command = act(shown)
            self.steps += 1
            shown = self._reference.step(command)
            self._state.step(command)
            self._check(command, shown)

    def _check(self, command: str, reference: Snapshot) -> None:
        native = Snapshot(self._state.feedback, self._state.admissible(), self._state.won)
        for what in ("feedback", "admissible", "won"):
            mine, theirs = getattr(native, what), getattr(reference, what)
            if mine != theirs:
                texts = _explain(mine), _explain(theirs)
                self.differences.append(
                    Difference(self._path, self._phase, self.steps, command, what, *texts)
                )


def _explain(value: object) -> str:
    return " | ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays game files on the native engine and on the reference; exit code 1 if they differ."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m envrl.envs.alfworld.compare", description=main.__doc__
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="game files (.tw-pddl) or folders of them")
    parser.add_argument("--steps", type=int, default=40, help="random commands per game (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random play (default: 0)")
    options = parser.parse_args(arguments)
    games = steps = 0
    differences: list[Difference] = []
    try:
        if options.steps < 0 or options.seed < 0:
            raise ConfigFault(f"--steps {options.steps} --seed {options.seed}: neither may be negative")
        for path in find_game_files(options.paths):
            result = compare_game(path, options.steps, options.seed)
            games += 1
            steps += result.steps
            differences += result.differences
            for difference in result.differences:
                print(difference, flush=True)
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"games={games} steps={steps} differences={len(differences)}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
