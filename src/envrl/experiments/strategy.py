"""How Lightning is told of the processes of a run."""

from __future__ import annotations

import signal
import threading
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from envrl.policy.ranks import Ranks


def strategy_of(ranks: Ranks) -> Strategy | str:
    """Lightning's strategy for a run of these processes."""
    return DataParallel(ranks) if ranks.world > 1 else "auto"


class DataParallel(DDPStrategy):
    """DDP without the wrapper that exchanges gradients while they are computed.

    The training module exchanges them once an update (:meth:`envrl.policy.ranks.Ranks.mean_gradients`).
    An update is accumulated from micro-batches of different shares of the terms, so a parameter may have
    a gradient on one process and none on another, which the wrapper does not allow; and adapters are too
    small for the overlap to matter.

    Args:
        ranks: The processes, already connected.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(cluster_environment=_Connected(ranks))
        self._ranks = ranks
        self._on_sigterm = signal.getsignal(signal.SIGTERM)

    def _configure_launcher(self) -> None:
        """None, because the processes are there: Lightning's would set another number of threads."""

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Waits on the CPU, where the end of another process is noticed.

        Lightning calls it right after it has set a handler of SIGTERM that makes an exchange of its own.
        The others, who got no signal, would be in another exchange, and all would wait without end; so the
        handler from before is set again.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)
        self._ranks.meet()


class _Connected(ClusterEnvironment):
    """Processes that found each other before Lightning began."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        raise NotImplementedError("the processes are connected already")

    @property
    def main_port(self) -> int:
        raise NotImplementedError("the processes are connected already")

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._ranks.world

    def set_world_size(self, size: int) -> None:
        assert size == self._ranks.world

    def global_rank(self) -> int:
        return self._ranks.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self._ranks.rank

    def local_rank(self) -> int:
        return self._ranks.local_rank

    def node_rank(self) -> int:
        return self._ranks.node
