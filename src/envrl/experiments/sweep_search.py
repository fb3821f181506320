"""Optuna's side of a sweep: storage, sampler, pruner, and trials that are tried again."""

from __future__ import annotations

import fcntl
import importlib.util
import inspect
import json
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
    fail_stale_trials,
)
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from envrl.errors import ConfigFault, DataFault
from envrl.experiments.plain import as_plain
from envrl.experiments.resume import first_difference
from envrl.experiments.sweep_file import Method, SweepSettings
from envrl.seeding import derive_seed

HOST = "host"
ERROR = "error"
INTERRUPTIONS = "interruptions"
_SETTINGS = "sweep"
_MOST_KILLS = 3
_HEARTBEAT_S = 30
_GRACE_S = 180
_JOURNAL = "journal:"
_SAMPLERS: dict[str, type[optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.GridSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}
_PRUNERS: dict[str, type[optuna.pruners.BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "asha": optuna.pruners.SuccessiveHalvingPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}


@dataclass(frozen=True)
class Attempt:
    """A trial as people count it, with its last attempt.

    Attributes:
        number: Number of the first attempt, which names the trial's folder.
        last: The last attempt.
    """

    number: int
    last: FrozenTrial


def folder_name(number: int) -> str:
    """Folder of a trial below ``runs/``, and its name in MLflow."""
    return f"trial_{number:04d}"


def original(trial: FrozenTrial) -> int:
    """Number of the trial's first attempt."""
    number = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if number is None else number


def attempts(study: optuna.Study) -> list[Attempt]:
    """All trials, each with its last attempt only."""
    last: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        last[original(trial)] = trial
    return [Attempt(number, trial) for number, trial in sorted(last.items())]


@contextmanager
def taking_turns(folder: Path) -> Iterator[None]:
    """One process of this folder at a time, so that none counts trials while another adds one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".sweep.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def quiet_optuna() -> None:
    """Leaves out what Optuna prints of every trial, and that some of its interfaces are young."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    # A grid that is used up ends the sweep; a value that was reported before the kill is the same again.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"optuna\..*")


def open_storage(address: str | None, folder: Path) -> BaseStorage:
    """Opens the storage: SQLite in the folder, any database, or a journal file (``journal:PATH``).

    Raises:
        ConfigFault: It can't be opened.
    """
    address = address or f"sqlite:///{(folder / 'optuna.db').resolve()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if address.startswith(_JOURNAL):
            path = Path(address.removeprefix(_JOURNAL))
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path)))
        wait = {"connect_args": {"timeout": 60}} if address.startswith("sqlite") else {}
        return RDBStorage(
            address,
            engine_kwargs=wait,
            heartbeat_interval=_HEARTBEAT_S,
            grace_period=_GRACE_S,
            heartbeat_stale_trial_callback=try_again,
        )
    except Exception as error:
        # The address may hold a password, so only its kind is named.
        kind = address.partition(":")[0]
        raise ConfigFault(
            f"the {kind} storage can't be opened ({type(error).__name__}); give sqlite:///PATH, journal:PATH "
            "or the URL of a database whose driver is installed"
        ) from error


def open_study(settings: SweepSettings, storage: BaseStorage, folder: Path) -> optuna.Study:
    """Makes the Optuna study, or finds it, with the settings that are tried first.

    Raises:
        DataFault: The storage holds a sweep of that name with another space, base, or way of measuring.
    """
    up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [up if objective == "success" else down for objective in settings.objectives]
    plain = {k: as_plain(getattr(settings, k)) for k in ("space", "base", "objectives", "seeds")}
    plain = json.loads(json.dumps(plain))
    with taking_turns(folder):
        study = optuna.create_study(
            study_name=settings.name,
            storage=storage,
            directions=directions,
            load_if_exists=True,
            pruner=pruner(settings),
        )
        known = study.user_attrs.get(_SETTINGS)
        if known is not None and known != plain:
            raise DataFault(
                f"the storage holds another sweep '{settings.name}' ({first_difference(known, plain)}); "
                "give this one another name"
            )
        study.set_user_attr(_SETTINGS, plain)
        for setting in settings.enqueue:
            study.enqueue_trial(dict(setting), skip_if_exists=True)
    return study


def sampler(settings: SweepSettings, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for the trial of that number.

    Made anew for each trial, with a seed of its own: workers that share a seed would all propose the same,
    and a sweep that goes on would repeat its beginning.

    Raises:
        ConfigFault: An option is unknown or impossible, or a package is missing.
    """
    method = settings.sampler
    options = dict(method.options)
    root = options.pop("seed", 0)
    if not isinstance(root, int) or isinstance(root, bool) or root < 0:
        raise ConfigFault(f"sampler.seed is {root!r}; give a whole number >= 0")
    options["seed"] = derive_seed(root, "sweep", number) % 2**32
    if method.kind == "tpe":
        options = {"multivariate": True, "group": True} | options
    elif method.kind == "grid":
        # The order of the grid must stay the same for all trials, or points are repeated.
        options |= {"search_space": settings.space.grid(), "seed": root}
    elif method.kind in ("cmaes", "gp"):
        options = {"warn_independent_sampling": False} | options
    made: optuna.samplers.BaseSampler = _made("sampler", _SAMPLERS[method.kind], Method(method.kind, options))
    return made


def pruner(settings: SweepSettings) -> optuna.pruners.BasePruner:
    """The pruner; its steps are iterations, those of a later seed after those of the ones before it.

    Raises:
        ConfigFault: An option is unknown or impossible.
    """
    config = settings.config({}, settings.seeds[0])
    steps = config.train.iterations * len(settings.seeds)
    first = min(config.evaluation.every, config.train.iterations)
    defaults: dict[str, dict[str, Any]] = {
        "asha": {"min_resource": first},
        "hyperband": {"min_resource": first, "max_resource": steps},
    }
    method = settings.pruner
    options = defaults.get(method.kind, {}) | dict(method.options)
    made: optuna.pruners.BasePruner = _made("pruner", _PRUNERS[method.kind], Method(method.kind, options))
    return made


def _made(place: str, made_by: type[Any], method: Method) -> Any:
    known = [n for n in inspect.signature(made_by).parameters if not n.startswith("_")]
    if unknown := [name for name in method.options if name not in known]:
        raise ConfigFault(
            f"{place} {method.kind} has no option '{unknown[0]}'; it has {', '.join(known) or 'none'}"
        )
    # Optuna would find out at the second trial.
    if method.kind == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise ConfigFault(
            f"{place} cmaes needs the package cmaes, which is not installed; install it, or use tpe"
        )
    try:
        return made_by(**method.options)
    except (TypeError, ValueError) as error:
        raise ConfigFault(f"{place} {method.kind}: {error}") from error


def try_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Puts a trial whose worker was killed back in the queue, with its values and what it has reported.

    Not for ever: a trial that kills its workers, say by running out of memory, is given up after three times.
    """
    allowed = _MOST_KILLS + int(trial.user_attrs.get(INTERRUPTIONS, 0))
    RetryHeartbeatStaleTrialCallback(max_retry=allowed, inherit_intermediate_values=True)(study, trial)


def put_back_orphans(study: optuna.Study, folder: Path) -> int:
    """Puts trials of killed workers back in the queue; returns how many.

    A worker of this machine holds its trial's folder locked, so that its death shows at once. Those of
    other machines show when they send no heartbeat for some minutes. To be called while taking turns.
    """
    fail_stale_trials(study)
    orphans = [
        trial
        for trial in study.get_trials(states=(TrialState.RUNNING,))
        if trial.user_attrs.get(HOST) == socket.gethostname() and _is_free(folder, trial)
    ]
    for trial in orphans:
        study.tell(trial.number, state=TrialState.FAIL)
        try_again(study, trial)
    return len(orphans)


def has_work(study: optuna.Study, most_trials: int) -> bool:
    """Whether there is a trial to start. To be called while taking turns."""
    known = attempts(study)
    return len(known) < most_trials or any(a.last.state == TrialState.WAITING for a in known)


def _lock_path(folder: Path, number: int) -> Path:
    return folder / "runs" / folder_name(number) / ".trial.lock"


@contextmanager
def held(folder: Path, number: int) -> Iterator[None]:
    """Holds a trial's folder for this process; the system frees it when the process dies."""
    path = _lock_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _is_free(folder: Path, trial: FrozenTrial) -> bool:
    path = _lock_path(folder, original(trial))
    if not path.is_file():
        return False
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def counts_of(study: optuna.Study) -> Mapping[str, int]:
    """Counts of trials by state, for the console."""
    counts: dict[str, int] = {}
    for attempt in attempts(study):
        name = attempt.last.state.name.lower()
        counts[name] = counts.get(name, 0) + 1
    return counts
