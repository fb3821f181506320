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
    those in which the metric was reported at all.

    Args:
        micro_batches: Micro-batches of an update, of this process's share of it where there are several.
    """

    def __init__(self, micro_batches: int) -> None:
        self._micro_batches = micro_batches
        self._batches: Counter[Phase] = Counter()
        self._updates: dict[str, set[int]] = {}
        self._update = 0
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
                whole._updates.setdefault(name, set()).update(part._updates[name])
        return whole

    def begin(self, phase: Phase) -> bool:
        """Begins a micro-batch; whether it belongs to the iteration's first update of its phase."""
        self._update, place = divmod(self._batches.total(), self._micro_batches)
        if place == 0:
            self._keep()
        self._batches[phase] += 1
        return self._batches[phase] <= self._micro_batches

    def add(self, values: Mapping[str, SupportsFloat]) -> None:
        """Adds what the micro-batch reports."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self._updates.setdefault(name, set()).add(self._update)
        self._loss += float(values.get("loss", 0.0))

    @property
    def finite(self) -> bool:
        """Whether the loss of the update under way is a finite number so far."""
        return math.isfinite(self._loss)

    def drop(self) -> None:
        """Takes back what the update under way reported, because it isn't made."""
        self._batches, self.sums, self._updates = self._before
        self._keep()

    def means(self) -> dict[str, float]:
        """Means over updates."""
        return {name: value / len(self._updates[name]) for name, value in self.sums.items()}

    def _keep(self) -> None:
        """What :meth:`drop` goes back to."""
        updates = {name: set(of) for name, of in self._updates.items()}
        self._before = (Counter(self._batches), dict(self.sums), updates)
        self._loss = 0.0
