"""Finished runs of an arm: which evaluations they share, and what became of every game."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envrl.analysis.records import Evaluation, RunRecord
from envrl.analysis.statistics import (
    Outcomes,
)
from envrl.errors import DataFault


@dataclass(frozen=True, slots=True)
class ArmRuns:
    """Finished runs of one arm, cut to the iterations they share."""

    name: str
    records: tuple[RunRecord, ...]
    iterations: tuple[int, ...]
    game_ids: tuple[str, ...]
    families: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """In the order of the records."""
        return tuple(record.seed for record in self.records)

    @property
    def last(self) -> int:
        """The last iteration that all seeds evaluated."""
        return self.iterations[-1]

    def evaluations(self, iteration: int) -> list[Evaluation]:
        """Of every seed, after so many iterations."""
        return [e for record in self.records for e in record.evaluations if e.iteration == iteration]

    def outcomes(self, iteration: int, what: str = "won", seeds: Sequence[int] | None = None) -> Outcomes:
        """``[seeds games]`` of one field of the outcomes, games in the order of ``game_ids``."""
        rows = []
        for seed, evaluation in zip(self.seeds, self.evaluations(iteration), strict=True):
            if seeds is None or seed in seeds:
                by_game = {o.game_id: float(getattr(o, what)) for o in evaluation.outcomes}
                rows.append([by_game[game] for game in self.game_ids])
        return np.asarray(rows, dtype=np.float64)


def arm_runs(name: str, records: Sequence[RunRecord]) -> ArmRuns:
    """Checks that every evaluation has the same games and keeps the iterations all seeds share.

    Args:
        name: The arm.
        records: Its finished runs, at least one.

    Raises:
        DataFault: The runs share no evaluated iteration, or were evaluated on different games.
    """
    shared = set.intersection(*({e.iteration for e in record.evaluations} for record in records))
    if not shared:
        raise DataFault(f"the finished runs of arm {name!r} share no evaluated iteration; run them anew")
    first = records[0].evaluations[0].outcomes
    panel = {outcome.game_id: outcome.family for outcome in first}
    for record in records:
        for evaluation in record.evaluations:
            if {o.game_id: o.family for o in evaluation.outcomes} != panel or not panel:
                raise DataFault(
                    f"arm {name!r}, seed {record.seed}, iteration {evaluation.iteration}: the evaluated "
                    "games are not those of the panel; run that seed anew"
                )
    games = tuple(sorted(panel))
    return ArmRuns(name, tuple(records), tuple(sorted(shared)), games, tuple(panel[game] for game in games))
