"""The one way of a run's values into MLflow, which loses none of them while the store is away.

A value goes to MLflow at once. If the store can't be reached, it is written to a journal in the run's
folder, and so is everything after it, until a thread in the background has delivered all of it.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
from pathlib import Path

from envrl.tracking.artifact_places import check_kept, check_names
from envrl.tracking.delivery import is_away, limit_http_waits, send
from envrl.tracking.journal import Entry, Journal, Owner, journal_path
from envrl.tracking.leftovers import command, hand_over, reason, say, values
from envrl.tracking.measured import Measured
from envrl.tracking.store import Store, client, quiet_mlflow

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 30.0
_UNSENT = "unsent"


class Outbox:
    """The values of one run on their way to MLflow; may be used by several threads.

    Args:
        store: The opened store.
        run_id: The run.
        folder: Where values are kept while the store is away.
        name: What messages call the run.
    """

    def __init__(self, store: Store, run_id: str, folder: Path, name: str) -> None:
        limit_http_waits()
        quiet_mlflow()
        # Each retry of a request would be a line of its own on the console.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self._owner = Owner(store.uri, run_id, name)
        self._client = client(store)
        self._path = journal_path(folder, run_id)
        self._experiment_id: str | None = None
        self._journal: Journal | None = None
        self._measured: Measured | None = None
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._empty = threading.Event()
        self._empty.set()
        self._thread: threading.Thread | None = None

    @property
    def experiment_id(self) -> str:
        """Experiment of the run; asked for once.

        Raises:
            MlflowException: It has to be asked for, and the store is away.
        """
        if self._experiment_id is None:
            self._experiment_id = str(self._client.get_run(self._owner.run_id).info.experiment_id)
        return self._experiment_id

    def leave_out_what_is_there(self) -> None:
        """Asks the store which metrics the run has; from now on none of them is logged again.

        Raises:
            MlflowException: The store is away.
        """
        self._measured = Measured(self._client, self._owner.run_id)

    def put(self, entry: Entry) -> None:
        """Logs an entry, or keeps it; on return it is in MLflow or on the disk.

        Raises:
            MlflowException: The store can be reached and does not take such a value.
            DataFault: An artifact has an impossible name; or the store is away, and the journal can't be
                written or can't keep such a value.
        """
        check_names(entry)
        if self._measured is not None and entry["kind"] == "metrics":
            entry = {**entry, "points": self._measured.new(entry["points"])}
            if not entry["points"]:
                return
        with self._lock:
            if self._journal is None:
                try:
                    send(self._client, self._owner.run_id, entry)
                    return
                except Exception as fault:
                    if not is_away(fault):
                        raise
                    away = fault
            check_kept(entry, self._path.parent)
            if self._journal is None:
                self._journal = self._begin(away)
            self._journal.append(entry)
            self._empty.clear()
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._deliver, name="mlflow-outbox", daemon=True)
                self._thread.start()

    def close(self, wait_s: float) -> bool:
        """Waits until everything is delivered, at most so many seconds; True if it is."""
        self._empty.wait(wait_s)
        self._stop.set()
        thread = self._thread
        if thread is not None:
            # It ends after the request it is at, which has a time limit of its own.
            thread.join()
        with self._lock:
            if self._journal is None:
                return True
            left = len(self._journal)
            self._journal.close()
            self._journal = None
            if not left:  # what it was begun for could not be kept
                return True
        say(
            f"{self._owner.name}: {values(left)} could not be delivered to {self._owner.uri} and stay in "
            f"{self._path}; run the same command again, or "
            f"`{command(self._path.parent)} --uri {shlex.quote(self._owner.uri)}`"
        )
        return False

    def _begin(self, fault: Exception) -> Journal:
        journal = Journal(self._path, self._owner)
        say(
            f"{self._owner.name}: the MLflow store {self._owner.uri} is away ({reason(fault)}); training "
            f"goes on, what it logs is kept in {self._path} and delivered when the store is back"
        )
        return journal

    def _deliver(self) -> None:
        delivered, pause = 0, _FIRST_RETRY_S
        while not self._stop.wait(pause):
            try:
                while not self._stop.is_set():
                    with self._lock:
                        assert self._journal is not None
                        number, entry = self._journal.first()
                    # Without the lock: whoever logs meanwhile must not wait for the store.
                    delivered += hand_over(self._client, self._journal, entry)
                    with self._lock:
                        self._journal.done(number)
                        if not len(self._journal):
                            self._journal.close()
                            self._journal, self._thread = None, None
                            self._empty.set()
                            say(f"{self._owner.name}: MLflow is back, {values(delivered)} delivered")
                            return
                    pause = _FIRST_RETRY_S
            except Exception as fault:
                if not is_away(fault):
                    say(f"{self._owner.name}: delivery to MLflow failed ({reason(fault)}); it is tried again")
                pause = min(2 * pause, _LAST_RETRY_S)


_open: dict[tuple[str, str], Outbox] = {}
_open_lock = threading.Lock()


def open_outbox(store: Store, run_id: str, folder: Path | None, name: str) -> Outbox:
    """The outbox of a run in this process, made if there is none.

    Args:
        store: The opened store.
        run_id: The run.
        folder: Folder of the run; None keeps values below the store's root.
        name: What messages call the run.
    """
    key = (store.uri, run_id)
    with _open_lock:
        if key not in _open:
            _open[key] = Outbox(store, run_id, folder or unsent_folder(store), name)
        return _open[key]


def unsent_folder(store: Store) -> Path:
    """Where the values of runs without a folder are kept."""
    return store.root / _UNSENT


def outbox(store: Store, run_id: str) -> Outbox:
    """The outbox of a run, also of one that nobody has opened in this process."""
    return open_outbox(store, run_id, None, f"run {run_id}")


def close_outbox(store: Store, run_id: str, wait_s: float) -> bool:
    """Closes the outbox of a run if it is open; True if everything is delivered."""
    with _open_lock:
        found = _open.pop((store.uri, run_id), None)
    return found is None or found.close(wait_s)


def now_ms() -> int:
    """The time as MLflow keeps it."""
    return round(time.time() * 1000)
