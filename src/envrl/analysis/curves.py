"""Success-rate curves with interval bands: computed for each arm, drawn, saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from envrl.analysis.statistics import bootstrap_interval
from envrl.analysis.summary import CurvePoint, StudySummary
from envrl.errors import DataFault
from envrl.seeding import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers; yellow left out, too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_DPI = 150
_MOST_BANDS = 6
"""With more arms than this, only the first, the baseline, has its band: more would hide each other."""
_MOST_COLUMNS = 4

literally = matplotlib.rc_context({"text.parse_math": False})
"""Decorates what draws names as they are: dollar signs in those of task types begin no formula."""


@dataclass(frozen=True, slots=True)
class ArmCurve:
    """What is drawn for one arm: points with intervals, and of how many seeds they are the mean."""

    arm: str
    seeds: int
    points: tuple[CurvePoint, ...]


def curves_from_table(table: pd.DataFrame, seed: int = 0) -> tuple[ArmCurve, ...]:
    """Mean over seeds with a 95 % bootstrap interval over seeds, for each arm.

    The table holds no single games, so the interval knows the spread between seeds only; with one seed
    it has width 0. :func:`curves_from_summary` has intervals over seeds and games. Iterations that not
    every seed of an arm has reached are left out, so that all points are means of the same runs.

    Args:
        table: Columns ``arm, seed, iteration, success_rate``, see :mod:`envrl.analysis.tables`.
        seed: Seed of the resamples.

    Raises:
        DataFault: An arm has the same seed and iteration twice (two studies in one table).
    """
    curves = []
    for arm, part in table.groupby("arm", sort=False):
        if part.duplicated(["seed", "iteration"]).any():
            raise DataFault(
                f"arm {arm!r} has a seed twice, so the table mixes studies; choose one by its parent run"
            )
        wide = part.pivot(index="seed", columns="iteration", values="success_rate").dropna(axis="columns")
        points = tuple(
            CurvePoint(
                int(str(iteration)),
                bootstrap_interval(wide[[iteration]].to_numpy(dtype=np.float64), generator(seed, "curve")),
            )
            for iteration in wide.columns
        )
        curves.append(ArmCurve(str(arm), len(wide), points))
    return tuple(curves)


def curves_from_summary(summary: StudySummary) -> tuple[ArmCurve, ...]:
    """Total success of every arm, with intervals over seeds and games."""
    return tuple(ArmCurve(arm.name, len(arm.seeds), arm.curve) for arm in summary.arms)


def family_curves_from_summary(summary: StudySummary) -> dict[str, tuple[ArmCurve, ...]]:
    """Success of every arm for each task type, with intervals over seeds and games."""
    families = sorted({family for arm in summary.arms for family in arm.family_curves})
    return {
        family: tuple(ArmCurve(a.name, len(a.seeds), a.family_curves[family]) for a in summary.arms)
        for family in families
    }


@literally
def plot_curves(curves: Sequence[ArmCurve], title: str) -> Figure:
    """Success against iteration for each arm: mean line and 95 % band, percent from 0."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, curves)
    axes.set_ylim(0.0, _top(curves))
    axes.set_title(title)
    axes.set_xlabel("training iterations")
    axes.set_ylabel("success rate (%)")
    _legend_below(figure, axes, _bands_title(curves))
    return figure


@literally
def plot_family_curves(families: Mapping[str, Sequence[ArmCurve]], title: str) -> Figure:
    """Small multiples, one per task type, with the same axes.

    Raises:
        ValueError: There is no task type.
    """
    if not families:
        raise ValueError("there is no task type to plot")
    columns = min(3, len(families))
    lines = -(-len(families) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.6 * lines + 1.0), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, (family, curves) in zip(panels, families.items(), strict=False):
        _draw(axes, curves)
        axes.set_title(family, fontsize="small")
    for axes in panels[len(families) :]:
        axes.set_visible(False)
    panels[0].set_ylim(0.0, max(_top(curves) for curves in families.values()))
    figure.suptitle(title)
    # On the axes themselves: a label of the whole figure would lie under the legend.
    for axes in grid[-1]:
        axes.set_xlabel("training iterations")
    for axes in grid[:, 0]:
        axes.set_ylabel("success rate (%)")
    _legend_below(figure, panels[0], _bands_title(next(iter(families.values()))))
    return figure


@literally
def plot_dynamics(frame: pd.DataFrame, title: str) -> Figure:
    """What the arms' policies know, by iteration: one panel for each metric, mean over seeds, a dot for each.

    Args:
        frame: What :func:`envrl.analysis.frames.dynamics_frame` returns.
        title: Heading.

    Raises:
        ValueError: The table is empty.
    """
    metrics = list(dict.fromkeys(frame["metric"]))
    if not metrics:
        raise ValueError("there is no metric to plot")
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 2.6 * lines + 1.0), layout="constrained")
    grid = list(figure.subplots(lines, columns, sharex=True, squeeze=False).flat)
    arms = list(dict.fromkeys(frame["arm"]))
    for axes, metric in zip(grid, metrics, strict=False):
        for number, arm in enumerate(arms):
            rows = frame[(frame["metric"] == metric) & (frame["arm"] == arm)]
            mean = rows.groupby("iteration")["value"].mean()
            style = _style(number)
            axes.plot(mean.index, mean.to_numpy(), markersize=4, label=arm, **style)
            axes.plot(rows["iteration"], rows["value"], ".", color=style["color"], alpha=0.35, markersize=4)
        axes.set_title(metric, fontsize="small")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(metrics) :]:
        axes.set_visible(False)
    figure.suptitle(title)
    figure.supxlabel("training iterations", fontsize="medium")
    _legend_below(figure, grid[0], "line: mean over seeds · dot: one seed")
    return figure


def save_png(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG and returns the path.

    Raises:
        DataFault: The folder can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DPI)
    except OSError as fault:
        raise DataFault(
            f"{path} can't be written ({fault.strerror or fault}); free or choose another folder"
        ) from fault
    return path


def _bands_title(curves: Sequence[ArmCurve]) -> str:
    of = " of the first" if len(curves) > _MOST_BANDS else ""
    return f"line: mean over seeds · band: 95 % interval{of}"


def _legend_below(figure: Figure, axes: Axes, title: str) -> None:
    """Below the plots, where it covers no data, in as many columns as the figure has room for."""
    handles, labels = axes.get_legend_handles_labels()
    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(min(_MOST_COLUMNS, max(1, len(labels))), 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False,
            title=title, fontsize="small", title_fontsize="small",
        )  # fmt: skip
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            return
        legend.remove()


def _draw(axes: Axes, curves: Sequence[ArmCurve]) -> None:
    banded = len(curves) if len(curves) <= _MOST_BANDS else 1
    for number, curve in enumerate(curves):
        x = [point.iteration for point in curve.points]
        style = _style(number)
        low = [100.0 * point.success.low for point in curve.points]
        high = [100.0 * point.success.high for point in curve.points]
        if number < banded:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0.0)
        axes.plot(
            x,
            [100.0 * point.success.value for point in curve.points],
            markersize=4,
            **style,
            label=f"{curve.arm} ({curve.seeds} seed{'s' if curve.seeds != 1 else ''})",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _style(number: int) -> dict[str, Any]:
    """Colour, marker and line of the arm with that number."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _LINES[number % len(_LINES)],
    }


def _top(curves: Sequence[ArmCurve]) -> float:
    """Upper end of the axis: the next ten percent above every band, so that no band is cut."""
    highest = max((point.success.high for curve in curves for point in curve.points), default=1.0)
    return float(min(100.0, 10.0 * np.ceil(10.0 * highest + 1e-9))) + 1.0
