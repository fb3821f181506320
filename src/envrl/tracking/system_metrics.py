"""Load of the machine, measured by MLflow and logged through the run's outbox."""

from __future__ import annotations

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from envrl.tracking.outbox import Outbox, now_ms


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's monitor, except that a store that is away does not end it.

    Args:
        outbox: Where its values go.
        run_id: The run; a continued one goes on with the next step.
        uri: MLflow tracking URI.
    """

    def __init__(self, outbox: Outbox, run_id: str, uri: str) -> None:
        super().__init__(run_id, resume_logging=True, tracking_uri=uri)
        self._outbox = outbox

    def monitor(self) -> None:
        """Measures and logs until it is told to stop; MLflow's own loop asks the store each time."""
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                if self._shutdown_event.wait(self.sampling_interval):
                    return
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: dict[str, float]) -> None:
        """Logs one set of values, at a step of its own."""
        prefix = self._metrics_prefix + (f"{self.node_id}/" if self.node_id else "")
        now, step = now_ms(), self._logging_step
        points = [[prefix + name, float(value), now, step] for name, value in metrics.items()]
        self._logging_step += 1
        if points:
            self._outbox.put({"kind": "metrics", "points": points})
        for monitor in self.monitors:
            monitor.clear_metrics()
