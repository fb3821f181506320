"""Runs side by side in worker processes that die with their parent and never leave a run half told."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from envrl.errors import EnvrlError
from envrl.experiments.config import RunConfig
from envrl.experiments.console import interrupt, one_line
from envrl.tracking.store import Store

_POLL_S = 1.0
INTERRUPTED = 130
"""Exit code of a worker that was told to stop."""


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
class WorkPlace:
    """Where the runs of a study stand.

    Attributes:
        folder: Folder of the study.
        experiment: MLflow experiment.
        store: MLflow store.
        parent_id: MLflow run of the study.
    """

    folder: Path
    experiment: str
    store: Store
    parent_id: str


@dataclass(frozen=True)
class Ended:
    """A run that ended, with what it failed of."""

    run: PlannedRun
    error: str | None


def work(runs: list[PlannedRun], place: WorkPlace, jobs: int) -> Iterator[Ended | None]:
    """Executes runs side by side; yields each as it ends, and None now and then in between.

    Raises:
        BrokenProcessPool: A worker was killed; what had ended by then was yielded.
    """
    limit_threads(max(r.config.train.threads for r in runs))
    # spawn: a forked child would inherit torch's threads and MLflow's connections.
    pool = ProcessPoolExecutor(
        min(jobs, len(runs)), mp_context=multiprocessing.get_context("spawn"), initializer=die_with_parent
    )
    futures: dict[Future[str | None], PlannedRun] = {}
    try:
        with interrupts_ignored():
            for run in runs:
                futures[pool.submit(_execute, run, place)] = run
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: f.exception() is not None):
                yield Ended(futures[future], future.result())
            yield None
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def limit_threads(threads: int) -> None:
    """Set before the workers start: libraries read these when they are loaded."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C: the parent decides and sends SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def die_with_parent() -> None:
    """Ends the worker when its parent is gone: left alone it would train on beside the next command."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _execute(run: PlannedRun, place: WorkPlace) -> str | None:
    """One run in a worker process; returns its error, or None."""
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        from envrl.experiments.run import execute_run
        from envrl.experiments.run_place import RunPlace

        execute_run(
            run.config, RunPlace(place.folder, place.experiment, run.arm, place.store, place.parent_id)
        )
    except KeyboardInterrupt:
        # Not raised: the pool would hand it to the parent and give this process the next run.
        os._exit(INTERRUPTED)
    except EnvrlError as error:
        return one_line(error)
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"
    finally:
        signal.signal(signal.SIGTERM, before)
    return None
