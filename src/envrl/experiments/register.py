"""Puts the best adapter of a study into MLflow's model registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from envrl.analysis.records import RunRecord, record_path
from envrl.experiments.console import one_line, say, share
from envrl.experiments.runner import ADAPTER
from envrl.tracking.delivery import is_away
from envrl.tracking.registry import BEST, model_name, register_adapter
from envrl.tracking.runs import undelivered
from envrl.tracking.store import Store, quiet_mlflow


def best_of(records: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Environment → the finished run with the best final success, of equal ones the first."""
    best: dict[str, RunRecord] = {}
    for record in records:
        if record.status != "finished" or not record.evaluations or record.mlflow_run_id is None:
            continue
        env = str(record.config["env"]["name"])
        if env not in best or _success(record) > _success(best[env]):
            best[env] = record
    return best


def register_best(
    folder: Path, study: str, store: Store, records: Sequence[RunRecord], console: Console
) -> None:
    """Registers the best run's adapter for each environment and says so; once, however often it is called.

    Args:
        folder: Folder of the study.
        study: Its name.
        store: MLflow store.
        records: Its runs.
        console: Where to print.
    """
    for env, record in best_of(records).items():
        run = record_path(folder, record.arm, record.seed).parent
        assert record.mlflow_run_id is not None
        if not (run / ADAPTER / "adapter_config.json").is_file():
            continue  # a policy trained as a whole has no adapter
        name = model_name(env, str(record.config["policy"]["model"]))
        if undelivered(run, record.mlflow_run_id):
            say(
                console,
                f"{name}: not registered, its run is not wholly in MLflow yet; run this command again",
            )
            continue
        tags = {"study": study, "arm": record.arm, "seed": str(record.seed)}
        success, panel = _success(record), record.panel_hash
        try:
            made = register_adapter(store, name, record.mlflow_run_id, ADAPTER, success, panel, tags)
        except quiet_mlflow().exceptions.MlflowException as fault:
            again = "; run this command again" if is_away(fault) else ""
            say(console, f"{name}: not registered ({one_line(fault)}){again}", "yellow")
            continue
        if made.best:
            note = f"the {BEST} one"
        else:
            reason = "is no worse" if made.comparable else "was measured on another panel"
            note = f"version {made.holder} stays the {BEST} one, it {reason}"
        say(
            console,
            f"registered: models:/{name}/{made.version}, {record.arm} seed {record.seed}, {share(success)}; "
            f"{note}",
        )


def _success(record: RunRecord) -> float:
    return record.evaluations[-1].success_rate
