"""Weights of the auxiliary losses over the iterations, against values worked out by hand."""

import dataclasses
import math
import subprocess
import sys

import pytest

from envrl.errors import ConfigFault
from envrl.losses.schedules import Schedule, ScheduleKind, schedule_value


def _values(schedule: Schedule, iterations: list[int], total: int) -> list[float]:
    return [schedule_value(schedule, iteration, total) for iteration in iterations]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # weight 0.2, 12 iterations, at 0, 3, 4, 6, 9, 12, 20
        ("constant", [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]),
        ("linear", [0.2, 0.15, 0.1333333, 0.1, 0.05, 0.0, 0.0]),
        # cos 0, 45°, 60°, 90°, 135°, 180°: 1, 0.7071068, 0.5, 0, −0.7071068, −1
        ("cosine", [0.2, 0.1707107, 0.15, 0.1, 0.0292893, 0.0, 0.0]),
        ("switch", [0.2, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0]),
        # 12/12, 12/15, 12/16, 12/18, 12/21, 12/24, 12/32
        ("inverse", [0.2, 0.16, 0.15, 0.1333333, 0.1142857, 0.1, 0.075]),
    ],
)
def test_values_by_kind(kind: ScheduleKind, expected: list[float]) -> None:
    got = _values(Schedule(kind=kind, weight=0.2), [0, 3, 4, 6, 9, 12, 20], 12)
    assert got == pytest.approx(expected, abs=1e-7)


def test_the_default_is_the_papers_cosine() -> None:
    # λ = 0.2 for the 1.5B model, 150 iterations, half-way ½.
    assert _values(Schedule(), [0, 75, 150], 150) == pytest.approx([0.2, 0.1, 0.0])


@pytest.mark.parametrize("kind", ["linear", "cosine", "switch"])
def test_beyond_the_end_the_weight_is_exactly_zero(kind: ScheduleKind) -> None:
    schedule = Schedule(kind=kind, weight=0.2, length=10, switch_at=1.0)
    assert _values(schedule, [10, 11, 1000], 30) == [0.0, 0.0, 0.0]
    assert schedule_value(schedule, 9, 30) > 0


def test_length_replaces_the_runs_iterations() -> None:
    schedule = Schedule(kind="linear", weight=1.0, length=4)
    assert _values(schedule, [0, 1, 2, 3, 4], 100) == [1.0, 0.75, 0.5, 0.25, 0.0]
    # A length beyond the run is cut off, not compressed.
    assert schedule_value(dataclasses.replace(schedule, length=200), 50, 100) == 0.75


def test_length_zero_means_off_from_the_start() -> None:
    assert _values(Schedule(length=0), [0, 1], 10) == [0.0, 0.0]
    assert schedule_value(Schedule(kind="constant", weight=0.5, length=0), 3, 10) == 0.5


@pytest.mark.parametrize(
    ("switch_at", "length", "last_on"), [(0.07, 100, 6), (0.3, 10, 2), (0.5, 5, 2), (1.0, 10, 9)]
)
def test_switch_falls_after_the_given_share(switch_at: float, length: int, last_on: int) -> None:
    schedule = Schedule(kind="switch", weight=0.4, length=length, switch_at=switch_at)
    assert _values(schedule, [last_on, last_on + 1], 99) == [0.4, 0.0]


def test_switch_at_zero_is_never_on() -> None:
    assert schedule_value(Schedule(kind="switch", switch_at=0.0), 0, 10) == 0.0


def test_weight_zero_is_zero_at_every_iteration() -> None:
    for kind in ("constant", "linear", "cosine", "switch"):
        assert _values(Schedule(kind=kind, weight=0.0), list(range(12)), 10) == [0.0] * 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": -1}, "length is -1"),
        ({"weight": -0.1}, r"weight is -0\.1"),
        ({"weight": math.nan}, "weight is nan"),
        ({"weight": math.inf}, "weight is inf"),
        ({"warmup": -1}, "warmup is -1"),
        ({"switch_at": 1.5}, r"switch_at is 1\.5"),
        ({"switch_at": math.nan}, "switch_at is nan"),
    ],
)
def test_impossible_schedules_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigFault, match=message):
        Schedule(**change)


def test_an_unknown_kind_is_refused_without_type_checks_too() -> None:
    """Type annotations are executed in this process only; users run without them."""
    code = (
        "from envrl.errors import ConfigFault\n"
        "from envrl.losses.schedules import Schedule\n"
        "for change in ({'kind': 'cosin'}, {'length': 2.5}):\n"
        "    try:\n        Schedule(**change)\n"
        "    except ConfigFault as fault:\n        print(fault)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    kind, length = out.splitlines()
    assert "'cosin'" in kind
    assert "constant, linear, cosine, switch" in kind
    assert "length is 2.5" in length


@pytest.mark.parametrize(("iteration", "total"), [(-1, 10), (3, -1)])
def test_negative_iterations_are_refused(iteration: int, total: int) -> None:
    with pytest.raises(ConfigFault, match=f"Iteration {iteration} of {total}"):
        schedule_value(Schedule(), iteration, total)


def test_the_weight_rises_in_equal_steps_to_its_shape() -> None:
    # Four iterations of warm-up: fifths of 0.5; from then on the constant.
    got = _values(Schedule("constant", 0.5, warmup=4), [0, 1, 2, 3, 4, 9], 10)
    assert got == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])
    # The shape's own decay goes on meanwhile: half of 1, then 0.75.
    assert _values(Schedule("linear", 1.0, warmup=1), [0, 1], 4) == pytest.approx([0.5, 0.75])


def test_an_inverse_of_length_zero_is_off() -> None:
    assert _values(Schedule("inverse", 0.5, length=0), [0, 3], 10) == [0.0, 0.0]
