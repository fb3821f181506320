"""How long a study will take: from its finished runs, or from a few iterations of each arm made for that."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from envrl.experiments.config import RunConfig
from envrl.experiments.console import clock, say
from envrl.experiments.study import Study
from envrl.experiments.workers import PlannedRun
from envrl.tracking.store import URI_VARIABLE, open_store
from envrl.training.progress import Progress

_TIMED = 3
"""Iterations timed: the first is measured more closely than others, the last is followed by an evaluation."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run of an arm takes.

    Attributes:
        seconds: Wall time of one run.
        source: Where the figure comes from, for people.
    """

    seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall times of a run's parts, seconds.

    Attributes:
        setup: Loading, and everything else that happens once.
        iteration: Collecting and updating.
        diagnosed: The same in an iteration of ``train.diagnose_every``.
        evaluation: Playing the panel, and asking about the environment.
    """

    setup: float
    iteration: float
    diagnosed: float
    evaluation: float

    def run_seconds(self, config: RunConfig) -> float:
        """Wall time of a whole run of this configuration."""
        iterations, every = config.train.iterations, config.train.diagnose_every
        diagnosed = -(-iterations // every) if every else 0
        evaluations = 1 + -(-iterations // config.evaluation.every)
        return (
            self.setup
            + self.evaluation * evaluations
            + self.diagnosed * diagnosed
            + self.iteration * (iterations - diagnosed)
        )


def from_finished_runs(study: Study) -> dict[str, Estimate]:
    """Mean wall time of the finished runs of each arm that has some."""
    seconds: dict[str, list[float]] = {}
    for run in study.runs:
        record = study.state(run)
        if record is not None and record.status == "finished":
            seconds.setdefault(run.arm, []).append(record.seconds)
    return {
        arm: Estimate(sum(found) / len(found), f"mean of its {len(found)} finished")
        for arm, found in seconds.items()
    }


def timed(config: RunConfig) -> Timing:
    """Begins a run in a temporary folder, times three iterations and two evaluations, and stops it.

    Raises:
        EnvrlError: The run can't begin, or fails.
    """
    from envrl.experiments.run import execute_run
    from envrl.experiments.run_place import RunPlace

    ends: dict[int, float] = {}

    def report(progress: Progress) -> None:
        ends[progress.iteration] = progress.seconds
        if progress.iteration == _TIMED:
            raise KeyboardInterrupt

    short = replace(config, evaluation=replace(config.evaluation, every=_TIMED))
    with tempfile.TemporaryDirectory(prefix="envrl-estimate-") as folder, _no_server():
        place = RunPlace(Path(folder) / "study", "estimate", "estimate", open_store(Path(folder)))
        try:
            record = execute_run(short, place, report)
            total = record.seconds
        except KeyboardInterrupt:
            if _TIMED not in ends:
                raise
            from envrl.analysis.records import load_record

            total = load_record(place.folder(config.seed) / "record.json").seconds
    return _timing(ends, total)


def _timing(ends: dict[int, float], total: float) -> Timing:
    """From the times at which iterations ended; a run shorter than three iterations has fewer of them."""
    steps = [ends[n] - ends[n - 1] for n in sorted(ends) if n - 1 in ends]
    diagnosed, iteration = steps[0], steps[min(1, len(steps) - 1)]
    evaluation = max(0.0, steps[-1] - iteration) if len(steps) == _TIMED else 0.0
    return Timing(max(0.0, total - ends[max(ends)] - evaluation), iteration, diagnosed, evaluation)


@contextmanager
def _no_server() -> Iterator[None]:
    """Keeps what is timed out of the tracking server that the study itself will use."""
    uri = os.environ.pop(URI_VARIABLE, None)
    try:
        yield
    finally:
        if uri is not None:
            os.environ[URI_VARIABLE] = uri


def describe_time(study: Study, measure: bool, console: Console) -> None:
    """Prints how long the unfinished runs will take, arm by arm and in all.

    Args:
        study: The study.
        measure: Time the arms of which no run is finished; otherwise they count as the others' mean.
        console: Where to print.

    Raises:
        EnvrlError: A run that is to be timed can't begin, or fails.
    """
    left = _unfinished(study)
    known = from_finished_runs(study)
    unknown = {run.arm: run.config for run in left if run.arm not in known}
    if measure:
        for number, (arm, config) in enumerate(unknown.items(), start=1):
            say(console, f"timing {_TIMED} iterations of {arm} ({number} of {len(unknown)}) …")
            known[arm] = Estimate(timed(config).run_seconds(config), f"from {_TIMED} iterations")
    elif unknown and known:
        mean = sum(estimate.seconds for estimate in known.values()) / len(known)
        known |= {arm: Estimate(mean, "mean of the other arms") for arm in unknown}
    if not left:
        say(console, "every run is finished")
    elif not known:
        say(
            console,
            f"no run is finished to tell the time from; --estimate times {_TIMED} iterations of each arm",
        )
    else:
        for arm in dict.fromkeys(run.arm for run in left):
            say(console, f"  {arm}: {clock(known[arm].seconds)} a run ({known[arm].source})")
        jobs = study.settings.jobs
        total = time_left(left, known, jobs)
        condition = "if every job has a core of its own"
        say(console, f"{len(left)} runs to do, {jobs} at a time: about {clock(total)}, {condition}")


def time_left(runs: Sequence[PlannedRun], estimates: Mapping[str, Estimate], jobs: int) -> float:
    """Wall time of these runs, seconds. Runs that have begun count as a whole."""
    free = [0.0] * jobs
    for run in runs:
        # As the pool does: the next run goes to whoever is free first.
        free.sort()
        free[0] += estimates[run.arm].seconds
    return max(free)


def _unfinished(study: Study) -> Sequence[PlannedRun]:
    states = ((run, study.state(run)) for run in study.runs)
    return [run for run, record in states if record is None or record.status != "finished"]
