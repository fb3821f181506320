"""Lightning's MLflow logger, bent to runs that are opened and closed by :mod:`envrl.tracking.runs`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from envrl.tracking.outbox import Outbox, now_ms


class RunLogger(MLFlowLogger):
    """Logs to one given run, at step = iteration, and leaves its end to whoever opened it.

    Args:
        uri: MLflow tracking URI of the store.
        run_id: The run.
        outbox: Where its values go.
    """

    def __init__(self, uri: str, run_id: str, outbox: Outbox) -> None:
        super().__init__(tracking_uri=uri, run_id=run_id, save_dir=None)
        self._outbox = outbox
        self._experiment_id = outbox.experiment_id
        # Lightning would otherwise set MLflow's global address on first use, an environment variable
        # with it, and never put them back.
        self._initialized = True

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs at the value of ``iteration`` where it is among the metrics, else at Lightning's step."""
        kept = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        if "iteration" in kept:
            step = round(kept["iteration"])
        if kept:
            now = now_ms()
            points = [[name, value, now, step or 0] for name, value in kept.items()]
            self._outbox.put({"kind": "metrics", "points": points})

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Nothing: :func:`envrl.tracking.runs.log_config` logs the whole configuration."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Nothing: the run stays open for evaluation and reports."""
