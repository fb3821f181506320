"""Where a sweep keeps its trials: SQLite, a journal file, or a database server for several machines."""

from __future__ import annotations

import fcntl
import functools
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError

from envrl.errors import ConfigFault, DataFault
from envrl.experiments.sweep_file import StorageSettings

_JOURNAL = "journal:"
_FORMS = "sqlite:///PATH, journal:PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
_CONNECT_S = 10
_TURN_S = 3600
_RETRY_S = 0.5
_OPEN_TRIES = 5
_REMEDIES = (
    ("password authentication failed", "correct the user or the password"),
    ("no password supplied", "give the password: USER:PASSWORD@HOST"),
    ("no pg_hba.conf entry", "let the server accept this user from this machine"),
    ("role ", "correct the user, or create it"),
    ("database ", "correct the database's name, or create it (createdb)"),
)
"""What a database server answers, and what to do then."""


class Storage:
    """An opened storage, with the lock that keeps two processes from adding a trial at the same time.

    Args:
        optuna: Optuna's side.
        lock_file: File that is locked for a turn; None if the database itself holds the lock.
    """

    def __init__(self, optuna: BaseStorage, lock_file: Path | None) -> None:
        self.optuna = optuna
        self._lock_file = lock_file

    @property
    def has_heartbeat(self) -> bool:
        """Whether the death of another machine shows."""
        return isinstance(self.optuna, RDBStorage)

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """One process of all that share the storage at a time, so that none counts while another adds.

        Args:
            name: Name of the sweep.
        """
        if self._lock_file is not None:
            with self._lock_file.open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            return
        assert isinstance(self.optuna, PatientStorage)
        connection = self.optuna.patiently(functools.partial(_locked, self.optuna.engine, name))
        try:
            yield
        finally:
            # The lock ends with the connection, also if the server has gone away meanwhile.
            connection.invalidate()
            connection.close()


def _locked(engine: sqlalchemy.Engine, name: str) -> sqlalchemy.Connection:
    """A connection that holds the sweep's lock for as long as it is open."""
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        if engine.dialect.name == "postgresql":
            # The server shall notice within a minute that the machine which holds the lock is gone.
            for setting in ("idle = 30", "interval = 10", "count = 3"):
                connection.exec_driver_sql(f"SET tcp_keepalives_{setting}")
            key = zlib.crc32(f"envrl sweep {name}".encode())
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({key})")
        else:
            lock = sqlalchemy.text("SELECT GET_LOCK(:name, :seconds)")
            connection.execute(lock, {"name": f"envrl {zlib.crc32(name.encode())}", "seconds": _TURN_S})
    except BaseException:
        connection.close()
        raise
    return connection


class PatientStorage(RDBStorage):
    """A database whose server may go away for a while: what fails for that is tried again."""

    patience_s = 0.0
    """How long; 0 while it is being opened, so that a wrong address shows at once."""

    def patiently(self, work: Callable[[], Any]) -> Any:
        """Does some work in the database, again and again while the server is away.

        Raises:
            DataFault: It has been away for too long.
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return work()
            except (StorageInternalError, SQLAlchemyError) as error:
                if self.patience_s == 0 or not _is_away(error):
                    raise
                if time.monotonic() > deadline:
                    waited, self.patience_s = self.patience_s, 1e-9  # nothing else waits as long again
                    raise DataFault(
                        f"the database has been away for {waited:.0f} s; start it, then run the same command "
                        "to go on, nothing is lost"
                    ) from error
                time.sleep(_RETRY_S)


def _is_away(error: BaseException) -> bool:
    cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
    return isinstance(cause, OperationalError) or (
        isinstance(cause, DBAPIError) and cause.connection_invalidated
    )


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: PatientStorage, *args: Any, **options: Any) -> Any:
        return self.patiently(functools.partial(method, self, *args, **options))

    return call


_CALLS = (
    *("create_new_study", "get_study_id_from_name", "get_study_name_from_id", "get_study_directions"),
    *("get_study_user_attrs", "get_study_system_attrs", "set_study_user_attr", "set_study_system_attr"),
    *("_create_new_trial", "_set_trial_param", "get_trial_id_from_study_id_trial_number", "get_trial"),
    *("_get_trials", "_get_best_trial_id", "set_trial_state_values", "set_trial_intermediate_value"),
    *("set_trial_user_attr", "set_trial_system_attr", "record_heartbeat", "_get_stale_trial_ids"),
)
"""What Optuna asks a database for, in the end."""
for _name in _CALLS:
    setattr(PatientStorage, _name, _patient(getattr(RDBStorage, _name)))


def open_storage(
    settings: StorageSettings, folder: Path, on_death: Callable[[Study, FrozenTrial], None]
) -> Storage:
    """Opens the storage: SQLite in the folder, any database, or a journal file (``journal:PATH``).

    Args:
        settings: Which.
        folder: Folder of the sweep.
        on_death: What is done with a trial that gave no sign of life for too long.

    Raises:
        ConfigFault: It can't be opened; the message names no password.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        address = settings.address or f"sqlite:///{(folder / 'optuna.db').resolve()}"
        if address.startswith(_JOURNAL):
            path = Path(address.removeprefix(_JOURNAL))
            path.parent.mkdir(parents=True, exist_ok=True)
            return Storage(JournalStorage(JournalFileBackend(str(path))), Path(f"{path}.turn"))
        url = _url(address)
        return _open_database(url, settings, on_death)
    except OSError as error:
        raise ConfigFault(
            f"--storage: its folder can't be written ({error.strerror or error}); choose another"
        ) from error


def _url(address: str) -> URL:
    try:
        url = sqlalchemy.make_url(address)
    except ArgumentError as error:
        # Not shown as it was written: it may hold a password.
        raise ConfigFault(f"--storage is no address of a storage; give {_FORMS}") from error
    if url.host and "@" in url.host:
        raise ConfigFault("--storage: write the @ of the password as %40")
    if url.drivername in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "mysql":
        return url.set(drivername="mysql+pymysql")
    return url


def _open_database(
    url: URL, settings: StorageSettings, on_death: Callable[[Study, FrozenTrial], None]
) -> Storage:
    kind = url.get_backend_name()
    shown = url.render_as_string(hide_password=True)
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise ConfigFault("--storage is a database in memory, which no worker could share; give a path")
        # Two processes that make the tables at the same time would get in each other's way.
        options: dict[str, Any] = {"connect_args": {"timeout": 60}}
        lock_file = Path(f"{url.database}.lock")
    else:
        options = {"connect_args": {"connect_timeout": _CONNECT_S}, "pool_pre_ping": True}
        lock_file = None
    try:
        made = functools.partial(
            PatientStorage,
            url.render_as_string(hide_password=False),
            engine_kwargs=options,
            heartbeat_interval=settings.heartbeat_s,
            grace_period=settings.grace_s,
            heartbeat_stale_trial_callback=on_death,
        )
        if lock_file is not None:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            with lock_file.open("w") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX)
                storage = made()
        else:
            storage = _made_by_one(made)
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigFault(_without_driver(kind, url)) from error
    except (SQLAlchemyError, StorageInternalError) as error:
        raise ConfigFault(f"the storage {shown} can't be opened: {_reason(error)}") from error
    storage.patience_s = settings.patience_s if lock_file is None else 0.0
    return Storage(storage, lock_file)


def _made_by_one(made: Callable[[], PatientStorage]) -> PatientStorage:
    """Opens a server's database; of several processes that find it empty all but one fail at the tables."""
    for _ in range(_OPEN_TRIES - 1):
        try:
            return made()
        except (SQLAlchemyError, StorageInternalError) as error:
            if _is_away(error):
                raise
            time.sleep(_RETRY_S)
    return made()


def _without_driver(kind: str, url: URL) -> str:
    if kind == "postgresql":
        return "--storage: the driver of PostgreSQL is not installed; run pip install 'psycopg[binary]'"
    if kind == "mysql":
        return "--storage: the driver of MySQL is not installed; run pip install pymysql"
    return (
        f"--storage: there is no database '{url.drivername}', or its driver is not installed; give {_FORMS}"
    )


def _reason(error: BaseException) -> str:
    cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
    text = " ".join(str(getattr(cause, "orig", None) or cause).split())
    for sign, remedy in _REMEDIES:
        if sign in text:
            return f"{_last_complaint(text)}; {remedy}"
    return f"{_last_complaint(text)}; start the server, or correct the address"


def _last_complaint(text: str) -> str:
    """What the server said, without the addresses that were tried and what the driver adds."""
    return text.rsplit("FATAL: ", 1)[-1].split(" Multiple connection attempts", 1)[0].strip()[:200]
