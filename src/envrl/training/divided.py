"""AdamW whose state is divided among the processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer

from envrl.policy.ranks import together


class DividedAdamW(ZeroRedundancyOptimizer):
    """AdamW whose state is divided among the processes of a run: stage 1 of ZeRO (arXiv 1910.02054).

    Each process keeps the two moments of its share of the weights, updates that share, and sends it to the
    others; the numbers are bitwise those of undivided state. A checkpoint holds the state of all, so a run
    goes on from it with another number of processes, or with undivided state.
    """

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Updates this process's share of the weights and exchanges the shares.

        Raises:
            ProcessGone: The connection to another process broke.
        """
        # The closure computes the gradients; what it raises has nothing to do with the exchange.
        with torch.enable_grad():
            loss = None if closure is None else closure()
        together(lambda: super(DividedAdamW, self).step(**kwargs))
        return loss

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Gathers the whole state on one process, for a checkpoint; all of them call it.

        Raises:
            ProcessGone: The connection to another process broke.
        """
        together(lambda: super(DividedAdamW, self).consolidate_state_dict(to))

    def state_dict(self) -> dict[str, Any]:
        """The state of all processes, which was gathered here; the gathered copy is not kept."""
        whole = super().state_dict()
        getattr(self, "_all_state_dicts", []).clear()
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes this process's share of a whole state."""
        super().load_state_dict(state_dict)
        # The share is where it is used; the base class keeps a second copy that nothing reads.
        self.state.clear()
