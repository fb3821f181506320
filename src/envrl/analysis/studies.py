"""Two studies side by side: arm against arm, with what was set differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envrl.analysis.arm_runs import ArmRuns, arm_runs
from envrl.analysis.comparison import difference_interval, per_game_p_value
from envrl.analysis.records import RunRecord, arms_in_order
from envrl.analysis.statistics import Estimate, bootstrap_interval, success_interval
from envrl.analysis.summary import CurvePoint, flatten, success_curve
from envrl.errors import DataFault
from envrl.seeding import generator

_SEEDS_DIFFER = frozenset({"seed"})


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two studies.

    Attributes:
        label: What it is called in tables.
        records: Its runs.
    """

    label: str
    records: tuple[RunRecord, ...]

    @property
    def arms(self) -> list[str]:
        """Arms with a finished run."""
        return arms_in_order(r for r in self.records if r.status == "finished")

    def runs(self, arm: str) -> ArmRuns:
        """The finished runs of an arm.

        Raises:
            DataFault: There are none, or they can't be compared with each other.
        """
        found = [r for r in self.records if r.arm == arm and r.status == "finished"]
        if not found:
            raise DataFault(
                f"'{arm}' has no finished run in {self.label}; finished: {', '.join(self.arms) or 'none'}"
            )
        return arm_runs(arm, found)


@dataclass(frozen=True, slots=True)
class Match:
    """An arm of the first study and one of the second.

    Attributes:
        first: Name of the arm in the first study.
        second: Name of the arm in the second study.
        finals: Success of both at their last evaluations.
        difference: Second minus first, with its interval.
        p_value: Sign flips of the per-game differences; None where the games differ.
        seeds: Seeds of both arms.
        paired: Seeds by which the interval is paired; empty where both have none in common.
        same_games: Both played the same panel.
        iterations: Last evaluation of both.
        seconds: Mean wall time of a run of both.
        curves: Success by iteration of both.
        settings: Setting → value in the first, value in the second, where they differ.
    """

    first: str
    second: str
    finals: tuple[Estimate, Estimate]
    difference: Estimate
    p_value: float | None
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    paired: tuple[int, ...]
    same_games: bool
    iterations: tuple[int, int]
    seconds: tuple[float, float]
    curves: tuple[tuple[CurvePoint, ...], tuple[CurvePoint, ...]]
    settings: Mapping[str, tuple[str, str]]


def compare_studies(
    first: Side, second: Side, pairs: Sequence[tuple[str, str]] | None = None, seed: int = 0
) -> tuple[Match, ...]:
    """Compares arms of two studies at their last evaluations.

    On one panel, games are paired, and seeds too where the arms have some in common: the interval and p then
    are those of a report. On different panels nothing is paired, and there is no p.

    Args:
        first: The one that is subtracted.
        second: The other one.
        pairs: Arm of the first and arm of the second; by default all arms that have the same name.
        seed: Seed of the resamples.

    Raises:
        DataFault: No arm has the same name, or an arm has no finished run.
    """
    if pairs is None:
        pairs = [(arm, arm) for arm in first.arms if arm in second.arms]
    if not pairs:
        raise DataFault(
            f"{first.label} and {second.label} have no finished arm of the same name "
            f"({', '.join(first.arms) or 'none'}; {', '.join(second.arms) or 'none'}); "
            "name pairs with --arms FIRST:SECOND"
        )
    return tuple(_match(first, second, one, other, seed) for one, other in pairs)


def _match(first: Side, second: Side, one: str, other: str, seed: int) -> Match:
    runs = first.runs(one), second.runs(other)
    same_games = runs[0].game_ids == runs[1].game_ids
    common = tuple(sorted(set(runs[0].seeds) & set(runs[1].seeds))) if same_games else ()
    won = [r.outcomes(r.last, seeds=common or None) for r in runs]
    rng = generator(seed, "compare", other, one)  # the draws of a report
    return Match(
        first=one,
        second=other,
        finals=tuple(success_interval(r.outcomes(r.last), generator(seed, "curve", "")) for r in runs),  # type: ignore[arg-type]
        difference=(
            bootstrap_interval(won[1] - won[0], rng)
            if common
            else difference_interval(won[1], won[0], rng, same_games=same_games)
        ),
        p_value=per_game_p_value(won[1], won[0], rng) if same_games else None,
        seeds=(runs[0].seeds, runs[1].seeds),
        paired=common,
        same_games=same_games,
        iterations=(runs[0].last, runs[1].last),
        seconds=tuple(sum(r.seconds for r in found.records) / len(found.records) for found in runs),  # type: ignore[arg-type]
        curves=(success_curve(runs[0], None, seed), success_curve(runs[1], None, seed)),
        settings=_settings(runs[0].records, runs[1].records),
    )


def _settings(first: Sequence[RunRecord], second: Sequence[RunRecord]) -> dict[str, tuple[str, str]]:
    """Settings that are one value in all runs of an arm, and another one in the other arm's."""
    one, other = (_common(records) for records in (first, second))
    keys = sorted((one.keys() | other.keys()) - _SEEDS_DIFFER)
    return {key: (one.get(key, "–"), other.get(key, "–")) for key in keys if one.get(key) != other.get(key)}


def _common(records: Sequence[RunRecord]) -> dict[str, str]:
    found = [flatten(record.config) for record in records]
    return {key: value for key, value in found[0].items() if all(f.get(key) == value for f in found)}


def matches_document(first: Side, second: Side, matches: Sequence[Match]) -> dict[str, Any]:
    """The comparison as plain numbers, rates in [0, 1]."""
    return {
        "first": first.label,
        "second": second.label,
        "arms": [
            {
                "first": match.first,
                "second": match.second,
                "final": [end.value for end in match.finals],
                "ci95": [[end.low, end.high] for end in match.finals],
                "difference": match.difference.value,
                "difference_ci95": [match.difference.low, match.difference.high],
                "p": match.p_value,
                "seeds": [list(seeds) for seeds in match.seeds],
                "paired_seeds": list(match.paired),
                "same_games": match.same_games,
                "iterations": list(match.iterations),
                "seconds": list(match.seconds),
                "settings": {key: list(values) for key, values in match.settings.items()},
            }
            for match in matches
        ],
    }
