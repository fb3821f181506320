"""Where MLflow keeps its runs: one SQLite file and one folder of artifacts below a root folder.

MLflow is imported inside the functions, because that import takes seconds which ``--help`` should
not cost.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envrl.errors import DataFault
from envrl.tracking.delivery import limit_http_waits

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_ROOT = Path("mlruns")
"""Root folder of the store when none is named."""
URI_VARIABLE = "MLFLOW_TRACKING_URI"
"""Environment variable that names another store; it wins over the root folder."""
_LOCK_WAIT_S = 60.0
# Otherwise the MLflow UI opens the experiment as a set of chat traces, with training runs at the edge.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


@dataclass(frozen=True, slots=True)
class Store:
    """An opened store; plain strings, so that it can be handed to another process.

    Attributes:
        root: Folder the store was asked for.
        uri: MLflow tracking URI.
        artifact_uri: Folder of artifacts as a URI, or ``None`` where the server decides.
    """

    root: Path
    uri: str
    artifact_uri: str | None

    @property
    def look(self) -> str:
        """Where its runs can be looked at: a server's address, or the command that starts one."""
        served = self.uri.startswith(("http://", "https://"))
        return self.uri if served else f"mlflow ui --backend-store-uri {self.uri}"


def quiet_mlflow() -> Any:
    """Imports MLflow without its start-up chatter and without its usage reports over the network.

    What the user has set in ``MLFLOW_LOGGING_LEVEL``, ``MLFLOW_DISABLE_TELEMETRY`` or
    ``MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR`` is kept. Must run before anything else imports MLflow in
    the process, because MLflow reads the first two on import.
    """
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with warnings.catch_warnings():
        # tqdm, in a notebook without ipywidgets; this package draws no bars through it.
        warnings.filterwarnings("ignore", message="IProgress not found")
        import mlflow

    return mlflow


def client(store: Store) -> MlflowClient:
    """MLflow's client of the store."""
    made: MlflowClient = quiet_mlflow().MlflowClient(store.uri)
    return made


def store_uri(root: Path = DEFAULT_ROOT) -> str:
    """Address of the store that :func:`open_store` opens."""
    named = os.environ.get(URI_VARIABLE, "").strip()
    return named or _own_uri(root)


def _own_uri(root: Path) -> str:
    return f"sqlite:///{root.expanduser().resolve() / 'mlflow.db'}"


def open_store(root: Path = DEFAULT_ROOT) -> Store:
    """Opens the store below ``root`` and creates it if there is none, safe against a second process.

    With ``MLFLOW_TRACKING_URI`` set, that store is used and ``root`` only remembered.

    Args:
        root: Folder for ``mlflow.db`` and ``artifacts/``; created with its parents.

    Raises:
        DataFault: The folder can't be written, the database is broken or of another MLflow version,
            or the server named by ``MLFLOW_TRACKING_URI`` doesn't answer.
    """
    root = root.expanduser().resolve()
    own = _own_uri(root)
    # A child process of an open run inherits the address of this very store, which is no other store.
    if (uri := store_uri(root)) != own:
        store = Store(root=root, uri=uri, artifact_uri=None)
        limit_http_waits()
        _probe(store)
        return store
    artifacts = root / "artifacts"
    _check_writable(root, artifacts)
    store = Store(root=root, uri=own, artifact_uri=artifacts.as_uri())
    quiet_mlflow()  # before the lock: another process shouldn't wait for this one's import
    with _locked(root / ".store.lock"):
        if not (root / "mlflow.db").exists():
            _create_database(root / "mlflow.db")
        _check_database(root / "mlflow.db")
        _probe(store)
    return store


def experiment_id(store: Store, experiment: str) -> str:
    """Id of the experiment of that name, created if there is none, also when two processes ask at once.

    Raises:
        DataFault: The experiment was deleted in MLflow and not yet purged.
    """
    from mlflow.exceptions import MlflowException

    mlflow_client = client(store)
    found = mlflow_client.get_experiment_by_name(experiment)
    if found is None:
        location = f"{store.artifact_uri}/{experiment}" if store.artifact_uri else None
        try:
            return str(
                mlflow_client.create_experiment(experiment, artifact_location=location, tags=_EXPERIMENT_TAGS)
            )
        except MlflowException:
            # Another process was faster; anything else shows up as the experiment still missing.
            found = mlflow_client.get_experiment_by_name(experiment)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise DataFault(
            f"the MLflow experiment {experiment!r} in {store.uri} is deleted; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or choose another name"
        )
    return str(found.experiment_id)


def _check_writable(root: Path, artifacts: Path) -> None:
    """Writes and removes a file in both folders: permission bits alone don't tell (read-only mounts)."""
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        for folder in (root, artifacts):
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-"):
                pass
    except OSError as fault:
        raise DataFault(
            f"the MLflow folder {root} can't be written ({fault.strerror or fault}); make it writable, "
            f"choose another folder, or set {URI_VARIABLE} to a running MLflow server"
        ) from fault


def _create_database(path: Path) -> None:
    """Makes MLflow's tables under another name first.

    Their making takes MLflow seconds, and one that was killed in the midst of it can't be gone on with.
    """
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    part = path.with_name(f".{path.name}.part")
    for left in path.parent.glob(f"{part.name}*"):
        left.unlink()
    made = SqlAlchemyStore(f"sqlite:///{part}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    made.engine.dispose()
    part.replace(path)


def _check_database(path: Path) -> None:
    """Opens the file as SQLite first, because MLflow retries a broken one for minutes."""
    existed = path.exists()
    try:
        with closing(sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)) as connection:
            # Readers (the MLflow UI) and a writer don't block each other in this mode.
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as fault:
        if not existed:
            path.unlink(missing_ok=True)
        raise DataFault(
            f"{path} is not a database MLflow can write ({fault}); move it away, make it writable, or "
            "choose another MLflow folder"
        ) from fault


def _probe(store: Store) -> None:
    """Asks for one experiment: creates the tables of a new store, finds an unusable one."""
    mlflow = quiet_mlflow()
    try:
        client(store).search_experiments(max_results=1)
    except (mlflow.exceptions.MlflowException, OSError, ValueError) as fault:
        reason = str(fault).strip().splitlines()[0]
        raise DataFault(
            f"the MLflow store {store.uri} can't be used: {reason}; give another folder or set "
            f"{URI_VARIABLE} to a store of this MLflow version ({mlflow.__version__})"
        ) from fault


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock of the operating system on ``path``; it is freed when a process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)
