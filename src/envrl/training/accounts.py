"""What an iteration's updates reported, as means over the updates that could report it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

from envrl.policy.batch import Phase


class Accounts:
    """Sums over an iteration's micro-batches, and what each sum is to be divided by.

    Values of micro-batches add up to those of their update, so a mean is a sum over a number of updates:
    of those phases in which the metric was reported at all.

    Args:
        micro_batches: Micro-batches of an update, of this process's share of it where there are several.
    """

    def __init__(self, micro_batches: int) -> None:
        self._micro_batches = micro_batches
        self._batches: Counter[Phase] = Counter()
        self._phases: dict[str, set[Phase]] = {}
        self._phase = Phase.JOINT
        self._loss = 0.0
        self.sums: dict[str, float] = {}
        self._keep()

    @classmethod
    def joined(cls, parts: Sequence[Accounts]) -> Accounts:
        """The accounts of whole updates, from those of the shares that processes had in them."""
        whole = cls(sum(part._micro_batches for part in parts))
        for part in parts:
            whole._batches += part._batches
            for name, value in part.sums.items():
                whole.sums[name] = whole.sums.get(name, 0.0) + value
                whole._phases.setdefault(name, set()).update(part._phases[name])
        return whole

    def begin(self, phase: Phase) -> bool:
        """Begins a micro-batch; whether it belongs to the iteration's first update of its phase."""
        if self._batches.total() % self._micro_batches == 0:
            self._keep()
        self._phase = phase
        self._batches[phase] += 1
        return self._batches[phase] <= self._micro_batches

    def add(self, values: Mapping[str, SupportsFloat]) -> None:
        """Adds what the micro-batch reports."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self._phases.setdefault(name, set()).add(self._phase)
        self._loss += float(values.get("loss", 0.0))

    @property
    def finite(self) -> bool:
        """Whether the loss of the update under way is a finite number so far."""
        return math.isfinite(self._loss)

    def drop(self) -> None:
        """Takes back what the update under way reported, because it isn't made."""
        self._batches, self.sums, self._phases = self._before
        self._keep()

    def means(self) -> dict[str, float]:
        """Means over updates."""
        return {name: value / self._updates(self._phases[name]) for name, value in self.sums.items()}

    def _keep(self) -> None:
        """What :meth:`drop` goes back to."""
        phases = {name: set(of) for name, of in self._phases.items()}
        self._before = (Counter(self._batches), dict(self.sums), phases)
        self._loss = 0.0

    def _updates(self, phases: set[Phase]) -> int:
        return max(1, sum(self._batches[phase] for phase in phases) // self._micro_batches)
