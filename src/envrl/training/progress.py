"""Where a run stands; imports no library, so that a command can show it without loading one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        iteration: Iterations completed.
        iterations: Length of the run.
        training_success: Success rate of the episodes collected last; None before any.
        evaluation_success: Success rate on the panel at the last evaluation; None before any.
        seconds: Wall time of this process on the run so far.
        seconds_left: Estimate from the iterations this process has made; None before any.
    """

    iteration: int
    iterations: int
    training_success: float | None
    evaluation_success: float | None
    seconds: float
    seconds_left: float | None
