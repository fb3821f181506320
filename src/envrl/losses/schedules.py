"""How the weight of an auxiliary loss changes over the iterations of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from envrl.errors import ConfigFault

ScheduleKind = Literal["constant", "linear", "cosine", "switch", "inverse"]
"""Shapes of a schedule, see :func:`schedule_value`."""


@dataclass(frozen=True)
class Schedule:
    """Weight of an auxiliary loss over the iterations.

    Raises:
        ConfigFault: A field is outside its range.
    """

    kind: ScheduleKind = "cosine"
    """Shape: constant, linear or cosine decay to 0, switch (full weight, then 0), or inverse (half the
    weight at length, a third at twice that)."""
    weight: float = 0.2
    """Weight at iteration 0, >= 0; 0 = the loss is left out."""
    length: int | None = None
    """Iterations until the end of the decay; null = all iterations of the run, 0 = weight 0 from the start.
    Ignored by constant."""
    switch_at: float = 0.5
    """Only for switch: share of length, 0 to 1, after which the weight is 0."""
    warmup: int = 0
    """Iterations in which the weight rises to that of the shape, in equal steps; 0 = none."""

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        if self.warmup < 0 or self.warmup != int(self.warmup):
            raise ConfigFault(
                f"The schedule's warmup is {self.warmup}: give a number of iterations >= 0, 0 for none."
            )
        kinds = get_args(ScheduleKind)
        if self.kind not in kinds:
            raise ConfigFault(f"Unknown schedule kind {self.kind!r}: give one of {', '.join(kinds)}.")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ConfigFault(f"The schedule's weight is {self.weight}: give a finite number >= 0.")
        if self.length is not None and (self.length < 0 or self.length != int(self.length)):
            raise ConfigFault(
                f"The schedule's length is {self.length}: give a number of iterations >= 0, "
                "or null for all iterations of the run."
            )
        if not 0 <= self.switch_at <= 1:
            raise ConfigFault(
                f"The schedule's switch_at is {self.switch_at}: give a share of length, 0 to 1."
            )


def schedule_value(schedule: Schedule, iteration: int, total_iterations: int) -> float:
    """Weight at an iteration.

    With λ the weight, t the iteration and T the length (or the run's iterations):

    - constant: λ
    - linear: λ · (1 − t/T)
    - cosine: λ · ½ · (1 + cos(π·t/T)) (EnvRL, arXiv 2606.17680, the schedule)
    - switch: λ while t < switch_at · T, then 0
    - inverse: λ / (1 + t/T)

    From t = T on, linear, cosine and switch are exactly 0. In the first W = warmup iterations the value is
    multiplied by (t + 1)/(W + 1).

    Args:
        schedule: Shape, weight and length.
        iteration: Training iterations done before this one, >= 0.
        total_iterations: Iterations of the whole run, >= 0.

    Raises:
        ConfigFault: An iteration number is negative.
    """
    if iteration < 0 or total_iterations < 0:
        raise ConfigFault(f"Iteration {iteration} of {total_iterations}: both must be >= 0.")
    value = _shape_value(schedule, iteration, total_iterations)
    return value * (iteration + 1) / (schedule.warmup + 1) if iteration < schedule.warmup else value


def _shape_value(schedule: Schedule, iteration: int, total_iterations: int) -> float:
    """Weight without the warm-up."""
    if schedule.kind == "constant":
        return schedule.weight
    length = total_iterations if schedule.length is None else schedule.length
    if schedule.kind == "inverse":
        return schedule.weight / (1 + iteration / length) if length else 0.0
    if iteration >= length:
        return 0.0
    progress = iteration / length
    if schedule.kind == "linear":
        return schedule.weight * (1 - progress)
    if schedule.kind == "cosine":
        return schedule.weight * 0.5 * (1 + math.cos(math.pi * progress))
    # 0.07 · 100 is 7.000000000000001: without rounding the weight would stay one iteration too long.
    return schedule.weight if iteration < round(schedule.switch_at * length, 6) else 0.0
