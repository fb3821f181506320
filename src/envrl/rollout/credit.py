"""Who is to thank: asks for values and advantages, and writes them into the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from envrl.policy.batch import RowBatch
from envrl.rollout.collate import row_batch
from envrl.rollout.rows import TokenRow

PerTurn = tuple[tuple[float, ...], ...]
"""Of every row, one number per turn."""


@dataclass(frozen=True)
class Credit:
    """What the turns of an iteration's policy rows were worth.

    Attributes:
        advantages: How much better each turn was than expected.
        returns: What a critic should have said of each turn; None without a critic.
        metrics: What should be reported, by full name.
    """

    advantages: PerTurn
    returns: PerTurn | None = None
    metrics: dict[str, float] = field(default_factory=dict)


AdvantageFn = Callable[[Sequence[TokenRow], PerTurn | None], Credit]
"""(policy rows, the critic's values of their turns) -> credit. At least one row."""
ValueFn = Callable[[RowBatch], Float[Tensor, "turns"]]
"""The critic's value of every turn in ``RowBatch.turns``."""


@dataclass(frozen=True)
class CreditSource:
    """How an iteration's turns get their credit; losses are handed in so that rollouts know none.

    Attributes:
        advantages: Computes advantages.
        values: The critic; None if the algorithm has none.
        parts: Forward passes the critic's rows are split into; changes memory, not the result.
    """

    advantages: AdvantageFn
    values: ValueFn | None = None
    parts: int = 1

    def __call__(self, rows: Sequence[TokenRow], pad_id: int) -> tuple[list[TokenRow], dict[str, float]]:
        """The rows with advantages (and, with a critic, values and returns), and metrics."""
        # Without rows (every environment failed) there is nothing to compare, only an empty update.
        if not rows:
            return [], {}
        values = None if self.values is None else turn_values(rows, self.values, self.parts, pad_id)
        credit = self.advantages(rows, values)
        made = [replace(r, advantages=a) for r, a in zip(rows, credit.advantages, strict=True)]
        if values is not None and credit.returns is not None:
            made = [
                replace(r, values=v, returns=g) for r, v, g in zip(made, values, credit.returns, strict=True)
            ]
        return made, credit.metrics


def turn_values(rows: Sequence[TokenRow], value_of: ValueFn, parts: int, pad_id: int) -> PerTurn:
    """The critic's value of every turn, rows of like length together."""
    order = sorted(range(len(rows)), key=lambda n: len(rows[n].token_ids))
    size = -(-len(rows) // parts)
    found: dict[int, tuple[float, ...]] = {}
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        unknown = [(0.0,) * len(rows[n].turns) for n in numbers]
        batch = row_batch(
            [replace(rows[n], values=u, returns=u) for n, u in zip(numbers, unknown, strict=True)], pad_id
        )
        assert batch is not None
        values = iter(value_of(batch).tolist())
        for n, blank in zip(numbers, unknown, strict=True):
            found[n] = tuple(float(next(values)) for _ in blank)
    return tuple(found[n] for n in range(len(rows)))
