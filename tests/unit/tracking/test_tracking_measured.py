"""A run that goes on logs nothing twice: what MLflow has of it is left out."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from envrl.tracking.measured import Measured
from envrl.tracking.runs import log_metrics, open_store, run_context
from envrl.tracking.store import Store, client

TAGS = {"env": "alfworld", "algorithm": "grpo", "arm": "a", "seed": "0", "panel": "p"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(tmp_path_factory.mktemp("mlruns"))


def history(store: Store, run_id: str, name: str) -> list[tuple[int, float]]:
    points = client(store).get_metric_history(run_id, name)
    return [(point.step, point.value) for point in sorted(points, key=lambda p: (p.step, p.timestamp))]


def test_a_continued_run_has_each_point_once(store: Store, tmp_path: Path) -> None:
    with run_context(store, "e", "a/seed_0", None, TAGS, folder=tmp_path) as run_id:
        for iteration in (0, 1):
            values = {"train/loss": 0.1 + iteration, "update/seconds": 2.5, "train/kl": math.nan}
            log_metrics(store, run_id, values, iteration)
        log_metrics(store, run_id, {"train/ratio_mean": math.inf}, 1)
    with run_context(store, "e", "a/seed_0", None, TAGS, run_id, tmp_path):
        for iteration in (1, 2):
            values = {"train/loss": 0.1 + iteration, "update/seconds": 2.6, "train/kl": math.nan}
            log_metrics(store, run_id, values | {"train/ratio_mean": math.inf}, iteration)
    assert history(store, run_id, "train/loss") == [(0, 0.1), (1, 1.1), (2, 2.1)]
    assert history(store, run_id, "update/seconds") == [(0, 2.5), (1, 2.5), (2, 2.6)]
    assert [step for step, _ in history(store, run_id, "train/kl")] == [0, 1, 2]
    largest = sys.float_info.max
    assert history(store, run_id, "train/ratio_mean") == [(1, largest), (2, largest)]


def test_another_value_is_logged_beside_the_one_before(store: Store, tmp_path: Path) -> None:
    """Hardware that does not compute the same twice: the run goes on from the new value."""
    with run_context(store, "e", "b/seed_0", None, TAGS, folder=tmp_path) as run_id:
        log_metrics(store, run_id, {"train/loss": 0.5}, 3)
    there = ["train/loss", 0.5, 1, 3]
    new = [["train/loss", 0.25, 1, 3], ["train/loss", 0.5, 1, 4], ["train/kl", 1.0, 1, 3]]
    assert Measured(client(store), run_id).new([there, *new]) == new
    with run_context(store, "e", "b/seed_0", None, TAGS, run_id, tmp_path):
        log_metrics(store, run_id, {"train/loss": 0.25}, 3)
    assert sorted(history(store, run_id, "train/loss")) == [(3, 0.25), (3, 0.5)]
    assert client(store).get_run(run_id).data.metrics["train/loss"] == 0.25
