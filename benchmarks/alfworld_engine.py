"""Times the native ALFWorld engine against the reference on the same games and commands.

    python benchmarks/alfworld_engine.py PATH... [--games N] [--steps M] [--out FILE]

For each game both backends load and reset once and then play the same random commands (drawn from
what is admissible), admissible commands included in every step. ``step_ratio`` compares exactly that:
the native engine plays the sequence on a freshly loaded game, where everything is worked out for the
first time. ``native_steps_per_s`` is the rate over that episode and nine more of other random commands
on the same game, as in training, where a game is played many times. Times are CPU seconds of one core;
drawing the commands is not timed. Memory is the growth of the process while 1,000 games (files
repeated if there are fewer) are loaded, reset and played for one episode each.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from rich.console import Console
from rich.table import Table

from envrl.envs.alfworld.engine import CompiledGame, clear_cache, load_game
from envrl.envs.alfworld.games import find_game_files
from envrl.envs.alfworld.textworld import ReferenceGame
from envrl.errors import ConfigFault, EnvrlError
from envrl.seeding import generator

DEFAULT_OUT = Path(__file__).parent / "results" / "alfworld_engine.json"
HELD_GAMES = 1000
EPISODES = 10
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GameTiming:
    """CPU seconds of one game: load with reset, and an episode of ``steps`` commands.

    ``native_steps_s`` is the mean over the first and the further episodes.
    """

    game: str
    steps: int
    reference_load_s: float
    native_load_s: float
    reference_steps_s: float
    native_first_steps_s: float
    native_steps_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals over the games; ratios are reference seconds over native seconds."""

    games: int
    steps: int
    step_ratio: float
    all_step_ratio: float
    load_ratio: float
    native_steps_per_s: float
    native_first_steps_per_s: float
    reference_steps_per_s: float
    native_load_ms: float
    reference_load_ms: float
    held_games: int
    held_mib: float


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Result and CPU seconds of this process."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def draw_commands(game: CompiledGame, steps: int, seed: int) -> list[str]:
    """Commands of one random episode."""
    rng = generator(seed, "benchmark")
    state = game.new_state()
    commands = []
    for _ in range(steps):
        admissible = state.admissible()
        commands.append(admissible[int(rng.integers(len(admissible)))])
        state.step(commands[-1])
    return commands


def play_native(game: CompiledGame, commands: Sequence[str]) -> int:
    """Plays an episode natively; counts characters so that nothing is left unread."""
    state = game.new_state()
    return sum(len(state.step(c)) + len(state.admissible()) for c in commands)


def play_reference(game: ReferenceGame, commands: Sequence[str]) -> int:
    """Plays the same episode on the reference."""
    shown = [game.step(c) for c in commands]
    return sum(len(s.feedback) + len(s.admissible) for s in shown)


def time_game(path: Path, steps: int, seed: int) -> GameTiming:
    """Times one game on both backends.

    Raises:
        EnvrlError: A backend can't play it, or the two don't show the same amount of text.
    """
    episodes = [draw_commands(load_game(path), steps, seed + i) for i in range(EPISODES)]
    commands = episodes[0]
    clear_cache()
    game, native_load = timed(lambda: _load_and_reset(path))
    seen, first = timed(lambda: play_native(game, commands))
    _, further = timed(lambda: [play_native(game, episode) for episode in episodes[1:]])
    reference, construct_s = timed(lambda: ReferenceGame(str(path)))
    _, reset_s = timed(reference.reset)
    expected, reference_steps = timed(lambda: play_reference(reference, commands))
    reference.close()
    if seen != expected:
        raise ConfigFault(f"{path}: the backends differ; run python -m envrl.envs.alfworld.compare on it")
    return GameTiming(
        game=str(path),
        steps=steps,
        reference_load_s=construct_s + reset_s,
        native_load_s=native_load,
        reference_steps_s=reference_steps,
        native_first_steps_s=first,
        native_steps_s=(first + further) / EPISODES,
    )


def _load_and_reset(path: Path) -> CompiledGame:
    game = load_game(path)
    game.new_state().admissible()
    return game


def held_memory_mib(paths: Sequence[Path], steps: int) -> float:
    """Growth of the process's resident memory in MiB while 1,000 played games are held."""
    clear_cache()
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    held = []
    for i in range(HELD_GAMES):
        game = _uncached(paths[i % len(paths)])
        draw_commands(game, steps, seed=i)
        held.append(game)
    grown: int = process.memory_info().rss - before
    held.clear()
    return grown / 2**20


def _uncached(path: Path) -> CompiledGame:
    game = load_game(path)
    clear_cache()  # so that a repeated file is a game of its own, as another file would be
    return game


def summarise(timings: Sequence[GameTiming], held_mib: float) -> Summary:
    """Totals over all games."""
    steps = sum(t.steps for t in timings)
    reference_steps = sum(t.reference_steps_s for t in timings)
    native_steps = sum(t.native_steps_s for t in timings)
    first_steps = sum(t.native_first_steps_s for t in timings)
    reference_load = sum(t.reference_load_s for t in timings)
    native_load = sum(t.native_load_s for t in timings)
    return Summary(
        games=len(timings),
        steps=steps,
        step_ratio=reference_steps / first_steps,
        all_step_ratio=reference_steps / native_steps,
        load_ratio=reference_load / native_load,
        native_steps_per_s=steps / native_steps,
        native_first_steps_per_s=steps / first_steps,
        reference_steps_per_s=steps / reference_steps,
        native_load_ms=1000 * native_load / len(timings),
        reference_load_ms=1000 * reference_load / len(timings),
        held_games=HELD_GAMES,
        held_mib=held_mib,
    )


def show(summary: Summary) -> None:
    """Prints the totals as a table."""
    table = Table(title=f"{summary.games} games, {summary.steps} steps, CPU time of one core")
    for column in ("", "reference", "native", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    load = f"{summary.reference_load_ms:.0f}", f"{summary.native_load_ms:.2f}", f"{summary.load_ratio:.0f}"
    first = f"{summary.native_first_steps_per_s:.0f}", f"{summary.step_ratio:.0f}"
    again = f"{summary.native_steps_per_s:.0f}", f"{summary.all_step_ratio:.0f}"
    table.add_row("load + reset (ms a game)", *load)
    table.add_row("steps/s, the same commands", f"{summary.reference_steps_per_s:.1f}", *first)
    table.add_row(f"steps/s, mean of {EPISODES} episodes", "", *again)
    table.add_row(f"{summary.held_games} games held (MiB)", "", f"{summary.held_mib:.0f}", "")
    Console().print(table)


def write(out: Path, summary: Summary, timings: Sequence[GameTiming]) -> None:
    """Writes totals, games and machine as JSON."""
    machine: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    content = {"summary": asdict(summary), "games": [asdict(t) for t in timings], "platform": machine}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Times native engine and reference on the same games and commands; returns the exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="game files (.tw-pddl) or folders of them")
    parser.add_argument("--games", type=int, default=12, help="games to time, evenly picked (default: 12)")
    parser.add_argument("--steps", type=int, default=50, help="commands per game (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the commands (default: 0)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        if options.games < 1 or options.steps < 1:
            raise ConfigFault(f"--games {options.games} --steps {options.steps}: both must be at least 1")
        paths = find_game_files(options.paths)
        chosen = paths[:: max(1, len(paths) // options.games)][: options.games]
        timings = [time_game(path, options.steps, options.seed) for path in chosen]
        summary = summarise(timings, held_memory_mib(paths[:HELD_GAMES], options.steps))
        write(options.out, summary, timings)
    except (EnvrlError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(summary)
    print(
        f"step_ratio={summary.step_ratio:.1f} load_ratio={summary.load_ratio:.1f} "
        f"native_steps_per_s={summary.native_steps_per_s:.0f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
