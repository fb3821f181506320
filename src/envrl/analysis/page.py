"""The report of a study as one HTML file that needs nothing beside it: no script, no request, no folder.

Everything that comes from games, policies and study files is escaped by the template engine.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from envrl.analysis.curves import (
    curves_from_summary,
    family_curves_from_summary,
    plot_curves,
    plot_family_curves,
)
from envrl.analysis.differences import plot_differences
from envrl.analysis.episodes import Episode, evaluated_iterations, read_episodes
from envrl.analysis.format import FILTERS
from envrl.analysis.records import RunRecord, record_path, write_text_atomic
from envrl.analysis.statistics import RESAMPLES
from envrl.analysis.summary import StudySummary
from envrl.errors import DataFault
from envrl.tracking.metrics import check_name

_EPISODES_OF_AN_ARM = 3
_UI = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` answers unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where MLflow keeps a study's runs.

    Attributes:
        uri: Tracking URI.
        parent_id: The study's run.
    """

    uri: str
    parent_id: str

    @property
    def remote(self) -> bool:
        """The store has pages of its own; those of a local one are served by ``mlflow ui``."""
        return self.uri.startswith(("http://", "https://"))

    def link(self, run_id: str) -> str:
        """Address of a run's page."""
        return f"{self.uri.rstrip('/') if self.remote else _UI}/#/runs/{run_id}"


def write_page(
    path: Path, summary: StudySummary, records: Sequence[RunRecord], title: str, tracking: Tracking | None
) -> Path:
    """Writes the page and returns its path.

    Args:
        path: The HTML file, in the study's folder; episodes are looked for beside it.
        summary: The study's numbers.
        records: The study's runs.
        title: Heading.
        tracking: Where MLflow keeps the runs; without it there are no links.

    Raises:
        DataFault: The folder can't be written.
    """
    write_text_atomic(path, page(path.parent, summary, records, title, tracking))
    return path


def page(
    study_folder: Path,
    summary: StudySummary,
    records: Sequence[RunRecord],
    title: str,
    tracking: Tracking | None,
) -> str:
    """The page as text; see :func:`write_page`."""
    arms = [arm.name for arm in summary.arms]
    return html_environment().get_template("report.html.j2").render(
        title=title,
        summary=summary,
        games=summary.arms[0].games,
        first=summary.arms[0].curve[0].iteration,
        last=summary.arms[0].curve[-1].iteration,
        families=sorted(summary.arms[0].family_curves),
        known=sorted({name for arm in summary.arms for name in arm.dynamics}),
        metric=check_name,
        curves=svg(plot_curves(curves_from_summary(summary), title)),
        family_curves=svg(plot_family_curves(family_curves_from_summary(summary), title)),
        differences=svg(plot_differences(summary.comparisons, summary.baseline, title)),
        runs=_runs(records),
        tracking=tracking,
        samples={arm: _sample(study_folder, arm, records) for arm in arms},
        resamples=RESAMPLES,
        fewest_seeds=min(len(arm.seeds) for arm in summary.arms),
    )  # fmt: skip


def html_environment() -> Environment:
    """Templates of this package with every value escaped."""
    return template_environment(escape=True)


def template_environment(*, escape: bool) -> Environment:
    """Templates of this package with the number formats of reports.

    Args:
        escape: Escape every value for HTML.
    """
    environment = Environment(
        loader=PackageLoader("envrl.analysis"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    return environment


def svg(figure: Figure) -> Markup:
    """A figure as inline SVG; the same figure gives the same text.

    Markup, because matplotlib escapes the texts it draws.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "envrl", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])


def _runs(records: Sequence[RunRecord]) -> Mapping[str, Sequence[RunRecord]]:
    ordered = sorted(records, key=lambda record: (record.arm, record.seed))
    return {arm: list(found) for arm, found in groupby(ordered, key=lambda record: record.arm)}


def _sample(study_folder: Path, arm: str, records: Sequence[RunRecord]) -> list[dict[str, Any]] | str:
    """Episodes of the arm's last evaluation: won, lost, standing out; or why there is none."""
    for record in sorted(records, key=lambda found: found.seed):
        folder = record_path(study_folder, arm, record.seed).parent
        if record.arm == arm and record.status == "finished" and evaluated_iterations(folder):
            try:
                return _chosen(list(read_episodes(folder)))
            except DataFault as fault:
                # A report must not be lost to an illustration.
                return str(fault)
    return "no finished run of this arm has kept any (evaluation.episodes)"


def _chosen(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """The first won and the first lost; then the one with most commands that did nothing."""
    won = next((e for e in episodes if e.won), None)
    lost = next((e for e in episodes if not e.won), None)
    found: list[tuple[str, Episode]] = []
    if won is not None:
        found.append(("won", won))
    if lost is not None:
        found.append(("not won", lost))
    others = [e for e in episodes if e is not won and e is not lost]
    if others:
        found.append(("most inadmissible actions", max(others, key=_inadmissible)))
    return [{"why": why, "episode": episode} for why, episode in found[:_EPISODES_OF_AN_ARM]]


def _inadmissible(episode: Episode) -> int:
    return sum(not turn.action_admissible for turn in episode.turns)
