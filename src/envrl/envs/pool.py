"""Many environments at once, where the failure of one stays the failure of one episode."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from envrl.envs.base import TextEnv
from envrl.envs.slots import SlotHost, SlotResult
from envrl.errors import ConfigFault, EnvrlError
from envrl.types import Game

__all__ = ["EnvPool", "Pool", "SlotResult"]

Job = Callable[[], SlotResult]
"""A call of a slot's host with all its arguments."""


class Pool(ABC):
    """A fixed number of slots for episodes, wherever their environments are; once closed it refuses.

    Args:
        size: Number of slots, >= 1.

    Raises:
        ConfigFault: The number is outside its range.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ConfigFault(f"The pool's size is {size}: give a number of environments >= 1.")
        self._size = size
        self._closed = False

    def __len__(self) -> int:
        """Number of slots."""
        return self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def reset(self, slot: int, game: Game, seed: int) -> SlotResult:
        """Starts an episode in a slot, see :meth:`EnvPool.reset`."""

    @abstractmethod
    def step(self, slots: Sequence[int], actions: Sequence[str]) -> list[SlotResult]:
        """Carries out one action in each of the slots, see :meth:`EnvPool.step`."""

    @abstractmethod
    def close(self) -> None:
        """Closes all environments; safe to call twice."""

    def _check(self, slots: Sequence[int]) -> None:
        """Refuses after the end, and slots that are none or named twice."""
        if self._closed:
            raise EnvrlError("The pool of environments is closed: make a new one.")
        if len(set(slots)) < len(slots) or not all(0 <= slot < len(self) for slot in slots):
            raise ValueError(f"Slots {list(slots)}: give different numbers from 0 to {len(self) - 1}.")


class EnvPool(Pool):
    """A fixed number of slots, each with an environment of its own, built at the slot's first reset.

    Any ``Exception`` of an environment, an answer of a wrong type and, if ``timeout_s`` is set, a hang
    becomes the fault of that slot; the other slots go on. The faulty environment is thrown away.

    Without a time-out the environments run one after the other in the calling thread, which is fastest;
    ``KeyboardInterrupt`` and ``SystemExit`` then end the run, because a signal may have raised them.
    With one, each slot runs in a thread of its own. Python can't kill a thread: one that hangs is
    *abandoned*, together with its environment, and lives on until the hang ends or the process does. An
    abandoned thread that computes, rather than waits, takes its share of the processor all that time,
    hence the limit of ``max_abandoned``.

    Args:
        make_env: Builds one environment; called anew after each fault. Time counts against ``timeout_s``.
        size: Number of slots, >= 1.
        timeout_s: Wall-clock seconds after which a call of ``reset`` or ``step`` gives up on the slots
            that have not answered. All slots of a call share it, and Python runs their code in turns, so
            it should be far above ``size`` times the usual duration of a step. ``None`` = wait for ever.
        max_abandoned: Number of hanging threads with which the pool still goes on.
        first: Number that faults give the first slot.

    Raises:
        ConfigFault: A number is outside its range.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        size: int,
        timeout_s: float | None = None,
        max_abandoned: int = 8,
        first: int = 0,
    ) -> None:
        super().__init__(size)
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise ConfigFault(
                f"The pool's timeout_s is {timeout_s}: give seconds > 0, or null for no time-out."
            )
        if max_abandoned < 0:
            raise ConfigFault(f"The pool's max_abandoned is {max_abandoned}: give a number of threads >= 0.")
        self._make_env = make_env
        self._timeout_s = timeout_s
        self._max_abandoned = max_abandoned
        self._first = first
        self._hosts = [SlotHost(make_env, first + slot) for slot in range(size)]
        self._workers: dict[int, _Worker] = {}
        self._abandoned: list[_Worker] = []

    @property
    def abandoned(self) -> int:
        """Number of threads that hang at this moment."""
        self._abandoned = [worker for worker in self._abandoned if worker.alive]
        return len(self._abandoned)

    def reset(self, slot: int, game: Game, seed: int) -> SlotResult:
        """Starts an episode of ``game`` in a slot.

        Returns:
            The first observation, or the fault.

        Raises:
            EnvrlError: More threads hang than ``max_abandoned``, or the pool is closed.
            ValueError: There is no such slot.
        """
        self._check([slot])
        if self.abandoned > self._max_abandoned:
            raise EnvrlError(
                f"{self.abandoned} environments hang in threads that can't be ended (max_abandoned is "
                f"{self._max_abandoned}): raise timeout_s (now {self._timeout_s}) if they are merely slow, "
                "or find the game that hangs, named in the recorded faults."
            )
        return self._run([(slot, partial(self._hosts[slot].reset, game, seed))])[0]

    def step(self, slots: Sequence[int], actions: Sequence[str]) -> list[SlotResult]:
        """Carries out one action in each of the given slots.

        Args:
            slots: Different slots whose episodes are under way.
            actions: One command per slot.

        Returns:
            One result per slot, in the order of ``slots``; a slot without an episode answers a fault.

        Raises:
            EnvrlError: The pool is closed.
            ValueError: A slot is named twice or does not exist, or the lengths differ.
        """
        self._check(slots)
        pairs = zip(slots, actions, strict=True)
        return self._run([(slot, partial(self._hosts[slot].step, action)) for slot, action in pairs])

    def close(self) -> None:
        """Closes all environments, waiting for them no longer than the time-out; safe to call twice."""
        self._closed = True
        for slot, host in enumerate(self._hosts):
            if slot in self._workers:
                self._workers[slot].retire(host)
            else:
                host.discard()
        deadline = time.monotonic() + (self._timeout_s or 0.0)
        for worker in self._workers.values():
            worker.join(deadline)
        self._workers.clear()

    def _run(self, jobs: Sequence[tuple[int, Job]]) -> list[SlotResult]:
        """Runs the jobs here, or in the slots' threads until the common deadline."""
        if self._timeout_s is None:
            return [job() for _, job in jobs]
        deadline = time.monotonic() + self._timeout_s
        futures = [self._worker(slot).submit(job, self._hosts[slot]) for slot, job in jobs]
        results = []
        for (slot, _), future in zip(jobs, futures, strict=True):
            try:
                results.append(future.result(max(0.0, deadline - time.monotonic())))
            except TimeoutError:
                results.append(self._abandon(slot))
        return results

    def _worker(self, slot: int) -> _Worker:
        if slot not in self._workers:
            self._workers[slot] = _Worker(f"env-slot-{slot}")
        return self._workers[slot]

    def _abandon(self, slot: int) -> SlotResult:
        """Gives a hanging slot a new host and leaves the old one to its thread."""
        host, worker = self._hosts[slot], self._workers.pop(slot)
        worker.retire(host)
        self._abandoned.append(worker)
        self._hosts[slot] = SlotHost(self._make_env, self._first + slot)
        return host.fault(f"gave no answer within {self._timeout_s} s")


class _Worker:
    """A daemon thread that runs one job after the other.

    Not a ``ThreadPoolExecutor``: the interpreter waits for its threads at exit, so a hanging environment
    would keep a finished run from ending.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def submit(self, job: Job, host: SlotHost) -> Future[SlotResult]:
        """Hands in a job."""
        future: Future[SlotResult] = Future()

        def run() -> None:
            try:
                future.set_result(job())
            except BaseException as error:  # e.g. SystemExit, which would end the thread without an answer
                future.set_result(host.fault(f"raised {type(error).__name__}: {error}"))
                host.discard()

        self._jobs.put(run)
        return future

    def retire(self, host: SlotHost) -> None:
        """Has the thread close the environment and end, after what it is doing now."""
        self._jobs.put(host.discard)
        self._jobs.put(None)

    def join(self, deadline: float) -> None:
        """Waits for the thread's end, until a time of ``time.monotonic``."""
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
