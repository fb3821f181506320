"""A worker of a sweep: takes a trial, runs its seeds, tells the result, until none is left."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import optuna

from envrl.analysis.records import RunRecord
from envrl.errors import EnvrlError
from envrl.experiments.config import RunConfig
from envrl.experiments.console import interrupt, one_line
from envrl.experiments.run import execute_run
from envrl.experiments.runner import RunPlace
from envrl.experiments.sweep_file import SweepSettings
from envrl.experiments.sweep_search import (
    ERROR,
    HOST,
    INTERRUPTIONS,
    folder_name,
    has_work,
    held,
    open_storage,
    open_study,
    original,
    put_back_orphans,
    quiet_optuna,
    sampler,
    taking_turns,
)
from envrl.experiments.sweep_space import Value
from envrl.experiments.workers import INTERRUPTED, WorkPlace, die_with_parent
from envrl.training.progress import Progress


@dataclass(frozen=True)
class SweepPlace:
    """Where a sweep stands.

    Attributes:
        work: Folder, MLflow experiment, store and parent run.
        storage: Address of Optuna's storage; None for SQLite in the folder.
    """

    work: WorkPlace
    storage: str | None


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
    """Runs trials until there are as many as there shall be.

    Raises:
        EnvrlError: The storage can't be used.
    """
    quiet_optuna()
    folder = place.work.folder
    study = open_study(settings, open_storage(place.storage, folder), folder)
    while True:
        with ExitStack() as turn:
            turn.enter_context(taking_turns(folder))
            put_back_orphans(study, folder)
            if not has_work(study, settings.most_trials):
                return
            study.sampler = sampler(settings, len(study.get_trials(deepcopy=False)))
            # Optuna draws the trial and then calls the objective, which ends this process's turn.
            objective = _Trial(settings, place, turn.close)
            study.optimize(objective, n_trials=1, catch=(Exception,))


class _Trial:
    """The objective: one trial with all its seeds."""

    def __init__(self, settings: SweepSettings, place: SweepPlace, started: Callable[[], None]) -> None:
        self._settings = settings
        self._place = place
        self._started = started

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        number = original(frozen)
        with held(self._place.work.folder, number):
            trial.set_user_attr(HOST, socket.gethostname())
            values = self._settings.space.suggest(trial)
            self._started()
            try:
                records = [self._run(trial, number, values, n) for n in range(len(self._settings.seeds))]
            except KeyboardInterrupt:
                trial.set_user_attr(INTERRUPTIONS, int(trial.user_attrs.get(INTERRUPTIONS, 0)) + 1)
                # Left as running, so that it is put back in the queue; told as failed, it would be over.
                os._exit(INTERRUPTED)
            except optuna.TrialPruned as pruned:
                trial.set_user_attr(ERROR, one_line(pruned))
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
        return tuple(measured[objective] for objective in self._settings.objectives)

    def _run(self, trial: optuna.Trial, number: int, values: dict[str, Value], position: int) -> RunRecord:
        seed = self._settings.seeds[position]
        config = self._settings.config(values, seed)
        work = self._place.work
        place = RunPlace(work.folder, work.experiment, folder_name(number), work.store, work.parent_id)
        known = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        report = None
        if self._settings.pruner.kind not in ("none", "wilcoxon"):
            report = _Reporter(trial, config, position * config.train.iterations, known)
        record = execute_run(config, place, report)
        if self._settings.pruner.kind == "wilcoxon" and position not in known:
            trial.report(record.evaluations[-1].success_rate, position)
            if trial.should_prune():
                raise optuna.TrialPruned(f"pruned after {position + 1} seeds")
        return record


class _Reporter:
    """Tells the pruner of every evaluation, and gives the run up if the pruner says so."""

    def __init__(self, trial: optuna.Trial, config: RunConfig, offset: int, known: set[int]) -> None:
        self._trial = trial
        self._config = config
        self._offset = offset
        self._known = known

    def __call__(self, progress: Progress) -> None:
        done, value = progress.iteration, progress.evaluation_success
        evaluated = done % self._config.evaluation.every == 0 or done == progress.iterations
        # Before training all trials are the same policy.
        if value is None or not evaluated or done == 0:
            return
        step = self._offset + done
        if step not in self._known:
            self._trial.report(value, step)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"pruned after {done} iterations")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
