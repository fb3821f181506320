"""Lightning's MLflow logger, bent to runs that are opened and closed by :mod:`envrl.tracking.runs`."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only


class RunLogger(MLFlowLogger):
    """Logs to one given run, at step = iteration, and leaves its end to whoever opened it."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs at the value of ``iteration`` where it is among the metrics, else at Lightning's step."""
        kept = {name: value for name, value in metrics.items() if name != "epoch"}
        if "iteration" in kept:
            step = round(float(kept["iteration"]))
        if kept:
            super().log_metrics(kept, step)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Uploads what ``log_model`` asked for; the run stays open for evaluation and reports."""
        if self._initialized and self._checkpoint_callback is not None:
            self._scan_and_log_checkpoints(self._checkpoint_callback)
