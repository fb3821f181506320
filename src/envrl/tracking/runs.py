"""Studies and runs in MLflow: one parent run per study, one child run per arm and seed.

Every metric is logged at ``step`` = training iteration, 0 being the policy before any update.
A run is known by its id; opening it again continues it, so that a resumed run is never doubled.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from envrl.errors import DataFault
from envrl.tracking.environment import environment_versions, git_commit
from envrl.tracking.metrics import check_name
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
    "environment_versions",
    "find_run",
    "finish_study",
    "git_commit",
    "lightning_logger",
    "log_artifact",
    "log_config",
    "log_environment",
    "log_metrics",
    "log_text",
    "open_store",
    "run_context",
    "start_study",
]

Status = Literal["FINISHED", "FAILED", "KILLED"]
PARAMETER_CHARACTERS = 250
"""Longer parameter values are cut; the whole configuration is in the artifact ``config.yaml``."""
_PARAMETERS_PER_CALL = 100
_PARENT_TAG = "mlflow.parentRunId"


def start_study(
    store: Store, experiment: str, name: str, tags: Mapping[str, str], run_id: str | None = None
) -> str:
    """Opens the parent run of a study and returns its id; with ``run_id`` the old one goes on.

    Args:
        store: The opened store.
        experiment: MLflow experiment; created if there is none.
        name: Name shown in MLflow.
        tags: Tags of the run, e.g. ``{"env": "alfworld", "panel": hash}``.
        run_id: Parent run of an interrupted study.

    Raises:
        DataFault: ``run_id`` isn't in the store.
    """
    if run_id is None:
        run_id = _create(store, experiment, name, None, tags)
    else:
        _reopen(store, run_id, tags)
    return run_id


def finish_study(store: Store, run_id: str, status: Status = "FINISHED") -> None:
    """Marks the parent run as ended."""
    client(store).set_terminated(run_id, status)


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
) -> Iterator[str]:
    """Opens the run of one arm and seed, with system metrics, and gives its id.

    The run ends ``FINISHED``, after an exception ``FAILED``, after Ctrl-C ``KILLED``. MLflow's global
    tracking address is put back afterwards.

    Args:
        store: The opened store.
        experiment: MLflow experiment of the study.
        name: Name shown in MLflow, e.g. ``grpo+sp/seed_0``.
        parent_id: Run of the study; ``None`` for a run that stands alone.
        tags: Tags, at least ``env``, ``algorithm``, ``arm``, ``seed`` and ``panel``.
        run_id: Run to continue; ``None`` makes a new one.

    Raises:
        DataFault: ``run_id`` isn't in the store.
    """
    mlflow = quiet_mlflow()
    if run_id is None:
        run_id = _create(store, experiment, name, parent_id, tags)
    else:
        _reopen(store, run_id, tags)
    status: Status = "FAILED"
    with _tracking_at(store):
        mlflow.start_run(run_id=run_id, nested=True, log_system_metrics=True)
        try:
            yield run_id
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            mlflow.end_run(status)


def lightning_logger(store: Store, run_id: str) -> MLFlowLogger:
    """Lightning's MLflow logger on an open run.

    It differs from Lightning's own in three ways: the step of a metric is the logged ``iteration``
    where there is one (Lightning counts optimiser updates), Lightning's ``epoch`` is not repeated as a
    metric, and the end of a ``fit`` doesn't end the run, which also ends its system metrics:
    :func:`run_context` does that.
    """
    quiet_mlflow()
    from envrl.tracking.lightning_logger import RunLogger

    return RunLogger(store.uri, run_id)


def log_metrics(store: Store, run_id: str, metrics: Mapping[str, float], iteration: int) -> None:
    """Logs metrics of one iteration; names must stand in :mod:`envrl.tracking.metrics`.

    Raises:
        ConfigFault: A name is not listed.
    """
    from mlflow.entities import Metric
    from mlflow.utils.time import get_current_time_millis

    for name in metrics:
        check_name(name)
    now = get_current_time_millis()
    entries = [Metric(name, float(value), now, iteration) for name, value in metrics.items()]
    client(store).log_batch(run_id, metrics=entries)


def log_config(store: Store, run_id: str, config: Mapping[str, Any] | Any) -> None:
    """Logs a configuration: whole as ``config.yaml``, flattened and cut as parameters.

    Args:
        store: The opened store.
        run_id: The run.
        config: Mapping or dataclass of plain values, mappings and sequences.

    Raises:
        DataFault: A continued run was started with another value of a parameter.
    """
    from mlflow.entities import Param

    plain = _plain(config)
    wanted = {key: value[:PARAMETER_CHARACTERS] for key, value in _flatten(plain).items()}
    mlflow_client = client(store)
    known = mlflow_client.get_run(run_id).data.params
    for key, value in wanted.items():
        if known.get(key, value) != value:
            raise DataFault(
                f"run {run_id} was started with {key}={known[key]!r} and can't continue with {value!r}; "
                "start a new study or restore the value"
            )
    new = [Param(key, value) for key, value in wanted.items() if key not in known]
    for start in range(0, len(new), _PARAMETERS_PER_CALL):
        mlflow_client.log_batch(run_id, params=new[start : start + _PARAMETERS_PER_CALL])
    mlflow_client.log_text(run_id, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), "config.yaml")


def log_environment(store: Store, run_id: str) -> None:
    """Logs package versions as ``environment.yaml`` and the commit of the code as a tag."""
    mlflow_client = client(store)
    mlflow_client.log_text(run_id, yaml.safe_dump(environment_versions()), "environment.yaml")
    mlflow_client.set_tag(run_id, "git_commit", git_commit() or "unknown")


def log_artifact(store: Store, run_id: str, path: Path, folder: str | None = None) -> None:
    """Copies a file, or a folder with what is in it, to the artifacts of a run."""
    if path.is_dir():
        client(store).log_artifacts(run_id, str(path), folder)
    else:
        client(store).log_artifact(run_id, str(path), folder)


def log_text(store: Store, run_id: str, text: str, name: str) -> None:
    """Writes a text as an artifact, e.g. ``transcripts/iteration_0.md``."""
    client(store).log_text(run_id, text, name)


def _create(store: Store, experiment: str, name: str, parent_id: str | None, tags: Mapping[str, str]) -> str:
    quiet_mlflow()
    from mlflow.tracking.context.registry import resolve_tags

    own = {key: str(value) for key, value in tags.items()}
    if parent_id is not None:
        own[_PARENT_TAG] = parent_id
    run = client(store).create_run(experiment_id(store, experiment), tags=resolve_tags(own), run_name=name)
    return str(run.info.run_id)


def _reopen(store: Store, run_id: str, tags: Mapping[str, str]) -> None:
    mlflow = quiet_mlflow()
    mlflow_client = client(store)
    try:
        run = mlflow_client.get_run(run_id)
    except mlflow.exceptions.MlflowException as fault:
        raise DataFault(
            f"run {run_id} is not in the MLflow store {store.uri}; point to the store it was started in, "
            "or remove its folder from the study to start it anew"
        ) from fault
    if run.info.lifecycle_stage == "deleted":
        raise DataFault(f"run {run_id} is deleted in {store.uri}; restore it with `mlflow runs restore`")
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


def _plain(value: Any) -> Any:
    """Dataclasses, mappings, sequences, paths and enums as what YAML knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    return str(getattr(value, "value", value))


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys; a sequence stays one value."""
    if not isinstance(value, dict) or not value:
        return {prefix or "value": str(value)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat.update(_flatten(item, f"{prefix}.{key}" if prefix else key))
    return flat
