"""The progress display of a study: where each run stands and how long all of them will take."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from envrl.analysis.records import record_path
from envrl.experiments.console import clock, progress_line, say
from envrl.experiments.workers import PlannedRun
from envrl.training.progress import Progress

_LINES_PER_RUN = 6


class StudyDisplay:
    """Prints a line when a run has come further, from the runs' progress files.

    Args:
        folder: Folder of the study.
        runs: Runs this command works on.
        console: Where to print.
    """

    def __init__(self, folder: Path, runs: Sequence[PlannedRun], console: Console) -> None:
        self._paths = {
            run.label: record_path(folder, run.arm, run.config.seed).with_name("progress.json")
            for run in runs
        }
        self._total = sum(run.config.train.iterations for run in runs)
        self._width = max((len(label) for label in self._paths), default=0)
        self._console = console
        self._begun = time.time()
        self._started: float | None = None
        self._first: dict[str, int] = {}
        self._last: dict[str, Progress] = {}

    def update(self) -> None:
        """Reads the files and prints what is new."""
        for label, path in self._paths.items():
            progress = self._read(path)
            if progress is None or progress == self._last.get(label):
                continue
            # The clock starts here: the processes' own start says nothing about an iteration.
            self._started = self._started or time.perf_counter()
            self._first.setdefault(label, progress.iteration)
            self._last[label] = progress
            if _worth_a_line(progress):
                line = progress_line(f"{label:<{self._width}}", progress)
                say(self._console, f"{line}, {clock(self._seconds_left())} for all")

    def _read(self, path: Path) -> Progress | None:
        """The file's content, None if it is not there or from before this command."""
        try:
            if path.stat().st_mtime < self._begun:
                return None
            return Progress(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _seconds_left(self) -> float | None:
        """From the iterations all runs have made under this command; None before any."""
        made = sum(p.iteration - self._first[label] for label, p in self._last.items())
        skipped = sum(self._first.values())
        if made == 0 or self._started is None:
            return None
        seconds = time.perf_counter() - self._started
        return seconds / made * (self._total - skipped - made)


def _worth_a_line(progress: Progress) -> bool:
    every = max(1, progress.iterations // _LINES_PER_RUN)
    return progress.iteration % every == 0 or progress.iteration == progress.iterations
