"""Hands one entry to MLflow, so that handing it over twice leaves what handing it over once leaves.

MLflow knows a metric by name, step, time and value, and overwrites tags, artifacts, spans and states;
parameters and dataset inputs that it has already are taken as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from envrl.tracking.journal import Entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

_METRICS_PER_CALL = 1000
_PARAMETERS_PER_CALL = 100
_HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_UPLOAD_S = "600"
"""A server may take its time to store a checkpoint; that is no sign of its being away."""
_AWAY = (408, 429, 502, 503, 504)
_NOT_IMPLEMENTED = 501


def limit_http_waits() -> None:
    """Has a server that is away be noticed within seconds, in this process and those it starts.

    MLflow alone tries for minutes. What the user has set in its two variables is kept.
    """
    for name, value in _HTTP_LIMITS.items():
        os.environ.setdefault(name, value)


def send(client: MlflowClient, run_id: str, entry: Entry) -> None:
    """Logs one entry.

    Args:
        client: MLflow's client of the store.
        run_id: The run.
        entry: ``metrics`` (name, value, time in ms, step), ``params``, ``tags``, ``text``, ``artifact``,
            ``inputs``, ``traces`` or ``status``.
    """
    _SENDERS[entry["kind"]](client, run_id, entry)


def is_away(fault: BaseException) -> bool:
    """Whether the store may take later what it has not taken now.

    It can't be reached, is locked or busy, or is a server that fails (:func:`is_failing`).
    """
    return _verdict(fault) != "refused"


def is_failing(fault: BaseException) -> bool:
    """Whether a server answered that it failed: its database may be away, or it fails at this value alone."""
    return _verdict(fault) == "failing"


def _verdict(fault: BaseException) -> Literal["away", "failing", "refused"]:
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(fault, RestException):
        return _of_status(fault.get_http_status_code())
    for one in _causes(fault):
        if (found := _of_connection(one)) is not None:
            return found
    if isinstance(fault, MlflowException):
        status = fault.get_http_status_code()
        # What MLflow refuses without asking anybody has the same status 500 as answers it can't read.
        asked = str(fault).startswith("API request to ") or status in _AWAY
        return _of_status(status) if asked else "refused"
    # What MLflow makes of a server that does not tell its version because it does not answer.
    silent = isinstance(fault, NotImplementedError) and "could not identify" in str(fault)
    return "away" if silent else "refused"


def _of_connection(fault: BaseException) -> Literal["away", "failing", "refused"] | None:
    """The verdict on an exception of the connection to a server or database; None on any other."""
    import requests
    from sqlalchemy import exc

    if isinstance(fault, requests.HTTPError) and fault.response is not None:
        return _of_status(fault.response.status_code)
    if isinstance(fault, requests.exceptions.RetryError):
        return "failing" if "too many 500 error responses" in str(fault) else "away"
    lost = isinstance(fault, exc.DBAPIError) and fault.connection_invalidated
    kinds = (requests.RequestException, exc.OperationalError, exc.TimeoutError, ConnectionError, TimeoutError)
    return "away" if lost or isinstance(fault, kinds) else None


def _of_status(status: int) -> Literal["away", "failing", "refused"]:
    if status in _AWAY:
        return "away"
    return "failing" if status >= 500 and status != _NOT_IMPLEMENTED else "refused"


def _causes(fault: BaseException) -> Iterator[BaseException]:
    """An exception, what it was raised from or in place of, and so on."""
    one: BaseException | None = fault
    seen: set[int] = set()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _metrics(client: MlflowClient, run_id: str, entry: Entry) -> None:
    from mlflow.entities import Metric

    points = [Metric(name, value, time, step) for name, value, time, step in entry["points"]]
    for start in range(0, len(points), _METRICS_PER_CALL):
        client.log_batch(run_id, metrics=points[start : start + _METRICS_PER_CALL])


def _params(client: MlflowClient, run_id: str, entry: Entry) -> None:
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in entry["params"].items()]
    for start in range(0, len(params), _PARAMETERS_PER_CALL):
        client.log_batch(run_id, params=params[start : start + _PARAMETERS_PER_CALL])


def _tags(client: MlflowClient, run_id: str, entry: Entry) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in entry["tags"].items()])


def _text(client: MlflowClient, run_id: str, entry: Entry) -> None:
    client.log_text(run_id, entry["text"], entry["name"])


def _artifact(client: MlflowClient, run_id: str, entry: Entry) -> None:
    path = Path(entry["path"])
    with _time_to_upload():
        if path.is_dir():
            client.log_artifacts(run_id, str(path), entry["folder"])
        else:
            client.log_artifact(run_id, str(path), entry["folder"])


@contextmanager
def _time_to_upload() -> Iterator[None]:
    """Lifts the limit of :func:`limit_http_waits`, which MLflow reads at each request; a user's own stays."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    limited = os.environ.get(name) == _HTTP_LIMITS[name]
    if limited:
        os.environ[name] = _UPLOAD_S
    try:
        yield
    finally:
        if limited:
            os.environ[name] = _HTTP_LIMITS[name]


def _inputs(client: MlflowClient, run_id: str, entry: Entry) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    inputs = [
        DatasetInput(Dataset(**one["dataset"]), [InputTag(MLFLOW_DATASET_CONTEXT, one["context"])])
        for one in entry["datasets"]
    ]
    # MLflow looks whether it knows a data set and adds it if not. Where another run adds it in between it
    # refuses the call as a bad request. It knows one more of them then, so there are as many tries as sets.
    for _ in inputs:
        try:
            client.log_inputs(run_id, inputs)
            return
        except MlflowException as fault:
            if fault.error_code != "BAD_REQUEST":
                raise
    client.log_inputs(run_id, inputs)


def _traces(client: MlflowClient, run_id: str, entry: Entry) -> None:
    from mlflow.entities import Span, TraceInfo
    from mlflow.tracing.client import TracingClient

    # The lower half of MLflow's tracing, which is told ids and times instead of keeping global state.
    tracing = TracingClient(client.tracking_uri)
    for info in entry["infos"]:
        tracing.start_trace(TraceInfo.from_dict(info))
    tracing.log_spans(entry["experiment_id"], [Span.from_dict(span) for span in entry["spans"]])


def _status(client: MlflowClient, run_id: str, entry: Entry) -> None:
    client.set_terminated(run_id, entry["status"], entry["time"])


_SENDERS: dict[str, Any] = {
    "metrics": _metrics,
    "params": _params,
    "tags": _tags,
    "text": _text,
    "artifact": _artifact,
    "inputs": _inputs,
    "traces": _traces,
    "status": _status,
}
KINDS = tuple(_SENDERS)
"""Kinds of entries."""
