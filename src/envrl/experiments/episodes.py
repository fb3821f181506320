"""Writes a page to read a run's episodes in: ``python -m envrl.experiments.episodes --help``.

    python -m envrl.experiments.episodes mlruns/studies/quick/runs/grpo/seed_0
    python -m envrl.experiments.episodes mlruns/studies/quick --iteration all --predict 8

The page is made from what the runs have kept at their evaluations. With ``--predict``, their trained policies
are asked what they expect in the turns of some of the episodes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from envrl.analysis.episode_page import PageRun, episode_page
from envrl.analysis.episodes import Episode, read_episodes
from envrl.analysis.records import write_text_atomic
from envrl.analysis.summary import flatten
from envrl.errors import ConfigFault, DataFault
from envrl.experiments.console import guarded, parse_or_fault, say
from envrl.experiments.trained import trained_config

Iteration = int | Literal["all", "last"]


@dataclass(frozen=True)
class _Chosen:
    """A run's folder and the episodes that are taken from it."""

    folder: Path
    episodes: Sequence[Episode]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = _parser()

    def command() -> int:
        options = parse_or_fault(lambda: parser.parse_args(arguments))
        return _command(options, Console(stderr=True))

    return guarded(command, "interrupted; answers found so far are kept")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m envrl.experiments.episodes",
        description="Write one HTML page to read the episodes of evaluations in, with filters, every token's "
        "log-probability and, if asked for, what the trained policy expects.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("run", type=Path, nargs="+", help="folder of a run, or of a study for all its runs")
    parser.add_argument(
        "--out", type=Path, help="file to write (default: episodes.html in the first folder given)"
    )
    parser.add_argument(
        "--iteration",
        default="last",
        help="evaluation to show: a number of iterations, last, or all (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=2000,
        help="most episodes on the page, the same share of each run and evenly spread (default: %(default)s)",
    )
    parser.add_argument(
        "--predict",
        type=int,
        default=0,
        metavar="K",
        help="ask the trained policy of each run what it expects in the turns of K of its episodes, evenly "
        "spread (default: 0); answers are kept, so asking again costs nothing",
    )
    return parser


def _command(options: argparse.Namespace, console: Console) -> int:
    iteration = _iteration(options.iteration)
    for name, least in (("limit", 1), ("predict", 0)):
        if getattr(options, name) < least:
            raise ConfigFault(f"--{name} is {getattr(options, name)}; use {least} or a larger number")
    out: Path = options.out or options.run[0] / "episodes.html"
    if out.is_dir():
        raise ConfigFault(f"--out {out} is a folder; name a file, such as {out / 'episodes.html'}")
    chosen = _read(options.run, iteration, console)
    found = sum(len(run.episodes) for run in chosen)
    if not found:
        raise DataFault(f"the files below {chosen[0].folder} hold no episode; name another run")
    chosen = _limited(chosen, options.limit)
    shown = sum(len(run.episodes) for run in chosen)
    runs = [_page_run(run, name) for run, name in zip(chosen, _names(chosen), strict=True)]
    if options.predict:
        runs = [_asked(run, options.predict, console) for run in runs]
    page = episode_page(runs, left_out=found - shown)
    write_text_atomic(out, page)
    left_out = f" ({found - shown} left out by --limit {options.limit})" if found > shown else ""
    print(
        f"wrote {out}: {_counted(shown, 'episode')} of {_counted(len(runs), 'run')}{left_out}, "
        f"{len(page) / 1e6:.1f} MB; open it in a browser"
    )
    return 0


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _iteration(text: str) -> Iteration:
    if text in ("all", "last"):
        return text  # type: ignore[return-value]
    if not text.isdecimal():
        raise ConfigFault(f"--iteration {text}: use a number of iterations, last, or all")
    return int(text)


def _read(folders: Sequence[Path], iteration: Iteration, console: Console) -> list[_Chosen]:
    """The episodes of all runs; those of a study that have none are named and left out.

    Raises:
        DataFault: A folder is no run and no study, a run that was named has no such episodes, or none has.
    """
    read: dict[Path, _Chosen] = {}
    missing: list[DataFault] = []
    for folder in folders:
        in_study = sorted(folder.glob("runs/*/seed_*"))
        if not folder.is_dir():
            raise DataFault(
                f"'{folder}' is no folder; name that of a run, such as "
                "mlruns/studies/quick/runs/grpo/seed_0, or that of a study, such as mlruns/studies/quick"
            )
        for run in in_study or [folder]:
            try:
                read[run.resolve()] = _Chosen(run, list(read_episodes(run, iteration)))
            except DataFault as fault:
                if not in_study:
                    raise
                missing.append(fault)
    if not read:
        raise missing[0]
    for reason in missing:
        say(console, f"left out: {reason}", "yellow")
    return list(read.values())


def _limited(runs: Sequence[_Chosen], limit: int) -> list[_Chosen]:
    """At most so many episodes in all; a run with fewer than its share leaves room for others."""
    kept: dict[int, int] = {}
    left = limit
    for number in sorted(range(len(runs)), key=lambda n: len(runs[n].episodes)):
        kept[number] = min(len(runs[number].episodes), left // (len(runs) - len(kept)))
        left -= kept[number]
    return [replace(run, episodes=_spread(run.episodes, kept[n])) for n, run in enumerate(runs) if kept[n]]


def _spread(episodes: Sequence[Episode], count: int) -> Sequence[Episode]:
    """So many of them, evenly spread."""
    count = min(count, len(episodes))
    return [episodes[n * len(episodes) // count] for n in range(count)]


def _names(runs: Sequence[_Chosen]) -> list[str]:
    """Arm and seed, and the folder where that names two runs."""
    names = [f"{run.episodes[0].arm}/seed_{run.episodes[0].seed}" for run in runs]
    return [str(run.folder) if names.count(n) > 1 else n for run, n in zip(runs, names, strict=True)]


def _page_run(run: _Chosen, name: str) -> PageRun:
    return PageRun(name, str(run.folder), run.episodes, flatten(trained_config(run.folder)))


def _asked(run: PageRun, count: int, console: Console) -> PageRun:
    """The run with what its policy answers about some of its episodes."""
    from envrl.experiments.expectations import expectations

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console)
    task = progress.add_task(f"asking the policy of {run.name}")

    def tell(done: int, total: int) -> None:
        # Started with the first question: nothing is shown where every answer is known.
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        asked = expectations(Path(run.folder), _spread(run.episodes, count), tell)
    finally:
        if progress.live.is_started:
            progress.stop()
    return replace(run, predictions=asked)


if __name__ == "__main__":
    sys.exit(main())
