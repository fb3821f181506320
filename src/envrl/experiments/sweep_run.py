"""Runs a sweep: worker processes that share one Optuna study, watched until no trial is left."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import TrialState
from rich.console import Console

from envrl.analysis.records import write_text_atomic
from envrl.errors import DataFault, EnvrlError
from envrl.experiments.console import clock, say
from envrl.experiments.deliver import deliver_left
from envrl.experiments.plain import as_plain
from envrl.experiments.preflight import preflight
from envrl.experiments.sweep_file import StorageSettings, SweepSettings
from envrl.experiments.sweep_methods import sampler
from envrl.experiments.sweep_report import best_first, outcome_text, report_sweep
from envrl.experiments.sweep_search import (
    PLACE,
    Search,
    attempts,
    folder_name,
    has_work,
    is_over,
    may_come_back,
    open_search,
    put_back_orphans,
    quiet_optuna,
)
from envrl.experiments.sweep_worker import SweepPlace, work_in_process
from envrl.experiments.workers import INTERRUPTED, WorkPlace, interrupts_ignored, limit_threads
from envrl.tracking.runs import find_run, finish_study, log_artifact, log_environment, start_study
from envrl.tracking.store import Store, open_store
from envrl.untrusted import parse_json, read_text

_MOST_CRASHES = 3
_POLL_S = 0.5


def run_sweep(
    settings: SweepSettings, root: Path, workers: int, storage: StorageSettings, console: Console
) -> int:
    """Runs the trials that are missing, then writes the report.

    Args:
        settings: What to search, and how.
        root: Folder of the MLflow store and of the study folders.
        workers: Trials at the same time.
        storage: Where Optuna keeps the trials.
        console: Where to print.

    Returns:
        Number of trials that failed.

    Raises:
        EnvrlError: Something is missing or broken, or workers died again and again.
        KeyboardInterrupt: It was stopped; what is there was reported, and the same call goes on.
    """
    started = time.perf_counter()
    quiet_optuna()
    sampler(settings, 0)  # refuses its options before anything is written
    games = preflight(settings.config({}, settings.seeds[0]))
    store = open_store(root)
    folder = root / "studies" / settings.name
    search = open_search(settings, storage, folder)
    study = search.study
    say(
        console,
        f"sweep {settings.name}: {settings.most_trials} trials of {len(settings.seeds)} runs, "
        f"panel of {len(games.panel.games)} games ({games.panel.panel_hash}), {workers} at a time",
    )
    deliver_left(folder, store.uri, console)
    parent = _parent_run(settings, folder, store, games.panel.panel_hash)
    place = SweepPlace(WorkPlace(folder, settings.name, store, parent), storage)
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        try:
            _work(settings, place, search, workers, console)
        except KeyboardInterrupt:
            status = "KILLED"
            with search.turn():
                put_back_orphans(search)
            if any(a.last.state == TrialState.COMPLETE for a in attempts(study)):
                report_sweep(settings, study, place.work, console)
            raise
        report_sweep(settings, study, place.work, console)
        failed = sum(a.last.state == TrialState.FAIL for a in attempts(study))
        status = "FAILED" if failed else "FINISHED"
    finally:
        finish_study(store, parent, status)
    say(console, f"all runs: {store.look}")
    say(console, f"{clock(time.perf_counter() - started)} in all")
    return failed


def _parent_run(settings: SweepSettings, folder: Path, store: Store, panel_hash: str) -> str:
    """MLflow run of the sweep, the old one if it goes on."""
    path = folder / "sweep.json"
    tags = {"panel": panel_hash, "study": settings.name, "kind": "sweep"}
    known = _known_parent(path, settings.name, store)
    parent = start_study(store, settings.name, settings.name, tags, known, folder)
    content = {"mlflow_run_id": parent, "mlflow_uri": store.uri, "sweep": as_plain(settings)}
    write_text_atomic(path, json.dumps(content, indent=1) + "\n")
    log_environment(store, parent)
    log_artifact(store, parent, path)
    return parent


def _known_parent(path: Path, name: str, store: Store) -> str | None:
    if path.is_file():
        try:
            known = parse_json(read_text(path))
            if not isinstance(known, dict):
                raise ValueError(f"it holds a {type(known).__name__}, no object")
        except (OSError, ValueError) as error:
            raise DataFault(f"{path} is broken ({error}); remove it, the trials are kept") from error
        if known.get("mlflow_uri") == store.uri:
            return str(known["mlflow_run_id"])
        return None
    # A run that was killed before its id was written down is found by its name.
    return find_run(store, name, name)


def _work(settings: SweepSettings, place: SweepPlace, search: Search, workers: int, console: Console) -> None:
    """Keeps worker processes at work until no trial is left; a process that dies is replaced."""
    study = search.study
    with search.turn():
        put_back_orphans(search)
        if not has_work(study, settings.most_trials) and not may_come_back(search):
            say(console, "no trial is left to run")
            return
    limit_threads(settings.config({}, settings.seeds[0]).train.threads)
    told = {a.number for a in attempts(study) if is_over(a.last)}
    crashes = 0
    waiting = False
    with _stopped_in_the_end() as running:
        running += [_start(settings, place) for _ in range(workers)]
        while running:
            time.sleep(_POLL_S)
            _tell_new(study, told, settings, console)
            if not waiting and _others_work(search, settings):
                waiting = True
                say(console, "no trial is left to start; waiting for those of other machines")
            for process in [p for p in running if not p.is_alive()]:
                running.remove(process)
                if process.exitcode == 0:
                    continue
                if process.exitcode == INTERRUPTED:
                    raise KeyboardInterrupt
                if process.exitcode == 1:
                    raise EnvrlError("a worker stopped with the error above; run the same command to go on")
                crashes += 1
                if crashes > _MOST_CRASHES:
                    raise EnvrlError(
                        f"worker processes died {crashes} times (killed for memory?); use fewer --workers. "
                        "Run the same command to go on"
                    )
                say(console, "a worker process died; its trial goes on from its checkpoint")
                running.append(_start(settings, place))
    _tell_new(study, told, settings, console)


def _others_work(search: Search, settings: SweepSettings) -> bool:
    """Whether all that is left to do is running on other machines."""
    running = search.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    elsewhere = bool(running) and all(t.user_attrs.get(PLACE, search.place) != search.place for t in running)
    return elsewhere and not has_work(search.study, settings.most_trials)


def _start(settings: SweepSettings, place: SweepPlace) -> BaseProcess:
    # spawn: a forked child would inherit torch's threads and the connections to both databases.
    process = multiprocessing.get_context("spawn").Process(target=work_in_process, args=(settings, place))
    with interrupts_ignored():
        process.start()
    return process


@contextmanager
def _stopped_in_the_end() -> Iterator[list[BaseProcess]]:
    """A list of processes; those that still run when it is left are told to stop, in order."""
    running: list[BaseProcess] = []
    try:
        yield running
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _tell_new(study: optuna.Study, told: set[int], settings: SweepSettings, console: Console) -> None:
    """A line for each trial that has ended: what came of it, how many there are, which is the best."""
    known = attempts(study)
    for attempt in known:
        if attempt.number not in told and is_over(attempt.last):
            told.add(attempt.number)
            best = best_first(settings, study) if len(settings.objectives) == 1 else []
            leader = f", best so far {folder_name(best[0].number)}" if best else ""
            count = f"({len(told)} of {settings.most_trials}{leader})"
            style = "red" if attempt.last.state == TrialState.FAIL else ""
            name = folder_name(attempt.number)
            say(console, f"{name} {outcome_text(attempt, settings)}  {count}", style)
