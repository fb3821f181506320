"""The processes that train one policy together: who has which share, and how they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from envrl.errors import EnvrlError
from envrl.policy.memory import is_out_of_memory

T = TypeVar("T")
U = TypeVar("U")

GONE = (
    "another process of this run has ended, so this one can't go on; what it ended of is its own last "
    "message. Run the same command again to go on from the last checkpoint"
)


class ProcessGone(EnvrlError):
    """The connection to another process of the run broke; the cause is that one's."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run; alone by default.

    All of them must call the same methods in the same order. Objects travel over gloo on the CPU, whatever
    the gradients travel over, so that a process that waits for another's games uses no device. The error
    of one becomes an error of all, never a wait without end.

    Attributes:
        rank: Number of this process, from 0; rank 0 alone writes.
        world: Number of processes.
        local_rank: Number of this process on its machine.
        node: Number of its machine.
        divides: What is divided among the processes: nothing, the optimiser's state, or the policy's layers
            and the state of what is trained of them.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    node: int = 0
    divides: Literal["nothing", "state", "layers"] = "nothing"

    @property
    def writes(self) -> bool:
        """Whether this process keeps records, checkpoints and metrics."""
        return self.rank == 0

    def everyone(self, work: Callable[[], T]) -> list[T]:
        """Does this process's part and gives the parts of all, by rank.

        Raises:
            EnvrlError: The work of another process failed, or it is gone.
            Exception: Whatever the work of this process raised.
        """
        if self.world == 1:
            return [work()]
        error: Exception | None = None
        part: tuple[T | None, str | None]
        try:
            part = work(), None
        except Exception as raised:
            text = " ".join(str(raised).split())
            said = text if isinstance(raised, EnvrlError) else f"{type(raised).__name__}: {text}"
            error, part = raised, (None, said)
        parts: list[tuple[T | None, str | None]] = [(None, None)] * self.world
        together(lambda: dist.all_gather_object(parts, part))
        if error is not None:
            raise error
        for rank, (_, fault) in enumerate(parts):
            if fault is not None:
                raise EnvrlError(f"process {rank} of {self.world} ended by this: {fault}")
        return [result for result, _ in parts]  # type: ignore[misc]

    def divided(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[U]]) -> list[U]:
        """Has each process work on every ``world``-th item; the results of all, in the order of the items.

        Args:
            items: The same on all processes.
            work: Gives one result for each item it is given, in their order; it may be given none.
        """
        parts = self.everyone(lambda: list(work(items[self.rank :: self.world])))
        return [parts[n % self.world][n // self.world] for n in range(len(items))]

    def first(self, work: Callable[[], T]) -> T:
        """Has rank 0 do something, while the others wait; its result on all."""
        return self.everyone(lambda: work() if self.writes else None)[0]  # type: ignore[return-value]

    def meet(self) -> None:
        """Waits until all are here."""
        if self.world > 1:
            together(lambda: dist.all_reduce(torch.zeros(1)))

    def mean_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its mean over the processes, as DDP would.

        A parameter that no process has a gradient of keeps none; for one that only some have a gradient
        of, the others count as 0.
        """
        if self.world == 1:
            return
        trained = list(parameters)
        have = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
        # On the CPU: nobody begins a device's exchange unless all have come this far.
        together(lambda: dist.all_reduce(have))
        for parameter, count in zip(trained, have.tolist(), strict=True):
            if count == 0:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.add_up(parameter.grad)
            parameter.grad /= self.world

    def add_up(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over the processes, in place."""
        if self.world > 1:
            together(lambda: dist.all_reduce(tensor))


ALONE = Ranks()
"""A run of one process."""


def together(exchange: Callable[[], object]) -> None:
    """An exchange of all processes; the end of another's connection becomes a sentence.

    Raises:
        ProcessGone: The connection to another process broke.
    """
    try:
        exchange()
    except RuntimeError as error:
        # The others are there; this process has no room for what they send, or for what it computes first.
        if is_out_of_memory(error):
            raise
        raise ProcessGone(GONE) from error
