"""A worker of a sweep: takes a trial, runs its seeds, tells the result, until none is left."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import optuna
from optuna.storages import RDBStorage

from envrl.analysis.records import RunRecord, load_record, record_path
from envrl.errors import EnvrlError
from envrl.experiments.config import RunConfig
from envrl.experiments.console import interrupt, one_line
from envrl.experiments.run import execute_run
from envrl.experiments.run_place import RunPlace
from envrl.experiments.runner import GivenUp
from envrl.experiments.sweep_file import StorageSettings, SweepSettings
from envrl.experiments.sweep_methods import PairedGames, sampler
from envrl.experiments.sweep_search import (
    ERROR,
    INTERRUPTIONS,
    PLACE,
    Search,
    folder_name,
    has_work,
    held,
    may_come_back,
    open_search,
    original,
    put_back_orphans,
    quiet_optuna,
)
from envrl.experiments.sweep_space import Value
from envrl.experiments.workers import INTERRUPTED, WorkPlace, die_with_parent
from envrl.tracking.outbox import close_outbox, open_outbox
from envrl.tracking.runs import log_metrics
from envrl.training.progress import Progress

_WAIT_S = 2.0
_WAIT_FOR_STORE_S = 30.0


@dataclass(frozen=True)
class SweepPlace:
    """Where a sweep stands.

    Attributes:
        work: Folder, MLflow experiment, store and parent run.
        storage: Where Optuna keeps the trials.
    """

    work: WorkPlace
    storage: StorageSettings


def work_in_process(settings: SweepSettings, place: SweepPlace) -> None:
    """Body of a worker process; exits with 130 if it is told to stop and 1 after an error."""
    die_with_parent()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        work_off(settings, place)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def work_off(settings: SweepSettings, place: SweepPlace) -> None:
    """Runs trials until there are as many as there shall be and none runs that could come back.

    Raises:
        EnvrlError: The storage can't be used.
    """
    quiet_optuna()
    search = open_search(settings, place.storage, place.work.folder)
    study = search.study
    while True:
        with ExitStack() as turn:
            turn.enter_context(search.turn())
            put_back_orphans(search)
            if has_work(study, settings.most_trials):
                study.sampler = sampler(settings, len(study.get_trials(deepcopy=False)))
                # Optuna draws the trial and then calls the objective, which ends this process's turn.
                with _Trial(settings, place, search, turn.close) as objective:
                    try:
                        study.optimize(objective, n_trials=1, catch=(Exception,))
                    except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
                        # It gave no sign of life for too long, and another machine has taken it over.
                        if not objective.taken_over:
                            raise
                continue
            if not may_come_back(search):
                return
        time.sleep(_WAIT_S)


class _Trial:
    """The objective: one trial with all its seeds, whose folder stays locked until its end is told."""

    def __init__(
        self, settings: SweepSettings, place: SweepPlace, search: Search, started: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._place = place
        self._search = search
        self._started = started
        self._lock = ExitStack()
        self.taken_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        try:
            return self._judged(trial)
        except optuna.exceptions.UpdateFinishedTrialError:
            self.taken_over = True
            raise

    def _judged(self, trial: optuna.Trial) -> tuple[float, ...]:
        """The trial's values; why it has none is written into it."""
        number = original(trial.study.get_trials(deepcopy=False)[trial.number])
        folder = self._place.work.folder
        try:
            self._lock.enter_context(held(folder, number, wait=False))
            busy = False
        except BlockingIOError:
            # Whoever had the trial before gave no sign of life and lives; nobody must wait for it in a turn.
            busy = True
        # Before it has a place, it must have a heartbeat: without one nobody else could find it dead.
        if isinstance(self._search.storage.optuna, RDBStorage):
            self._search.storage.optuna.record_heartbeat(trial._trial_id)
        trial.set_user_attr(PLACE, self._search.place)
        try:
            values = self._settings.space.suggest(trial)
            self._started()
            if busy:
                self._lock.enter_context(held(folder, number))
            records = self._run_all(trial, number, values)
        except KeyboardInterrupt:
            trial.set_user_attr(INTERRUPTIONS, int(trial.user_attrs.get(INTERRUPTIONS, 0)) + 1)
            # Left as running, so that it is put back in the queue; told as failed, it would be over.
            os._exit(INTERRUPTED)
        except optuna.TrialPruned as pruned:
            trial.set_user_attr(ERROR, one_line(pruned))
            raise
        except optuna.exceptions.UpdateFinishedTrialError:
            raise
        except Exception as error:
            name = "" if isinstance(error, EnvrlError) else f"{type(error).__name__}: "
            trial.set_user_attr(ERROR, f"{name}{one_line(error)}")
            raise
        measured = {
            "success": _mean([r.evaluations[-1].success_rate for r in records]),
            "seconds": _mean([r.seconds for r in records]),
        }
        trial.set_user_attr("seconds", measured["seconds"])
        self._log(records, measured)
        return tuple(measured[objective] for objective in self._settings.objectives)

    def _run_all(self, trial: optuna.Trial, number: int, values: dict[str, Value]) -> list[RunRecord]:
        """One run after the other for all seeds.

        Raises:
            TrialPruned: The pruner gave the trial up.
        """
        records: list[RunRecord] = []
        for position, seed in enumerate(self._settings.seeds):
            config = self._settings.config(values, seed)
            work = self._place.work
            place = RunPlace(
                work.folder,
                work.experiment,
                folder_name(number),
                work.store,
                work.parent_id,
                {"trial": str(number)},
            )
            report = None
            if self._settings.pruner.kind != "none":
                report = _Reporter(trial, config, place, position, len(self._settings.seeds))
            records.append(execute_run(config, place, report))
            if records[-1].status == "pruned":
                of_seed = f", seed {seed}" if len(self._settings.seeds) > 1 else ""
                raise optuna.TrialPruned(f"{records[-1].error}{of_seed}")
        return records

    def _log(self, records: list[RunRecord], measured: dict[str, float]) -> None:
        """The trial's values on its MLflow runs, so that these can be searched and sorted by them."""
        metrics = {f"trial/{name}": value for name, value in measured.items()}
        store, folder = self._place.work.store, self._place.work.folder
        for record in records:
            if (run_id := record.mlflow_run_id) is not None:
                # The run has closed its outbox; what can't be sent now is kept in its folder all the same.
                place = record_path(folder, record.arm, record.seed).parent
                open_outbox(store, run_id, place, f"{record.arm}/seed_{record.seed}")
                log_metrics(store, run_id, metrics, record.evaluations[-1].iteration)
                close_outbox(store, run_id, _WAIT_FOR_STORE_S)


class _Reporter:
    """Tells the pruner of every evaluation, and gives the run up if the pruner says so."""

    def __init__(
        self, trial: optuna.Trial, config: RunConfig, place: RunPlace, position: int, seeds: int
    ) -> None:
        self._trial = trial
        self._config = config
        self._last_seed = position == seeds - 1
        self._offset = position * config.train.iterations
        self._record = record_path(place.study_folder, place.arm, config.seed)
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self._known = set(frozen.intermediate_values)

    def __call__(self, progress: Progress) -> None:
        done, value = progress.iteration, progress.evaluation_success
        evaluated = done % self._config.evaluation.every == 0 or done == progress.iterations
        # Before training all trials are the same policy.
        if value is None or not evaluated or done == 0:
            return
        step = self._offset + done
        if isinstance(self._trial.study.pruner, PairedGames):
            self._trial.set_user_attr(*PairedGames.told(step, self._outcomes()))
        if step not in self._known:
            self._trial.report(value, step)
        if self._last_seed and done == progress.iterations:
            return  # nothing is left to save, and a value that is known counts
        if self._trial.should_prune():
            raise GivenUp(f"pruned after {done} iterations of {progress.iterations}")

    def _outcomes(self) -> dict[str, bool]:
        """Which games of the panel the last evaluation won."""
        return {
            outcome.game_id: outcome.won for outcome in load_record(self._record).evaluations[-1].outcomes
        }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
