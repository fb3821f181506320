"""Runs the arms and seeds of a study, side by side, resumable, and writes its report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from envrl.analysis.page import Tracking
from envrl.analysis.records import RunRecord, load_record, record_path, write_text_atomic
from envrl.analysis.report import ReportPaths, print_summary, write_report
from envrl.analysis.summary import summarise
from envrl.envs.panels import Panel
from envrl.errors import ConfigFault, DataFault, EnvrlError
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.console import clock, say
from envrl.experiments.deliver import deliver_left
from envrl.experiments.display import StudyDisplay
from envrl.experiments.games import GameSets
from envrl.experiments.plain import as_plain
from envrl.experiments.preflight import preflight
from envrl.experiments.register import register_best
from envrl.experiments.resume import alone, existing_record
from envrl.experiments.study_file import StudySettings
from envrl.experiments.workers import PlannedRun, WorkPlace, work
from envrl.tracking.runs import find_run, finish_study, log_artifact, log_environment, start_study
from envrl.tracking.store import Store, open_store
from envrl.untrusted import parse_json, read_text

_MOST_CRASHES = 3
_PANEL_SETTINGS = (
    *("name", "games", "receptacles", "objects_per_receptacle"),
    *("task_types", "max_steps", "games_seed"),
)
"""Fields of :class:`EnvSettings` that decide which games the panel has."""


@dataclass(frozen=True)
class Study:
    """A study with everything resolved."""

    settings: StudySettings
    runs: tuple[PlannedRun, ...]
    folder: Path

    def state(self, run: PlannedRun) -> RunRecord | None:
        """The run's record; raises if the folder holds another configuration's run."""
        return existing_record(record_path(self.folder, run.arm, run.config.seed), run.config)


def plan_study(settings: StudySettings, root: Path) -> Study:
    """Resolves all runs; an impossible configuration fails here, before any work.

    Raises:
        ConfigFault: A key or value of an arm is impossible, or the arms would have different panels.
    """
    runs = []
    for arm, seed in settings.runs:
        try:
            config = config_from(settings.base, settings.arms[arm], {"seed": seed})
        except ConfigFault as fault:
            raise ConfigFault(f"arm '{arm}': {fault}") from fault
        runs.append(PlannedRun(arm, config))
    _require_one_panel(runs)
    return Study(settings, tuple(runs), root / "studies" / settings.name)


def _require_one_panel(runs: Sequence[PlannedRun]) -> None:
    first = runs[0]
    wanted = _panel_settings(first.config)
    for run in runs:
        mine = _panel_settings(run.config)
        for key in wanted:
            if mine[key] != wanted[key]:
                raise ConfigFault(
                    f"arm '{run.arm}' has {key}={mine[key]}, arm '{first.arm}' has {wanted[key]}; a study "
                    "has one panel: set it under `base:`, or make two studies"
                )


def _panel_settings(config: RunConfig) -> dict[str, Any]:
    evaluation = {f"evaluation.{name}": value for name, value in as_plain(config.evaluation).items()}
    shop = {f"env.webshop.{name}": value for name, value in as_plain(config.env.webshop).items()}
    return evaluation | {f"env.{name}": getattr(config.env, name) for name in _PANEL_SETTINGS} | shop


def run_study(study: Study, root: Path, console: Console) -> tuple[RunRecord, ...]:
    """Runs what is not finished yet, then writes the report.

    A run that fails doesn't stop the others; a worker process that dies is started again and its runs
    go on from their checkpoints.

    Returns:
        One record for every planned run; a run that failed before it began has one only here.

    Raises:
        EnvrlError: Something is missing or broken (nothing was written then), or no run finished.
    """
    started = time.perf_counter()
    for run in study.runs:
        study.state(run)
    panel = _check(study, console)
    store = open_store(root)
    with alone(study.folder):
        deliver_left(study.folder, store.uri, console)
        parent = _parent_run(study, store, panel.panel_hash)
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            failed = _run_all(study, WorkPlace(study.folder, study.settings.name, store, parent), console)
            records = _records(study, panel.panel_hash, failed)
            report_study(study, store, parent, records, console)
            register_best(study.folder, study.settings.name, store, records, console)
            status = "FAILED" if failed else "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            finish_study(store, parent, status)
    say(console, f"all runs: {store.look}")
    say(console, f"{clock(time.perf_counter() - started)} in all")
    return records


def _check(study: Study, console: Console) -> Panel:
    """Refuses a study that can't begin and makes its games, so that the workers find them."""
    checked: dict[tuple[Any, ...], GameSets] = {}
    for run in study.runs:
        config = run.config
        key = (config.policy, config.env, config.sampling, config.optim.eight_bit, config.train.accelerator)
        if key not in checked:
            try:
                checked[key] = preflight(config)
            except EnvrlError as fault:
                raise type(fault)(f"arm '{run.arm}': {fault}") from fault
    games = next(iter(checked.values()))
    say(
        console,
        f"study {study.settings.name}: {len(study.runs)} runs, {len(games.training)} training games, "
        f"panel of {len(games.panel.games)} games ({games.panel.panel_hash}), "
        f"{study.settings.jobs} at a time",
    )
    return games.panel


def _records(study: Study, panel_hash: str, failed: Mapping[str, str]) -> tuple[RunRecord, ...]:
    """The planned runs' records, made up for those that failed before they had one."""
    records = []
    for run in study.runs:
        path = record_path(study.folder, run.arm, run.config.seed)
        if path.is_file():
            records.append(load_record(path))
        else:
            records.append(
                RunRecord(
                    arm=run.arm,
                    seed=run.config.seed,
                    status="failed",
                    panel_hash=panel_hash,
                    config=as_plain(run.config),
                    error=failed.get(run.label, "it was not started"),
                )
            )
    return tuple(records)


def report_study(
    study: Study, store: Store, parent: str, records: Sequence[RunRecord], console: Console
) -> None:
    """Writes the report into the study's folder and MLflow, and prints its table.

    Raises:
        DataFault: No run is finished.
    """
    settings, tracking = study.settings, Tracking(store.uri, parent)
    paths = write_report(study.folder, records, settings.baseline, settings.name, tracking)
    pictures = (paths.curves, paths.family_curves, paths.differences)
    for path in (paths.results, paths.report, paths.page, *pictures):
        log_artifact(store, parent, path)
    print_summary(summarise(records, study.settings.baseline), console)
    _print_paths(paths, console)


def _print_paths(paths: ReportPaths, console: Console) -> None:
    for path in (paths.page, paths.report, paths.curves, paths.results):
        say(console, f"  {path}")


def _parent_run(study: Study, store: Store, panel_hash: str) -> str:
    """MLflow run of the study, the old one if the study goes on."""
    path, name = study.folder / "study.json", study.settings.name
    known = _known(path)
    config = study.runs[0].config
    algorithms = sorted({run.config.loss.algorithm for run in study.runs})
    tags = {"env": config.env.name, "panel": panel_hash, "algorithm": ", ".join(algorithms), "study": name}
    content = {
        "mlflow_run_id": None,
        "mlflow_uri": store.uri,
        "panel": panel_hash,
        "study": as_plain(study.settings),
    }
    run_id = None
    if known.get("mlflow_uri") == store.uri:
        # A run that was killed before its id was written down is found by its name.
        run_id = known.get("mlflow_run_id") or find_run(store, name, name)
    else:
        write_text_atomic(path, json.dumps(content, indent=1) + "\n")
    parent = start_study(store, name, name, tags, run_id, study.folder)
    write_text_atomic(path, json.dumps(content | {"mlflow_run_id": parent}, indent=1) + "\n")
    log_environment(store, parent)
    log_artifact(store, parent, path)
    return parent


def _known(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse_json(read_text(path))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, no object")
    except (OSError, ValueError) as error:
        raise DataFault(f"{path} is broken ({error}); remove it, the runs beside it are kept") from error
    return content


def _run_all(study: Study, place: WorkPlace, console: Console) -> dict[str, str]:
    """Runs everything unfinished; returns the errors of the runs that failed, by label."""
    waiting = [run for run in study.runs if not _finished(study, run)]
    if skipped := len(study.runs) - len(waiting):
        say(console, f"{skipped} finished runs are kept")
    display = StudyDisplay(study.folder, waiting, console)
    failed: dict[str, str] = {}
    crashes = 0
    while waiting:
        try:
            for ended in work(list(waiting), place, study.settings.jobs):
                display.update()
                if ended is None:
                    continue
                waiting.remove(ended.run)
                if ended.error is not None:
                    failed[ended.run.label] = ended.error
                    say(console, f"{ended.run.label} failed: {ended.error}", "red")
        except BrokenProcessPool:
            crashes += 1
            waiting = [run for run in waiting if not _finished(study, run)]
            if crashes > _MOST_CRASHES:
                raise EnvrlError(
                    f"worker processes died {crashes} times (killed for memory?); fewer `jobs` may help. "
                    "Run the same command to go on"
                ) from None
            say(console, "a worker process died; its run goes on from its checkpoint")
    return failed


def _finished(study: Study, run: PlannedRun) -> bool:
    record = study.state(run)
    return record is not None and record.status == "finished"


def describe(study: Study, console: Console) -> None:
    """Dry run: lists the runs and how each arm differs from the base."""
    for run in study.runs:
        record = study.state(run)
        state = "to run" if record is None else record.status
        say(console, f"{run.label:<28} {run.config.train.iterations} iterations, {state}")
    for arm, changes in study.settings.arms.items():
        say(console, f"  {arm}: {json.dumps(changes) if changes else 'the base'}")
