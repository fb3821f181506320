"""A sweep's study in Optuna: trials, those that are tried again, what two calls must have in common."""

from __future__ import annotations

import fcntl
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
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from envrl.errors import DataFault
from envrl.experiments.plain import as_plain
from envrl.experiments.sweep_file import StorageSettings, SweepSettings
from envrl.experiments.sweep_methods import pruner
from envrl.experiments.sweep_storage import Storage, open_storage

PLACE = "place"
"""Where a trial runs: its machine and the sweep's folder there."""
ERROR = "error"
INTERRUPTIONS = "interruptions"
_SETTINGS = "sweep"
_MOST_KILLS = 3
_DIFFERENCES = 5


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


def quiet_optuna() -> None:
    """Leaves out what Optuna prints of every trial, and that some of its interfaces are young."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    # A grid that is used up ends the sweep; a value that was reported before the kill is the same again.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"optuna\..*")


@dataclass(frozen=True)
class Search:
    """A sweep in its storage, seen from one folder.

    Attributes:
        study: Optuna's study.
        storage: Where it is kept.
        folder: Folder of the sweep on this machine.
    """

    study: optuna.Study
    storage: Storage
    folder: Path

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One process of the sweep at a time, over all machines."""
        with self.storage.turn(self.study.study_name):
            yield

    @property
    def place(self) -> str:
        """This machine and folder, as it is written into a trial."""
        return f"{socket.gethostname()}:{self.folder.resolve()}"


def open_search(settings: SweepSettings, where: StorageSettings, folder: Path) -> Search:
    """Makes the Optuna study, or finds it, with the settings that are tried first.

    Raises:
        ConfigFault: The storage can't be opened.
        DataFault: The storage holds a sweep of that name with another space, base, or way of measuring.
    """
    storage = open_storage(where, folder, try_again)
    up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    plain = {k: as_plain(getattr(settings, k)) for k in ("space", "base", "objectives", "seeds")}
    plain["space"] = plain["space"]["parameters"]
    plain = json.loads(json.dumps(plain))
    with storage.turn(settings.name):
        study = optuna.create_study(
            study_name=settings.name,
            storage=storage.optuna,
            directions=[up if objective == "success" else down for objective in settings.objectives],
            load_if_exists=True,
            pruner=pruner(settings),
        )
        known = study.user_attrs.get(_SETTINGS)
        if known is None and study.get_trials(deepcopy=False):
            raise DataFault(
                f"the storage holds a study '{settings.name}' that this command did not make; "
                "give the sweep another name"
            )
        if known is not None and known != plain:
            raise DataFault(
                f"the storage holds another sweep '{settings.name}' ({_differences(known, plain)}); "
                "give this one another name"
            )
        study.set_user_attr(_SETTINGS, plain)
        for setting in settings.enqueue:
            study.enqueue_trial(dict(setting), skip_if_exists=True)
    return Search(study, storage, folder)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Every setting in which two sweeps differ, with both values; the first few of many."""
    pairs = _unequal(old, new)
    shown = "; ".join(f"{key}: {_was_is(was, now)}" for key, was, now in pairs[:_DIFFERENCES])
    more = len(pairs) - _DIFFERENCES
    return f"{shown}; and {more} more" if more > 0 else shown


def _unequal(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    # A parameter of the space is shown whole.
    if isinstance(old, Mapping) and isinstance(new, Mapping) and "domain" not in {**old, **new}:
        names = {**old, **new}
        return [
            pair
            for name in names
            for pair in _unequal(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if old == new else [(key, old, new)]


def _was_is(was: Any, now: Any) -> str:
    if was is None:
        return f"is new, {_plainly(now)}"
    return f"was {_plainly(was)}, is left out" if now is None else f"was {_plainly(was)}, is {_plainly(now)}"


def _plainly(value: Any) -> str:
    """A parameter of a space as short as in its file; anything else as it is."""
    if isinstance(value, Mapping) and isinstance(domain := value.get("domain"), Mapping):
        value = {k: v for k, v in domain.items() if v not in (None, False)} | (
            {"when": value["when"]} if value.get("when") else {}
        )
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    return str(value)


def try_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Puts a trial whose worker was killed back in the queue, with its values and what it has reported.

    Not for ever: a trial that kills its workers, say by running out of memory, is given up after three times.
    """
    trial.user_attrs = {k: v for k, v in trial.user_attrs.items() if k not in (PLACE, ERROR)}
    RetryHeartbeatStaleTrialCallback(max_retry=_most_attempts(trial), inherit_intermediate_values=True)(
        study, trial
    )


def _most_attempts(trial: FrozenTrial) -> int:
    return _MOST_KILLS + int(trial.user_attrs.get(INTERRUPTIONS, 0))


def will_be_repeated(trial: FrozenTrial) -> bool:
    """Whether a trial counts as failed only because its worker died, and is to be put back in the queue."""
    killed = trial.state == TrialState.FAIL and ERROR not in trial.user_attrs
    before = RetryHeartbeatStaleTrialCallback.retry_history(trial)
    return killed and len(before) < _most_attempts(trial)


def is_over(trial: FrozenTrial) -> bool:
    """Whether the trial has ended for good."""
    return trial.state.is_finished() and not will_be_repeated(trial)


def put_back_orphans(search: Search) -> int:
    """Puts trials of killed workers back in the queue; returns how many. To be called in a turn.

    A worker of this folder holds its trial's folder locked, so that its death shows at once. Those of
    other machines show when they have sent no heartbeat for some time. A trial without a place was drawn by
    a process that died in its turn.
    """
    study = search.study
    # To tell a trial's end asks the sampler, which may be that of a grid and wants to end the whole search.
    study.sampler = optuna.samplers.RandomSampler()
    before = {trial.number for trial in study.get_trials(deepcopy=False)}
    fail_stale_trials(study)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        place = trial.user_attrs.get(PLACE)
        if place is None or (place == search.place and _is_free(search.folder, trial)):
            study.tell(trial.number, state=TrialState.FAIL)
    # Apart from the marking, so that trials are found again if this process dies in between.
    for attempt in attempts(study):
        if will_be_repeated(attempt.last):
            try_again(study, study.get_trials()[attempt.last.number])
    return sum(trial.number not in before for trial in study.get_trials(deepcopy=False))


def has_work(study: optuna.Study, most_trials: int) -> bool:
    """Whether there is a trial to start. To be called in a turn."""
    known = attempts(study)
    return len(known) < most_trials or any(a.last.state == TrialState.WAITING for a in known)


def may_come_back(search: Search) -> bool:
    """Whether a trial is running whose worker's death would be noticed here."""
    return any(
        search.storage.has_heartbeat or trial.user_attrs.get(PLACE) == search.place
        for trial in search.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    )


def _lock_path(folder: Path, number: int) -> Path:
    return folder / "runs" / folder_name(number) / ".trial.lock"


@contextmanager
def held(folder: Path, number: int, *, wait: bool = True) -> Iterator[None]:
    """Holds a trial's folder for this process; the system frees it when the process dies.

    Raises:
        BlockingIOError: Another process holds it, and this one is not to wait.
    """
    path = _lock_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
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
