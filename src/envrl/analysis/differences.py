"""How far every arm ends from the baseline, drawn as one line with an interval for each."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from envrl.analysis.comparison import Comparison
from envrl.analysis.curves import literally
from envrl.analysis.format import p_value

_BETTER, _WORSE, _UNCLEAR = "#009E73", "#D55E00", "#56606A"


@literally
def plot_differences(comparisons: Mapping[str, Comparison], baseline: str, title: str) -> Figure:
    """Points more than the baseline at the end, with 95 % intervals.

    Arms whose interval leaves out 0 have a colour and a filled marker; p-values stand beside them.

    Args:
        comparisons: Arm → comparison with the baseline, in the order they are drawn.
        baseline: Its name.
        title: Heading.
    """
    figure = Figure(figsize=(7.5, 1.3 + 0.34 * max(1, len(comparisons))), layout="constrained")
    axes = figure.add_subplot()
    for place, comparison in enumerate(comparisons.values()):
        value, low, high = (
            100.0 * x
            for x in (comparison.difference.value, comparison.difference.low, comparison.difference.high)
        )
        colour = _BETTER if low > 0 else _WORSE if high < 0 else _UNCLEAR
        filled = colour if colour != _UNCLEAR else "white"
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot([value], [place], "o", color=colour, markerfacecolor=filled, markersize=7)
        axes.text(
            1.01, place, f"p {p_value(comparison.p_value)}", transform=axes.get_yaxis_transform(),
            va="center", fontsize="small",
        )  # fmt: skip
    axes.axvline(0.0, color="black", linewidth=1)
    axes.set_yticks(range(len(comparisons)), list(comparisons))
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.set_xlabel(f"points of success more than {baseline}, same games and seeds")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure
