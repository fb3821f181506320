"""The comparison of two studies as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.analysis.curves import ArmCurve, plot_curves
from envrl.analysis.page import html_environment, svg
from envrl.analysis.studies import Match, Side


def comparison_page(first: Side, second: Side, matches: Sequence[Match]) -> str:
    """The page: table, curves, and the settings that differ; it needs no file beside it."""
    curves = [
        ArmCurve(f"{side.label}: {arm}", len(seeds), curve)
        for match in matches
        for side, arm, seeds, curve in zip(
            (first, second), (match.first, match.second), match.seeds, match.curves, strict=True
        )
    ]
    return (
        html_environment()
        .get_template("comparison.html.j2")
        .render(
            first=first.label,
            second=second.label,
            matches=matches,
            curves=svg(plot_curves(curves, f"{first.label} and {second.label}")),
        )
    )
