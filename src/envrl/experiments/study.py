"""Runs the arms and seeds of a study, side by side, resumable, and writes its report."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from envrl.analysis.records import RunRecord, load_record, load_records, record_path, write_text_atomic
from envrl.analysis.report import ReportPaths, print_summary, write_report
from envrl.analysis.summary import summarise
from envrl.errors import ConfigFault, EnvrlError
from envrl.experiments.config import RunConfig, StudySettings, as_plain, config_from
from envrl.experiments.console import clock, progress_line
from envrl.tracking.runs import finish_study, log_artifact, log_environment, start_study
from envrl.tracking.store import Store, open_store
from envrl.training.callbacks import Progress

_POLL_S = 1.0
_MOST_CRASHES = 3


@dataclass(frozen=True)
class PlannedRun:
    """One arm with one seed."""

    arm: str
    config: RunConfig

    @property
    def label(self) -> str:
        """What the console calls it."""
        return f"{self.arm} seed {self.config.seed}"


@dataclass(frozen=True)
class Study:
    """A study with everything resolved."""

    settings: StudySettings
    runs: tuple[PlannedRun, ...]
    folder: Path


def plan_study(settings: StudySettings, root: Path) -> Study:
    """Resolves all runs; an impossible configuration fails here, before any work.

    Seeds come first and arms second, so that an interrupted study can already compare its arms.
    """
    runs = []
    for seed in settings.seeds:
        for arm, changes in settings.arms.items():
            try:
                config = config_from(settings.base, changes, {"seed": seed})
            except ConfigFault as fault:
                raise ConfigFault(f"arm '{arm}': {fault}") from fault
            runs.append(PlannedRun(arm, config))
    panels = {(r.config.evaluation, r.config.env) for r in runs}
    if len({p[0] for p in panels}) > 1:
        raise ConfigFault("the arms differ in `evaluation`; one study has one panel")
    return Study(settings, tuple(runs), root / "studies" / settings.name)


def run_study(study: Study, root: Path, console: Console) -> tuple[RunRecord, ...]:
    """Runs what is not finished yet, then writes the report.

    A run that fails doesn't stop the others; a worker process that dies is started again and its runs
    go on from their checkpoints.

    Returns:
        All records of the study.

    Raises:
        EnvrlError: The store can't be written, or no run finished.
    """
    store = open_store(root)
    from envrl.experiments.games import game_sets

    started = time.perf_counter()
    # Made once here, so that the workers find them.
    games = game_sets(study.runs[0].config.env, study.runs[0].config.evaluation)
    console.print(
        f"study {study.settings.name}: {len(study.runs)} runs, {len(games.training)} training games, "
        f"panel of {len(games.panel.games)} games ({games.panel.panel_hash[:12]}), "
        f"{study.settings.jobs} at a time",
        highlight=False,
    )
    parent = _parent_run(study, store, games.panel.panel_hash)
    status: Any = "FAILED"
    try:
        failed = _run_all(study, store, parent, console)
        records = report_study(study, store, parent, console)
        status = "FAILED" if failed else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        finish_study(store, parent, status)
    for label, error in failed.items():
        console.print(f"failed: {label}: {error}", style="red", highlight=False)
    console.print(f"{clock(time.perf_counter() - started)} in all", highlight=False)
    return records


def report_study(study: Study, store: Store, parent: str, console: Console) -> tuple[RunRecord, ...]:
    """Writes the report into the study's folder and MLflow, and prints its table."""
    planned = {(r.arm, r.config.seed) for r in study.runs}
    records = [r for r in load_records(study.folder) if (r.arm, r.seed) in planned]
    paths = write_report(study.folder, records, study.settings.baseline, study.settings.name)
    for path in (paths.results, paths.report, paths.curves, paths.family_curves):
        log_artifact(store, parent, path)
    print_summary(summarise(records, study.settings.baseline), console)
    _print_paths(paths, console)
    return tuple(records)


def _print_paths(paths: ReportPaths, console: Console) -> None:
    for path in (paths.report, paths.curves, paths.results):
        console.print(f"  {path}", highlight=False, soft_wrap=True)


def _parent_run(study: Study, store: Store, panel_hash: str) -> str:
    """MLflow run of the study, the old one if the study goes on."""
    path = study.folder / "study.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config = study.runs[0].config
    tags = {"env": config.env.name, "panel": panel_hash, "algorithm": "grpo", "study": study.settings.name}
    run_id = known.get("mlflow_run_id") if known.get("mlflow_uri") == store.uri else None
    parent = start_study(store, study.settings.name, study.settings.name, tags, run_id)
    log_environment(store, parent)
    content = {
        "mlflow_run_id": parent,
        "mlflow_uri": store.uri,
        "panel": panel_hash,
        "study": as_plain(study.settings),
    }
    write_text_atomic(path, json.dumps(content, indent=1) + "\n")
    log_artifact(store, parent, path)
    return parent


def _run_all(study: Study, store: Store, parent: str, console: Console) -> dict[str, str]:
    """Runs everything unfinished; returns the errors of the runs that failed, by label."""
    waiting = [r for r in study.runs if not _finished(study, r)]
    if skipped := len(study.runs) - len(waiting):
        console.print(f"{skipped} finished runs are kept", highlight=False)
    failed: dict[str, str] = {}
    crashes = 0
    while waiting:
        try:
            for run, error in _work(study, waiting, store, parent, console):
                waiting.remove(run)
                if error is not None:
                    failed[run.label] = error
                    console.print(f"{run.label} failed: {error}", style="red", highlight=False)
        except BrokenProcessPool:
            crashes += 1
            waiting = [r for r in waiting if not _finished(study, r)]
            if crashes > _MOST_CRASHES:
                raise EnvrlError(
                    f"worker processes died {crashes} times (killed for memory?); fewer `jobs` may help. "
                    "Run the same command to go on"
                ) from None
            console.print("a worker process died; its run goes on from its checkpoint", highlight=False)
    return failed


def _finished(study: Study, run: PlannedRun) -> bool:
    """Whether the run is done; raises if the folder holds another configuration's run."""
    path = record_path(study.folder, run.arm, run.config.seed)
    if not path.is_file():
        return False
    record = load_record(path)
    from envrl.experiments.run import require_same_config

    require_same_config(record, run.config, path.parent)
    return record.status == "finished"


def _work(
    study: Study, runs: list[PlannedRun], store: Store, parent: str, console: Console
) -> Iterator[tuple[PlannedRun, str | None]]:
    """Runs side by side in worker processes; yields each as it ends, with its error if it failed."""
    jobs = min(study.settings.jobs, len(runs))
    _limit_threads(max(r.config.train.threads for r in runs))
    # spawn: a forked child would inherit torch's threads and MLflow's connections.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context)
    futures: dict[Future[str | None], PlannedRun] = {}
    shown = _Shown(study, console)
    try:
        for run in runs:
            future = pool.submit(
                _worker, run.config, study.folder, study.settings.name, run.arm, store, parent
            )
            futures[future] = run
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            shown.update([futures[f] for f in pending] + [futures[f] for f in done])
            for future in done:
                yield futures[future], future.result()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _limit_threads(threads: int) -> None:
    """Set before the workers start: libraries read these when they are loaded."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _worker(
    config: RunConfig, folder: Path, experiment: str, arm: str, store: Store, parent: str
) -> str | None:
    """One run in a worker process; returns its error, or None."""
    from envrl.experiments.run import RunPlace, execute_run

    try:
        execute_run(config, RunPlace(folder, experiment, arm, store, parent))
    except KeyboardInterrupt:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


class _Shown:
    """Prints a line when a run reaches another iteration, from the runs' progress files."""

    def __init__(self, study: Study, console: Console) -> None:
        self._study = study
        self._console = console
        self._last: dict[str, int] = {}
        self._started = time.perf_counter()

    def update(self, runs: list[PlannedRun]) -> None:
        for run in runs:
            path = self._study.folder / "runs" / run.arm / f"seed_{run.config.seed}" / "progress.json"
            try:
                progress = Progress(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue
            if self._last.get(run.label) == progress.iteration or self._stale(path):
                continue
            self._last[run.label] = progress.iteration
            if self._worth_a_line(progress, run):
                self._console.print(progress_line(f"{run.label:<24}", progress), highlight=False)

    def _stale(self, path: Path) -> bool:
        """Whether the file is from before this command (a run that has not begun again)."""
        return path.stat().st_mtime < time.time() - (time.perf_counter() - self._started)

    @staticmethod
    def _worth_a_line(progress: Progress, run: PlannedRun) -> bool:
        every = max(1, progress.iterations // 6)
        return progress.iteration % every == 0 or progress.iteration == progress.iterations


def describe(study: Study, console: Console) -> None:
    """Dry run: lists the runs and how each arm differs from the base."""
    for run in study.runs:
        state = "finished" if _finished(study, run) else "to run"
        console.print(f"{run.label:<28} {run.config.train.iterations} iterations, {state}", highlight=False)
    for arm, changes in study.settings.arms.items():
        console.print(f"  {arm}: {json.dumps(changes) if changes else 'the base'}", highlight=False)
