"""The report of a study: ``results.json``, ``report.md``, ``report.html``, PNG curves, a console table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from envrl.analysis.comparison import Comparison
from envrl.analysis.curves import (
    curves_from_summary,
    family_curves_from_summary,
    plot_curves,
    plot_family_curves,
    save_png,
)
from envrl.analysis.differences import plot_differences
from envrl.analysis.format import p_value, percent, signed
from envrl.analysis.page import Tracking, template_environment, write_page
from envrl.analysis.records import RunRecord, write_text_atomic
from envrl.analysis.statistics import RESAMPLES, Estimate
from envrl.analysis.summary import ArmSummary, StudySummary, summarise
from envrl.tracking.metrics import check_name


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """Files a report consists of."""

    results: Path
    report: Path
    page: Path
    curves: Path
    family_curves: Path
    differences: Path


def write_report(
    study_folder: Path,
    records: Sequence[RunRecord],
    baseline: str,
    title: str | None = None,
    tracking: Tracking | None = None,
) -> ReportPaths:
    """Writes the report of a study into its folder; the same records give the same numbers.

    Args:
        study_folder: Gets ``results.json``, ``report.md``, ``report.html``, ``curves.png``,
            ``curves_by_family.png`` and ``differences.png``.
        records: What :func:`envrl.analysis.records.load_records` returns.
        baseline: Arm the others are compared with.
        title: Heading, by default the folder's name.
        tracking: Where MLflow keeps the runs, for the links of ``report.html``.

    Raises:
        DataFault: There is nothing to report (see :func:`envrl.analysis.summary.summarise`) or the
            folder can't be written.
    """
    summary = summarise(records, baseline)
    title = title or study_folder.resolve().name
    paths = ReportPaths(
        results=study_folder / "results.json",
        report=study_folder / "report.md",
        page=study_folder / "report.html",
        curves=study_folder / "curves.png",
        family_curves=study_folder / "curves_by_family.png",
        differences=study_folder / "differences.png",
    )
    save_png(plot_curves(curves_from_summary(summary), title), paths.curves)
    save_png(plot_family_curves(family_curves_from_summary(summary), title), paths.family_curves)
    save_png(plot_differences(summary.comparisons, summary.baseline, title), paths.differences)
    results = json.dumps(results_document(summary), indent=1, ensure_ascii=False, allow_nan=False)
    write_text_atomic(paths.results, results + "\n")
    write_text_atomic(paths.report, _markdown(summary, title, paths))
    write_page(paths.page, summary, records, title, tracking)
    return paths


def results_document(summary: StudySummary) -> dict[str, Any]:
    """The content of ``results.json``: plain numbers, rates in [0, 1]."""
    return {
        "panel": summary.panel_hash,
        "arms": {arm.name: _arm_document(arm) for arm in summary.arms},
        "baseline": summary.baseline,
        "games": summary.arms[0].games,
        "comparisons": {name: _comparison_document(c) for name, c in summary.comparisons.items()},
        "differing_config": {key: dict(values) for key, values in summary.differing_config.items()},
        "missing": list(summary.missing),
    }


def print_summary(summary: StudySummary, console: Console | None = None) -> None:
    """Prints the table of a study, 80 columns wide, and below it what is missing."""
    title = f"success, % of {summary.arms[0].games} games (95 % intervals)"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("arm", overflow="fold", min_width=10)
    for heading in (" seeds", " before", " after", " interval", " Δ", " p", " reached", " s/run"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in summary.arms:
        against = summary.comparisons.get(arm.name)
        table.add_row(
            Text(arm.name),
            str(len(arm.seeds)),
            percent(arm.initial.value),
            percent(arm.final.value),
            f"{percent(arm.final.low)}–{percent(arm.final.high)}",
            signed(against.difference.value) if against else "–",
            p_value(against.p_value) if against else "–",
            "never" if arm.iterations_to_baseline is None else str(arm.iterations_to_baseline),
            f"{arm.seconds:.0f}",
        )
    console = console or Console()
    console.print(table)
    console.print(
        Text(
            f"Δ: points more than {summary.baseline}, same games and seeds. "
            "reached: iterations to the baseline's final success."
        )
    )
    for sentence in summary.missing:
        console.print(Text(f"missing: {sentence}"))


def _arm_document(arm: ArmSummary) -> dict[str, Any]:
    return {
        "seeds": len(arm.seeds),
        "initial": arm.initial.value,
        "final": arm.final.value,
        "ci95": _ends(arm.final),
        "curve": [point.success.value for point in arm.curve],
        "per_family": {family: curve[-1].success.value for family, curve in arm.family_curves.items()},
        "iterations_to_baseline": arm.iterations_to_baseline,
        "curve_iterations": [point.iteration for point in arm.curve],
        "curve_ci95": [_ends(point.success) for point in arm.curve],
        "per_family_ci95": {family: _ends(c[-1].success) for family, c in arm.family_curves.items()},
        "seed_numbers": list(arm.seeds),
        "gain": arm.gain.value,
        "gain_ci95": _ends(arm.gain),
        "area": arm.area.value,
        "area_ci95": _ends(arm.area),
        "dynamics": {name: {"initial": a, "final": b} for name, (a, b) in arm.dynamics.items()},
        "final_interquartile_mean": arm.final_interquartile_mean,
        "final_macro": arm.final_macro,
        "final_episode_length": arm.final_episode_length,
        "final_task_score": arm.final_task_score,
        "seconds": arm.seconds,
    }


def _comparison_document(comparison: Comparison) -> dict[str, Any]:
    return {
        "difference": comparison.difference.value,
        "ci95": _ends(comparison.difference),
        "p": comparison.p_value,
        "p_holm": comparison.p_corrected,
        "seeds": list(comparison.seeds),
        "seed_differences": list(comparison.seed_differences),
        "probability_of_improvement": comparison.improvement.value,
        "probability_of_improvement_ci95": _ends(comparison.improvement),
    }


def _markdown(summary: StudySummary, title: str, paths: ReportPaths) -> str:
    # Markdown, not HTML: cells are protected by the filter of that name.
    environment = template_environment(escape=False)
    environment.filters["cell"] = _cell
    return environment.get_template("report.md.j2").render(
        summary=summary,
        title=title,
        games=summary.arms[0].games,
        first=summary.arms[0].curve[0].iteration,
        last=summary.arms[0].curve[-1].iteration,
        known=sorted({name for arm in summary.arms for name in arm.dynamics}),
        families=sorted(summary.arms[0].family_curves),
        curves=paths.curves.name,
        family_curves=paths.family_curves.name,
        differences=paths.differences.name,
        resamples=RESAMPLES,
        metric=check_name,
        fewest_seeds=min(len(arm.seeds) for arm in summary.arms),
    )


def _ends(estimate: Estimate) -> list[float]:
    return [estimate.low, estimate.high]


def _cell(text: str) -> str:
    """A text that can't break out of a table cell or a line."""
    return " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|")
