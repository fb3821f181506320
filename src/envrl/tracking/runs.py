"""Studies and runs in MLflow: one parent run per study, one child run per arm and seed.

Every metric is logged at ``step`` = training iteration, 0 being the policy before any update.
A run is known by its id; opening it again continues it, so that a resumed run is never doubled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from envrl.errors import DataFault
from envrl.tracking.delivery import is_away
from envrl.tracking.environment import environment_versions, git_commit
from envrl.tracking.journal import journal_path
from envrl.tracking.leftovers import deliver, deliver_below
from envrl.tracking.logs import (
    log_artifact,
    log_config,
    log_datasets,
    log_environment,
    log_episodes,
    log_metrics,
    log_text,
    set_tag,
)
from envrl.tracking.outbox import (
    Outbox,
    close_outbox,
    now_ms,
    open_outbox,
    outbox,
    unsent_folder,
)
from envrl.tracking.store import (
    DEFAULT_ROOT,
    URI_VARIABLE,
    Store,
    client,
    experiment_id,
    open_store,
    quiet_mlflow,
)

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "DEFAULT_ROOT",
    "Store",
    "deliver_below",
    "environment_versions",
    "find_run",
    "finish_study",
    "git_commit",
    "lightning_logger",
    "log_artifact",
    "log_config",
    "log_datasets",
    "log_environment",
    "log_episodes",
    "log_metrics",
    "log_text",
    "open_store",
    "run_context",
    "set_tag",
    "start_study",
    "undelivered",
]

Status = Literal["FINISHED", "FAILED", "KILLED"]
_WAIT_S: dict[Status, float] = {"FINISHED": 30.0, "FAILED": 30.0, "KILLED": 3.0}
"""How long the end of a run waits for a store that is away."""
_PARENT_TAG = "mlflow.parentRunId"


def start_study(
    store: Store,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    run_id: str | None = None,
    folder: Path | None = None,
) -> str:
    """Opens the parent run of a study and returns its id; with ``run_id`` the old one goes on.

    Args:
        store: The opened store.
        experiment: MLflow experiment; created if there is none.
        name: Name shown in MLflow.
        tags: Tags of the run, e.g. ``{"env": "alfworld", "panel": hash}``.
        run_id: Parent run of an interrupted study.
        folder: Where its values are kept while the store is away; None for a folder below the store's root.

    Raises:
        DataFault: ``run_id`` isn't in the store, or the store is away.
    """
    return _opened(store, experiment, name, None, tags, run_id, folder)[0]


def finish_study(store: Store, run_id: str, status: Status = "FINISHED") -> None:
    """Marks the parent run as ended, and waits a while for a store that is away."""
    outbox(store, run_id).put({"kind": "status", "status": status, "time": now_ms()})
    close_outbox(store, run_id, _WAIT_S[status])


def find_run(store: Store, experiment: str, name: str, parent_id: str | None = None) -> str | None:
    """Id of the newest run of that name (below that parent), or ``None``.

    For a run that was killed after it was created and before its id was written down.
    """
    mlflow_client = client(store)
    found = mlflow_client.get_experiment_by_name(experiment)
    if found is None:
        return None
    for run in _search(mlflow_client, found.experiment_id):
        if run.info.run_name == name and run.data.tags.get(_PARENT_TAG) == parent_id:
            return str(run.info.run_id)
    return None


@contextmanager
def run_context(
    store: Store,
    experiment: str,
    name: str,
    parent_id: str | None,
    tags: Mapping[str, str],
    run_id: str | None = None,
    folder: Path | None = None,
) -> Iterator[str]:
    """Opens the run of one arm and seed, with system metrics, and gives its id.

    The run ends ``FINISHED``, after an exception ``FAILED``, after Ctrl-C ``KILLED``. If the store goes away
    meanwhile, what is logged is kept in ``folder`` and delivered when it is back; the end of the run waits
    for that a while. MLflow's global tracking address is put back afterwards.

    Args:
        store: The opened store.
        experiment: MLflow experiment of the study.
        name: Name shown in MLflow, e.g. ``grpo+sp/seed_0``.
        parent_id: Run of the study; ``None`` for a run that stands alone.
        tags: Tags, at least ``env``, ``algorithm``, ``arm``, ``seed`` and ``panel``.
        run_id: Run to continue; ``None`` makes a new one.
        folder: Folder of the run; ``None`` for a folder below the store's root.

    Raises:
        DataFault: ``run_id`` isn't in the store, or the store is away.
    """
    run_id, opened = _opened(store, experiment, name, parent_id, tags, run_id, folder)
    from envrl.tracking.system_metrics import SystemMetrics

    status: Status = "FAILED"
    with _tracking_at(store):
        system = SystemMetrics(opened, run_id, store.uri)
        system.start()
        try:
            yield run_id
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            system.finish()
            opened.put({"kind": "status", "status": status, "time": now_ms()})
            close_outbox(store, run_id, _WAIT_S[status])


def lightning_logger(store: Store, run_id: str) -> MLFlowLogger:
    """Lightning's MLflow logger on an open run.

    It differs from Lightning's own in three ways: the step of a metric is the logged ``iteration``
    where there is one (Lightning counts optimiser updates), Lightning's ``epoch`` is not repeated as a
    metric, and the end of a ``fit`` doesn't end the run, which also ends its system metrics:
    :func:`run_context` does that.
    """
    quiet_mlflow()
    from envrl.tracking.lightning_logger import RunLogger

    return RunLogger(store.uri, run_id, outbox(store, run_id))


def undelivered(folder: Path, run_id: str) -> bool:
    """Whether values of a run are kept in its folder that MLflow does not have yet."""
    return journal_path(folder, run_id).is_file()


def _opened(
    store: Store,
    experiment: str,
    name: str,
    parent_id: str | None,
    tags: Mapping[str, str],
    run_id: str | None,
    folder: Path | None,
) -> tuple[str, Outbox]:
    """A new run, or an old one with everything delivered that it could not before."""
    goes_on = run_id is not None
    try:
        if run_id is None:
            run_id = _create(store, experiment, name, parent_id, tags)
        else:
            _reopen(store, run_id, tags, folder)
        opened = open_outbox(store, run_id, folder, name)
        if goes_on:
            opened.leave_out_what_is_there()
        _ = opened.experiment_id  # asked for while the store is there
        return run_id, opened
    except Exception as fault:
        if not is_away(fault):
            raise
        raise DataFault(
            f"the MLflow store {store.uri} went away, and {name} was not begun; start it, then run the same "
            "command again"
        ) from fault


def _create(store: Store, experiment: str, name: str, parent_id: str | None, tags: Mapping[str, str]) -> str:
    quiet_mlflow()
    from mlflow.tracking.context.registry import resolve_tags

    own = {key: str(value) for key, value in tags.items()}
    if parent_id is not None:
        own[_PARENT_TAG] = parent_id
    run = client(store).create_run(experiment_id(store, experiment), tags=resolve_tags(own), run_name=name)
    return str(run.info.run_id)


def _reopen(store: Store, run_id: str, tags: Mapping[str, str], folder: Path | None) -> None:
    mlflow = quiet_mlflow()
    mlflow_client = client(store)
    try:
        run = mlflow_client.get_run(run_id)
    except mlflow.exceptions.MlflowException as fault:
        if is_away(fault):
            raise
        raise DataFault(
            f"run {run_id} is not in the MLflow store {store.uri}; point to the store it was started in, "
            "or remove its folder from the study to start it anew"
        ) from fault
    if run.info.lifecycle_stage == "deleted":
        raise DataFault(f"run {run_id} is deleted in {store.uri}; restore it with `mlflow runs restore`")
    # First what the process before has left: its last state would come after the new one.
    left = journal_path(folder or unsent_folder(store), run_id)
    if left.is_file():
        # The run is in this store, whatever address it had then.
        deliver(left, store.uri, foreign=True)
    mlflow_client.update_run(run_id, status="RUNNING")
    for key, value in tags.items():
        mlflow_client.set_tag(run_id, key, str(value))


def _search(mlflow_client: MlflowClient, experiment: str) -> Iterator[Run]:
    """All runs of an experiment, newest first, over all pages."""
    token: str | None = None
    while True:
        page = mlflow_client.search_runs(
            [experiment], order_by=["attributes.start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _tracking_at(store: Store) -> Iterator[None]:
    """Points MLflow's global address to the store; it also sets an environment variable, undone here."""
    mlflow = quiet_mlflow()
    before = os.environ.get(URI_VARIABLE)
    mlflow.set_tracking_uri(store.uri)
    os.environ[URI_VARIABLE] = store.uri
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
