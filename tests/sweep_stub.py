"""Sweeps whose trials train nothing: a run is a curve made up from its settings, with a real run's record.

As a script it is one machine of a sweep: ``python sweep_stub.py FOLDER STORAGE TRIALS SECONDS [GRACE]``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from envrl.analysis.records import Evaluation, GameOutcome, RunRecord, load_record, record_path, write_record
from envrl.experiments import sweep_worker
from envrl.experiments.config import RunConfig
from envrl.experiments.run_place import RunPlace
from envrl.experiments.runner import GivenUp
from envrl.experiments.sweep_file import Method, StorageSettings, SweepSettings
from envrl.experiments.sweep_search import Search, open_search
from envrl.experiments.sweep_space import Choices, Parameter, Range, Space
from envrl.experiments.sweep_worker import SweepPlace, work_off
from envrl.experiments.workers import WorkPlace
from envrl.training.progress import Progress

SP, RANK = "loss.sp.weight", "policy.lora.rank"
GAMES = 40
BASE: dict[str, Any] = {"train": {"iterations": 8}, "evaluation": {"every": 2}}


def stub_settings(**changes: Any) -> SweepSettings:
    """A sweep over a weight, best at 0.1, and a rank that matters less."""
    space = {SP: Parameter(Range(0.001, 1.0, log=True)), RANK: Parameter(Choices((4, 8)))}
    plain = {"name": "stub", "space": Space(space), "base": BASE, "trials": 12}
    return SweepSettings(**(plain | changes))


def method(kind: str, **options: Any) -> Method:
    return Method(kind, options)


def final_success(config: RunConfig) -> float:
    """Success at the end of a run: 1 at weight 0.1, 1/3 less for each factor of ten."""
    distance = abs(math.log10(config.loss.sp.weight / 0.1))
    return max(0.0, 0.95 - distance / 3 - (0.1 if config.policy.lora.rank == 4 else 0.0))


def stub_run(
    config: RunConfig, place: RunPlace, report: Callable[[Progress], None] | None = None, seconds: float = 0.0
) -> RunRecord:
    """A run that goes on where its record ends; ``seconds`` for each evaluation."""
    path = record_path(place.study_folder, place.arm, config.seed)
    record = RunRecord(arm=place.arm, seed=config.seed, status="running", panel_hash="p")
    if path.is_file():
        record = load_record(path)
        if record.status in ("finished", "pruned"):
            return record
    last = config.train.iterations
    for iteration in range(2 * len(record.evaluations) + 2, last + 1, 2):
        time.sleep(seconds)
        won = round(final_success(config) * iteration / last * GAMES)
        outcomes = tuple(
            GameOutcome(game_id=f"g{n:02d}", family="f", won=n < won, steps=1, task_score=float(n < won))
            for n in range(GAMES)
        )
        evaluations = (*record.evaluations, Evaluation(iteration=iteration, outcomes=outcomes))
        record = record.model_copy(update={"evaluations": evaluations, "seconds": record.seconds + 1.0})
        write_record(place.study_folder, record)
        try:
            if report is not None:
                report(Progress(iteration, last, None, won / GAMES, 1.0, None))
        except GivenUp as given_up:
            record = record.model_copy(update={"status": "pruned", "error": str(given_up)})
            write_record(place.study_folder, record)
            return record
    record = record.model_copy(update={"status": "finished"})
    write_record(place.study_folder, record)
    return record


def work(
    settings: SweepSettings, folder: Path, storage: StorageSettings | None = None, seconds: float = 0.0
) -> Search:
    """Works the sweep off in this process."""
    storage = storage or StorageSettings(f"journal:{folder / 'journal'}")
    place = SweepPlace(WorkPlace(folder, "stub", None, ""), storage)  # type: ignore[arg-type]
    run = partial(stub_run, seconds=seconds)
    # What is written is read by this process alone, which need not wait for the disk.
    with patch.object(sweep_worker, "execute_run", run), patch("os.fsync"):
        work_off(settings, place)
    return open_search(settings, storage, folder)


if __name__ == "__main__":
    _grace = int(sys.argv[5]) if len(sys.argv) > 5 else 3
    work(
        stub_settings(trials=int(sys.argv[3]), sampler=method("random")),
        Path(sys.argv[1]),
        StorageSettings(sys.argv[2], 1, _grace),
        float(sys.argv[4]),
    )
