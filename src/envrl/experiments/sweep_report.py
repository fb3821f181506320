"""What a sweep leaves: a table of its best trials, the best configuration, all trials, figures."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from envrl.analysis.records import write_text_atomic
from envrl.analysis.sweeps import sweep_figures
from envrl.experiments.console import clock, say, share
from envrl.experiments.plain import as_plain
from envrl.experiments.sweep_file import SweepSettings
from envrl.experiments.sweep_search import ERROR, Attempt, attempts, counts_of
from envrl.experiments.workers import WorkPlace
from envrl.tracking.runs import log_artifact

_ROWS = 10
_DPI = 120


def report_sweep(
    settings: SweepSettings, study: optuna.Study, place: WorkPlace, console: Console
) -> list[Path]:
    """Prints the best trials and writes ``trials.csv``, ``best.yaml`` and the figures, also to MLflow.

    Returns:
        The files; without a finished trial there are no best one and no figures.
    """
    known = attempts(study)
    paths = [_write_trials(settings, known, place.folder / "trials.csv")]
    best = best_first(settings, study)
    if best:
        paths.append(_write_best(settings, best[0], place.folder / "best.yaml"))
        paths += _draw(settings, study, place.folder)
    for path in paths:
        log_artifact(place.store, place.parent_id, path)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(counts_of(study).items()))
    say(console, f"trials: {counts}")
    if best:
        console.print(_table(settings, best))
    for path in paths:
        say(console, f"  {path}")
    return paths


def best_first(settings: SweepSettings, study: optuna.Study) -> list[Attempt]:
    """The finished trials, best first; with two objectives only those that no other is better than."""
    done = [a for a in attempts(study) if a.last.state == TrialState.COMPLETE]
    if len(settings.objectives) > 1:
        front = {trial.number for trial in study.best_trials}
        done = [a for a in done if a.last.number in front]
    sign = -1.0 if settings.objectives[0] == "success" else 1.0
    return sorted(done, key=lambda a: (sign * a.last.values[0], a.number))


def outcome_text(attempt: Attempt, settings: SweepSettings) -> str:
    """How a trial ended, in a few words."""
    trial = attempt.last
    if trial.state == TrialState.COMPLETE:
        return ", ".join(_shown(o, v) for o, v in zip(settings.objectives, trial.values, strict=True))
    reason = trial.user_attrs.get(ERROR, "its worker was killed too often")
    return str(reason) if trial.state == TrialState.PRUNED else f"failed: {reason}"


def _shown(objective: str, value: float) -> str:
    return share(value) if objective == "success" else clock(value)


def _table(settings: SweepSettings, best: list[Attempt]) -> Table:
    front = len(settings.objectives) > 1
    title = "Pareto front" if front else f"Best of {len(best)} finished trials"
    table = Table(title=title, title_justify="left")
    for name in ("trial", *settings.objectives, *settings.space.parameters):
        table.add_column(name, justify="right", overflow="fold")
    for attempt in best if front else best[:_ROWS]:
        values = zip(settings.objectives, attempt.last.values, strict=True)
        params = [_short(attempt.last.params.get(n)) for n in settings.space.parameters]
        table.add_row(str(attempt.number), *(_shown(o, v) for o, v in values), *params)
    return table


def _short(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_trials(settings: SweepSettings, known: list[Attempt], path: Path) -> Path:
    """All trials in the order in which they were first tried; times in seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(settings.space.parameters)
    writer.writerow(["trial", "state", *settings.objectives, *names, "mean_run_seconds", "error"])
    for attempt in known:
        trial = attempt.last
        complete = trial.state == TrialState.COMPLETE
        values = trial.values if complete else [""] * len(settings.objectives)
        params = [trial.params.get(name, "") for name in names]
        extra = [trial.user_attrs.get("seconds", ""), trial.user_attrs.get(ERROR, "")]
        writer.writerow([attempt.number, trial.state.name.lower(), *values, *params, *extra])
    write_text_atomic(path, text.getvalue())
    return path


def _write_best(settings: SweepSettings, best: Attempt, path: Path) -> Path:
    config = as_plain(settings.config(best.last.params, settings.seeds[0]))
    head = (
        f"# Trial {best.number} of the sweep {settings.name}: {outcome_text(best, settings)}, "
        f"mean of the seeds {', '.join(map(str, settings.seeds))}.\n"
        f"#   python -m envrl.experiments.train --config {path.name}\n"
    )
    write_text_atomic(path, head + yaml.safe_dump(config, sort_keys=False))
    return path


def _draw(settings: SweepSettings, study: optuna.Study, folder: Path) -> list[Path]:
    """The figures that what is known is enough for."""
    paths = []
    for name, figure in sweep_figures(study, settings.objectives).items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=_DPI, bbox_inches="tight")
    return paths
