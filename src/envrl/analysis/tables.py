"""Success rates as tables, ``arm, seed, iteration, success_rate``, from run records or from MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from envrl.analysis.records import RunRecord
from envrl.errors import DataFault
from envrl.tracking.store import Store, client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

COLUMNS = ["arm", "seed", "iteration", "success_rate"]
TOTAL = "eval/success_rate"
"""Metric of the whole panel; ``eval/success_rate/<family>`` is that of one task type."""
_PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True, slots=True)
class StudyRun:
    """A study in MLflow: its experiment, and its parent run's id and name."""

    experiment: str
    parent_id: str
    name: str


def table_from_records(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row for each arm, seed and evaluation."""
    rows = [
        (record.arm, record.seed, evaluation.iteration, evaluation.success_rate)
        for record in records
        for evaluation in record.evaluations
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def table_from_mlflow(
    store: Store, experiment: str, parent_id: str | None = None, metric: str = TOTAL
) -> pd.DataFrame:
    """The same table read from MLflow's child runs, which carry the tags ``arm`` and ``seed``.

    A point that was logged twice, because a run was killed and continued, counts once, as logged last.

    Args:
        store: The opened store.
        experiment: MLflow experiment of the study.
        parent_id: Run of one study; ``None`` takes every study of the experiment.
        metric: Another metric of the same kind, e.g. one task type's ``eval/success_rate/<family>``.

    Raises:
        DataFault: There is no such experiment, or none of its runs has logged the metric.
    """
    mlflow_client = client(store)
    rows: list[tuple[str, int, int, float]] = []
    for run in _arm_runs(mlflow_client, _experiment_id(mlflow_client, store, experiment), parent_id):
        latest: dict[int, tuple[int, float]] = {}
        for point in mlflow_client.get_metric_history(run.info.run_id, metric):
            if point.step not in latest or point.timestamp >= latest[point.step][0]:
                latest[point.step] = (point.timestamp, point.value)
        tags = run.data.tags
        rows += [(tags["arm"], int(tags["seed"]), step, latest[step][1]) for step in sorted(latest)]
    if not rows:
        raise DataFault(f"no run of the MLflow experiment {experiment!r} in {store.uri} has logged {metric}")
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(COLUMNS[:3], ignore_index=True)


def family_tables_from_mlflow(
    store: Store, experiment: str, parent_id: str | None = None
) -> dict[str, pd.DataFrame]:
    """Task type → table, for every task type that a run of the study has logged.

    Raises:
        DataFault: There is no such experiment.
    """
    mlflow_client = client(store)
    runs = _arm_runs(mlflow_client, _experiment_id(mlflow_client, store, experiment), parent_id)
    prefix = f"{TOTAL}/"
    families = sorted(
        {name.removeprefix(prefix) for run in runs for name in run.data.metrics if name.startswith(prefix)}
    )
    return {family: table_from_mlflow(store, experiment, parent_id, prefix + family) for family in families}


def latest_study(store: Store, experiment: str | None = None) -> StudyRun:
    """The study whose newest run was started last.

    Args:
        store: The opened store.
        experiment: Look only there; ``None`` looks in every experiment.

    Raises:
        DataFault: There is no study.
    """
    mlflow_client = client(store)
    newest: Run | None = None
    for found in mlflow_client.search_experiments():
        if experiment is None or found.name == experiment:
            for run in _arm_runs(mlflow_client, found.experiment_id, None):
                later = newest is None or run.info.start_time >= newest.info.start_time
                if later and _PARENT_TAG in run.data.tags:
                    newest = run
    if newest is None:
        where = f"the experiment {experiment!r} of {store.uri}" if experiment else store.uri
        raise DataFault(f"there is no study in {where}; run `make ablate` first or name another store")
    parent = mlflow_client.get_run(newest.data.tags[_PARENT_TAG])
    name = mlflow_client.get_experiment(newest.info.experiment_id).name
    return StudyRun(name, str(parent.info.run_id), str(parent.info.run_name))


def _experiment_id(mlflow_client: MlflowClient, store: Store, experiment: str) -> str:
    found = mlflow_client.get_experiment_by_name(experiment)
    if found is None:
        known = ", ".join(sorted(e.name for e in mlflow_client.search_experiments())) or "none"
        raise DataFault(f"there is no MLflow experiment {experiment!r} in {store.uri}; there are: {known}")
    return str(found.experiment_id)


def _arm_runs(mlflow_client: MlflowClient, experiment: str, parent_id: str | None) -> list[Run]:
    """Runs of an experiment that belong to an arm and seed."""
    return [
        run
        for run in _all_runs(mlflow_client, experiment)
        if {"arm", "seed"} <= run.data.tags.keys() and parent_id in (None, run.data.tags.get(_PARENT_TAG))
    ]


def _all_runs(mlflow_client: MlflowClient, experiment: str) -> Iterator[Run]:
    """Every run of an experiment, over all pages."""
    token: str | None = None
    while True:
        page = mlflow_client.search_runs([experiment], page_token=token)
        yield from page
        token = page.token
        if not token:
            return
