"""What a continued run has in MLflow already, so that nothing it measures again stands there twice.

A run that was killed goes on from its checkpoint, and makes again what came after it. MLflow removes no
metric, and knows one by its time too, so what is there is left out here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from envrl.errors import ConfigFault
from envrl.tracking.metrics import check_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

_OF_THE_CLOCK = ("s", "tokens/s")
_OF_THE_MACHINE = "system/"


class Measured:
    """The metrics of a run as MLflow has them.

    Args:
        client: MLflow's client of the store.
        run_id: The run.

    Raises:
        MlflowException: The store is away, or does not know the run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        names = (n for n in client.get_run(run_id).data.metrics if not n.startswith(_OF_THE_MACHINE))
        self._values = {
            (name, point.step): point.value
            for name in names
            for point in client.get_metric_history(run_id, name)
        }

    def new(self, points: Sequence[list[Any]]) -> list[list[Any]]:
        """The points (name, value, time in ms, step) that are not there yet.

        A wall time is there as soon as its step is: the one measured first stands. Any other value that
        differs, as on hardware that does not compute the same twice, is logged beside the one of before,
        because the run goes on from the new one; MLflow shows the newest.
        """
        return [point for point in points if not self._has(point[0], point[3], point[1])]

    def _has(self, name: str, step: int, value: float) -> bool:
        if (name, step) not in self._values:
            return False
        return _of_the_clock(name) or _same(self._values[name, step], value)


def _of_the_clock(name: str) -> bool:
    try:
        return check_name(name).unit in _OF_THE_CLOCK
    except ConfigFault:
        return False


def _same(kept: float, value: float) -> bool:
    if math.isnan(value):
        return math.isnan(kept)
    # MLflow keeps an infinite value as the largest finite one.
    largest = sys.float_info.max
    return kept == value or kept == max(-largest, min(largest, value))
