"""Rows must have been sampled by the weights that are trained on them."""

from __future__ import annotations

from envrl.errors import PolicyFault
from envrl.policy.batch import RolloutBatch


def assert_fresh(batch: RolloutBatch, updates_done: int) -> None:
    """Refuses an iteration's first micro-batch if its rows were sampled before the last update.

    Args:
        batch: The micro-batch.
        updates_done: Updates that the weights have seen.

    Raises:
        PolicyFault: They were.
    """
    rows = batch.policy
    if not batch.first_of_iteration or rows is None:
        return
    stale = updates_done - int(rows.policy_version.min())
    if stale != 0:
        raise PolicyFault(
            f"rows of iteration {batch.iteration} were sampled {stale} updates ago; the loader must "
            "have a length and no workers, and be reloaded every epoch"
        )
