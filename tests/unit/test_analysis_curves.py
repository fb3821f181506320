"""Plots show the numbers they are given, told apart without colour, from zero."""

from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from envrl.analysis.comparison import Comparison
from envrl.analysis.curves import ArmCurve, plot_curves, plot_family_curves, save_png
from envrl.analysis.differences import plot_differences
from envrl.analysis.statistics import Estimate
from envrl.analysis.summary import CurvePoint
from envrl.errors import DataFault


def curve(arm: str, *values: float, seeds: int = 2) -> ArmCurve:
    points = tuple(
        CurvePoint(5 * number, Estimate(value, value - 0.05, value + 0.05))
        for number, value in enumerate(values)
    )
    return ArmCurve(arm, seeds, points)


def test_lines_and_bands_carry_the_numbers_in_percent() -> None:
    figure = plot_curves([curve("grpo", 0.25, 0.375), curve("grpo+sp", 0.25, 0.5, seeds=1)], "quick")
    (axes,) = figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0, 5], [0, 5]]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[25.0, 37.5], [25.0, 50.0]]
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (pytest.approx(20.0), pytest.approx(42.5))


def test_axes_have_names_units_and_start_at_zero() -> None:
    (axes,) = plot_curves([curve("grpo", 0.25, 0.375)], "quick").axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training iterations", "success rate (%)")
    assert axes.get_title() == "quick"
    low, high = axes.get_ylim()
    assert low == 0.0
    assert 50.0 <= high <= 51.0


def test_axis_ends_at_hundred() -> None:
    (axes,) = plot_curves([curve("grpo", 0.95)], "quick").axes
    assert 100.0 <= axes.get_ylim()[1] <= 101.0


def test_arms_differ_by_more_than_colour_and_stand_in_the_legend() -> None:
    figure = plot_curves([curve(f"arm{number}", 0.5, seeds=number) for number in (1, 2, 3, 4)], "quick")
    lines = figure.axes[0].lines
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 4
    assert len({line.get_color() for line in lines}) == 4
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["arm1 (1 seed)", "arm2 (2 seeds)", "arm3 (3 seeds)", "arm4 (4 seeds)"]


@pytest.mark.parametrize(("length", "columns"), [(4, 4), (14, 3), (26, 2), (40, 1)])
def test_a_legend_of_long_names_is_not_wider_than_the_figure(length: int, columns: int) -> None:
    figure = plot_curves([curve(f"{number}" * length, 0.5) for number in range(4)], "long names")
    [legend] = figure.legends
    assert len(legend.get_texts()) == 4
    width = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width
    assert width <= figure.bbox.width
    assert legend._ncols == columns


def test_of_many_arms_only_the_first_has_a_band() -> None:
    figure = plot_curves([curve(f"arm{number}", 0.5, 0.6) for number in range(7)], "many")
    assert len(figure.axes[0].lines) == 7
    assert len(figure.axes[0].collections) == 1
    assert figure.legends[0].get_title().get_text().endswith("95 % interval of the first")


def test_differences_carry_points_intervals_and_what_is_clear() -> None:
    def compared(value: float, low: float, high: float) -> Comparison:
        return Comparison(Estimate(value, low, high), 0.02, (0,), (value,), Estimate(1.0, 1.0, 1.0))

    comparisons = {
        "up": compared(0.05, 0.01, 0.09), "same": compared(0.01, -0.02, 0.04),
        "down": compared(-0.05, -0.09, -0.01),
    }  # fmt: skip
    figure = plot_differences(comparisons, "grpo", "quick")
    (axes,) = figure.axes
    intervals, points = axes.lines[0:6:2], axes.lines[1:6:2]
    assert [tuple(line.get_xdata()) for line in intervals] == [
        pytest.approx((1.0, 9.0)), pytest.approx((-2.0, 4.0)), pytest.approx((-9.0, -1.0))
    ]  # fmt: skip
    assert [point.get_xdata()[0] for point in points] == pytest.approx([5.0, 1.0, -5.0])
    # Only what is clear is filled, and the two directions differ in colour.
    assert [point.get_markerfacecolor() == "white" for point in points] == [False, True, False]
    assert len({point.get_color() for point in points}) == 3
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["up", "same", "down"]


def test_small_multiples_share_their_axes_and_hide_empty_places() -> None:
    families = {name: [curve("grpo", 0.1), curve("sp", 0.6)] for name in ("cool", "heat", "look", "pick")}
    figure = plot_family_curves(families, "quick")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["cool", "heat", "look", "pick"]
    assert {axes.get_ylim() for axes in shown} == {(0.0, 71.0)}
    assert len(figure.legends[0].get_texts()) == 2


def test_no_task_type() -> None:
    with pytest.raises(ValueError, match="no task type"):
        plot_family_curves({}, "quick")


def test_png_is_written_and_an_unwritable_place_named(tmp_path: Path) -> None:
    path = save_png(plot_curves([curve("grpo", 0.5)], "quick"), tmp_path / "deep" / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFault, match="can't be written"):
        save_png(plot_curves([], "quick"), tmp_path / "file" / "curves.png")
