"""Numbers of a study, computed once from its records and shown by the report, the table and the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from envrl.analysis.arm_runs import ArmRuns, arm_runs
from envrl.analysis.comparison import Comparison, compare, holm
from envrl.analysis.records import RunRecord, arms_in_order
from envrl.analysis.statistics import (
    Estimate,
    Outcomes,
    area_weights,
    bootstrap_interval,
    interquartile_mean,
    iterations_to_baseline,
    macro_average,
    success_interval,
)
from envrl.errors import DataFault
from envrl.seeding import generator

_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Mean success over the seeds of an arm after some training iterations, with its interval."""

    iteration: int
    success: Estimate


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm over all its finished seeds.

    Attributes:
        name: The arm.
        seeds: Its finished seeds.
        games: Number of games of the panel.
        curve: Every iteration that all seeds evaluated, in order.
        family_curves: The same for each task type.
        gain: Final minus initial success, game by game.
        area: Mean success over training: the area under the curve divided by its length.
        dynamics: Metric ``dynamics/…`` → mean over seeds at the first and at the last evaluation.
        final_interquartile_mean: Of the seeds' final success rates.
        final_macro: Mean of the task types' final rates.
        final_episode_length: Mean environment steps.
        final_task_score: Mean task score.
        iterations_to_baseline: First iteration at the baseline's final success, ``None`` if never.
        seconds: Mean wall time of a run.
    """

    name: str
    seeds: tuple[int, ...]
    games: int
    curve: tuple[CurvePoint, ...]
    family_curves: Mapping[str, tuple[CurvePoint, ...]]
    gain: Estimate
    area: Estimate
    dynamics: Mapping[str, tuple[float, float]]
    final_interquartile_mean: float
    final_macro: float
    final_episode_length: float
    final_task_score: float
    iterations_to_baseline: int | None
    seconds: float

    @property
    def initial(self) -> Estimate:
        """Success at the first evaluation."""
        return self.curve[0].success

    @property
    def final(self) -> Estimate:
        """Success at the last evaluation."""
        return self.curve[-1].success


@dataclass(frozen=True, slots=True)
class StudySummary:
    """A whole study.

    Attributes:
        panel_hash: The evaluation panel.
        baseline: Arm the others are compared with.
        arms: Arms with at least one finished run, the baseline first.
        comparisons: Arm → comparison with the baseline at the end; arms without a common seed and the
            baseline itself are left out.
        differing_config: Setting → arm → value, for settings that tell the arms apart.
        missing: One sentence for each run or comparison that isn't there.
    """

    panel_hash: str
    baseline: str
    arms: tuple[ArmSummary, ...]
    comparisons: Mapping[str, Comparison]
    differing_config: Mapping[str, Mapping[str, str]]
    missing: tuple[str, ...]


def summarise(records: Sequence[RunRecord], baseline: str, seed: int = 0) -> StudySummary:
    """Computes every number of a study from its finished runs.

    Args:
        records: All records; those not finished are only listed as missing.
        baseline: Arm the others are compared with.
        seed: Seed of the resamples; the same records and seed give the same numbers.

    Raises:
        DataFault: No run is finished, the baseline is unknown, or the runs were not evaluated on the
            same panel.
    """
    names = arms_in_order(records, first=baseline)
    if baseline not in names:
        raise DataFault(f"the baseline {baseline!r} is none of the study's arms: {', '.join(names)}")
    missing = [_why_missing(record) for record in records if record.status != "finished"]
    finished = [record for record in records if record.status == "finished"]
    panel_hash = _same_panel(finished)
    arms = [
        arm_runs(name, [r for r in finished if r.arm == name])
        for name in names
        if name in {r.arm for r in finished}
    ]
    missing += [f"{name}: no finished run" for name in names if name not in {arm.name for arm in arms}]
    summaries = _summaries(arms, baseline, seed)
    comparisons: dict[str, Comparison] = {}
    missing += _uneven(arms)
    base = next((arm for arm in arms if arm.name == baseline), None)
    for arm in arms:
        if base is None or arm.name == baseline:
            continue
        if common := sorted(set(arm.seeds) & set(base.seeds)):
            comparisons[arm.name] = _compare(arm, base, common, seed)
        else:
            missing.append(f"{arm.name}: no seed in common with {baseline}, so no paired comparison")
    corrected = holm([comparison.p_value for comparison in comparisons.values()])
    comparisons = {
        name: replace(comparison, p_corrected=p)
        for (name, comparison), p in zip(comparisons.items(), corrected, strict=True)
    }
    return StudySummary(
        panel_hash, baseline, tuple(summaries), comparisons, differing_config(finished), tuple(missing)
    )


def differing_config(records: Sequence[RunRecord]) -> dict[str, dict[str, str]]:
    """Settings with one value within each arm and not the same value in all arms."""
    values: dict[str, dict[str, set[str]]] = {}
    names = arms_in_order(records)
    flat = [(record.arm, flatten(record.config)) for record in records]
    for key in sorted({key for _, config in flat for key in config}):
        values[key] = {name: {c.get(key, "–") for arm, c in flat if arm == name} for name in names}
    return {
        key: {name: next(iter(found)) for name, found in by_arm.items()}
        for key, by_arm in values.items()
        if all(len(found) == 1 for found in by_arm.values())
        and len({next(iter(found)) for found in by_arm.values()}) > 1
    }


def _same_panel(finished: Sequence[RunRecord]) -> str:
    if not finished:
        raise DataFault("no run of the study is finished, so there is nothing to report; let one finish")
    hashes = sorted({record.panel_hash for record in finished})
    if len(hashes) > 1:
        raise DataFault(
            f"the runs were evaluated on different panels ({', '.join(hashes)}) and can't be compared; "
            "put them in separate study folders"
        )
    return hashes[0]


def _why_missing(record: RunRecord) -> str:
    place = f"{record.arm}, seed {record.seed}: "
    if record.status == "running":
        return place + f"not finished, {len(record.evaluations)} evaluations so far"
    if record.status == "pruned":
        return place + (record.error or "pruned")
    reason = " ".join((record.error or "no reason recorded").split())
    return place + f"failed ({reason[:_REASON_CHARACTERS]})"


def _uneven(arms: Sequence[ArmRuns]) -> list[str]:
    """A sentence for each arm that ends early; its final success is compared all the same."""
    longest = max(arm.iterations[-1] for arm in arms)
    return [
        f"{arm.name}: ends at iteration {arm.iterations[-1]}, other arms at {longest}"
        for arm in arms
        if arm.iterations[-1] != longest
    ]


def _summaries(arms: Sequence[ArmRuns], baseline: str, seed: int) -> list[ArmSummary]:
    panels = {arm.game_ids for arm in arms}
    if len(panels) > 1:
        raise DataFault("the arms have the same panel hash and different games; run the study anew")
    curves = {arm.name: success_curve(arm, None, seed) for arm in arms}
    goal = curves[baseline][-1].success.value if baseline in curves else None
    return [_summary(arm, curves[arm.name], goal, seed) for arm in arms]


def _summary(arm: ArmRuns, curve: tuple[CurvePoint, ...], goal: float | None, seed: int) -> ArmSummary:
    last, first = arm.iterations[-1], arm.iterations[0]
    won = arm.outcomes(last)
    reached = None
    if goal is not None:
        reached = iterations_to_baseline(arm.iterations, [point.success.value for point in curve], goal)
    return ArmSummary(
        name=arm.name,
        seeds=arm.seeds,
        games=len(arm.game_ids),
        curve=curve,
        family_curves={family: success_curve(arm, family, seed) for family in sorted(set(arm.families))},
        gain=bootstrap_interval(won - arm.outcomes(first), generator(seed, "gain", arm.name)),
        area=bootstrap_interval(_over_training(arm), generator(seed, "area", arm.name)),
        dynamics=_dynamics(arm),
        final_interquartile_mean=interquartile_mean(won.mean(axis=1).tolist()),
        final_macro=macro_average(won, arm.families),
        final_episode_length=float(arm.outcomes(last, "steps").mean()),
        final_task_score=float(arm.outcomes(last, "task_score").mean()),
        iterations_to_baseline=reached,
        seconds=float(np.mean([record.seconds for record in arm.records])),
    )


def _over_training(arm: ArmRuns) -> Outcomes:
    """``[seeds games]``: share of training, evaluation by evaluation, in which each game was won."""
    values = np.stack([arm.outcomes(iteration) for iteration in arm.iterations])
    return np.tensordot(area_weights(arm.iterations), values, axes=1)


def _dynamics(arm: ArmRuns) -> dict[str, tuple[float, float]]:
    """What all seeds measured at both ends, means over seeds."""
    ends = [arm.evaluations(arm.iterations[0]), arm.evaluations(arm.iterations[-1])]
    names = set.intersection(*(set(e.dynamics) for end in ends for e in end))
    return {
        name: tuple(float(np.mean([e.dynamics[name] for e in end])) for end in ends)  # type: ignore[misc]
        for name in sorted(names)
    }


def success_curve(arm: ArmRuns, family: str | None, seed: int) -> tuple[CurvePoint, ...]:
    """Success after every shared iteration, on all games or on those of one task type."""
    chosen = np.asarray([family is None or name == family for name in arm.families])
    # One path of seeds for all iterations and arms: points differ by outcomes, not by resampling noise.
    return tuple(
        CurvePoint(i, success_interval(arm.outcomes(i)[:, chosen], generator(seed, "curve", family or "")))
        for i in arm.iterations
    )


def _compare(arm: ArmRuns, base: ArmRuns, seeds: Sequence[int], seed: int) -> Comparison:
    return compare(
        arm.outcomes(arm.iterations[-1], seeds=seeds),
        base.outcomes(base.iterations[-1], seeds=seeds),
        seeds,
        generator(seed, "compare", arm.name, base.name),
    )


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys with values as text."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: str(value)} if prefix else {}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat
