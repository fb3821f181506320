"""Lightning's MLflow logger, bent to runs that are opened and closed by :mod:`envrl.tracking.runs`."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only


class RunLogger(MLFlowLogger):
    """Logs to one given run, at step = iteration, and leaves its end to whoever opened it.

    Args:
        uri: MLflow tracking URI of the store.
        run_id: The run; it must be there.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        super().__init__(tracking_uri=uri, run_id=run_id, save_dir=None)
        self._experiment_id = self._mlflow_client.get_run(run_id).info.experiment_id
        # Lightning would otherwise set MLflow's global address on first use, an environment variable
        # with it, and never put them back.
        self._initialized = True

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
