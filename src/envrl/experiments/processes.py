"""Starts the processes of one run, or joins those that torchrun has started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist

from envrl.errors import ConfigFault, EnvrlError
from envrl.experiments.config import RunConfig
from envrl.experiments.console import interrupt, one_line
from envrl.experiments.settings import TrainSettings
from envrl.experiments.workers import INTERRUPTED, die_with_parent, interrupts_ignored
from envrl.policy.ranks import ALONE, GONE, ProcessGone, Ranks

if TYPE_CHECKING:
    from envrl.experiments.run_place import RunPlace

_HOST = "127.0.0.1"
_JOIN_S = 600.0
"""Time that processes have to start; on a busy machine importing torch alone takes a while."""
_WAIT_S = 7 * 24 * 3600.0
"""Time one may wait for another: an evaluation can take hours. Who dies is noticed by the connection."""
_UNNOTICED_S = 600.0
"""Time after the end of another process in which this one must have noticed."""
_END_S = 10.0
_SAY_S = 3.0
_POLL_S = 1.0
_GLANCE_S = 0.05


_WHY = "what one of them ended of is its own last message"


@dataclass(frozen=True)
class _Address:
    """Where a helping process finds the others."""

    port: int
    ranks: Ranks


@contextmanager
def processes(config: RunConfig, place: RunPlace) -> Iterator[Ranks]:
    """All processes of a run, this one among them; they are gone when the context ends.

    With ``train.devices`` above 1 this process is rank 0 and starts the others. Under torchrun it joins
    those that are there.

    Raises:
        ConfigFault: torchrun has started another number of processes than the run is configured for, or
            several machines are asked for without it.
        EnvrlError: A process could not start, or one that this process started failed.
    """
    train = config.train
    if dist.is_torchelastic_launched():
        with _joined(train) as ranks:
            yield ranks
    elif train.nodes > 1:
        raise ConfigFault(
            f"train.nodes is {train.nodes}, but this is the only machine; start the run on each of them by "
            f"{torchrun_line(train)}"
        )
    elif train.devices == 1:
        yield ALONE
    else:
        with _started(config, place) as ranks:
            yield ranks


def launched_rank() -> int:
    """Number of this process among those torchrun started; 0 without torchrun."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def torchrun_line(train: TrainSettings) -> str:
    """How torchrun is to be called for these settings."""
    several = (
        f"--nnodes {train.nodes} --rdzv-backend c10d --rdzv-endpoint HOST:PORT " if train.nodes > 1 else ""
    )
    return f"`torchrun {several}--nproc-per-node {train.devices} -m envrl.experiments.train …`"


@contextmanager
def _joined(train: TrainSettings) -> Iterator[Ranks]:
    there, wanted = int(os.environ["WORLD_SIZE"]), train.devices * train.nodes
    if there != wanted:
        raise ConfigFault(
            f"torchrun has started {there} processes, but train.devices={train.devices} times "
            f"train.nodes={train.nodes} is {wanted}; change them, or start it by {torchrun_line(train)}"
        )
    if there == 1:
        yield ALONE
        return
    ranks = Ranks(
        int(os.environ["RANK"]), there, int(os.environ["LOCAL_RANK"]), int(os.environ["GROUP_RANK"])
    )
    dist.init_process_group(_backend(train), timeout=timedelta(seconds=_WAIT_S))
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def _started(config: RunConfig, place: RunPlace) -> Iterator[Ranks]:
    """This process as rank 0, the others as its children."""
    world = config.train.devices
    store = _store(0, world)
    context = multiprocessing.get_context("spawn")
    children: list[tuple[SpawnProcess, Connection]] = []
    try:
        with interrupts_ignored():
            for rank in range(1, world):
                mine, theirs = context.Pipe(duplex=False)
                address = _Address(int(store.port), Ranks(rank, world, rank))
                child = context.Process(target=_help, args=(config, place, address, theirs), daemon=True)
                child.start()
                theirs.close()
                children.append((child, mine))
        _meet(store, Ranks(0, world), config.train, children)
        try:
            with watched(children, _UNNOTICED_S):
                yield Ranks(0, world)
        finally:
            dist.destroy_process_group()
        for child, _ in children:
            child.join(_END_S)
    except (ProcessGone, RuntimeError) as error:
        # Lightning's own exchanges break with a RuntimeError when a process dies.
        if (fault := _fault(children)) is not None:
            raise EnvrlError(fault) from error
        raise
    finally:
        for child, _ in children:
            child.terminate()
        for child, _ in children:
            child.join(_END_S)
            if child.is_alive():
                child.kill()


@contextmanager
def watched(children: list[tuple[SpawnProcess, Connection]], patience_s: float) -> Iterator[None]:
    """Ends this process if one of its children has failed and it has not noticed.

    An exchange over gloo breaks with the connection. One between GPUs (nccl) may wait for the dead without
    end, and no exception reaches a thread that waits in it. What the next command does after that is what it
    does after a kill: it goes on from the last checkpoint.

    Args:
        children: The processes, and what each says when it fails.
        patience_s: Time to notice.
    """
    over = threading.Event()

    def watch() -> None:
        running = {child.sentinel: child for child, _ in children}
        while running and not over.is_set():
            for sentinel in wait(list(running), timeout=_POLL_S):
                child = running.pop(cast(int, sentinel))
                # Unknown for a moment where another thread is being told it.
                while child.exitcode is None and not over.is_set():
                    time.sleep(_GLANCE_S)
                if child.exitcode != 0 and not over.wait(patience_s):
                    print(f"error: {_fault(children) or GONE}", file=sys.stderr, flush=True)
                    os._exit(1)

    thread = threading.Thread(target=watch, name="watch-processes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _store(port: int, world: int) -> Any:
    """Where the processes find each other; port 0 makes it, on a free one."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        _HOST,
        port,
        world,
        is_master=port == 0,
        wait_for_workers=False,
        timeout=timedelta(seconds=_JOIN_S),
    )


def _meet(
    store: Any,
    ranks: Ranks,
    train: TrainSettings,
    children: list[tuple[SpawnProcess, Connection]],
) -> None:
    """Waits for all processes, then opens the group.

    Raises:
        ProcessGone: One of them ended before, or did not come in time.
    """
    store.set(f"here/{ranks.rank}", "")
    deadline = time.monotonic() + _JOIN_S
    for rank in range(ranks.world):
        # Not the store's own way of waiting, which prints a warning of every second that it waits.
        while not store.check([f"here/{rank}"]):
            if any(not child.is_alive() for child, _ in children) or time.monotonic() > deadline:
                raise ProcessGone(f"not all of the run's {ranks.world} processes started; {_WHY}")
            time.sleep(_GLANCE_S)
    dist.init_process_group(
        _backend(train),
        store=store,
        rank=ranks.rank,
        world_size=ranks.world,
        timeout=timedelta(seconds=_WAIT_S),
    )


def _backend(train: TrainSettings) -> str:
    """Gradients on GPUs travel over nccl, everything else over gloo."""
    on_gpu = train.accelerator != "cpu" and torch.cuda.is_available()
    return "cpu:gloo,cuda:nccl" if on_gpu else "gloo"


def _fault(children: list[tuple[SpawnProcess, Connection]]) -> str | None:
    """What a child failed of; None if none said anything."""
    for _, connection in children:
        try:
            if connection.poll(_SAY_S):
                return str(connection.recv())
        except EOFError:
            continue
    return None


def _help(config: RunConfig, place: RunPlace, address: _Address, told: Connection) -> None:
    """A helping process from beginning to end."""
    die_with_parent()
    signal.signal(signal.SIGTERM, interrupt)
    from envrl.experiments.run import run_as

    ranks = address.ranks
    try:
        store = _store(address.port, ranks.world)
        _meet(store, ranks, config.train, [])
        run_as(ranks, config, place)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except ProcessGone:
        os._exit(1)
    except Exception as error:
        name = "" if isinstance(error, EnvrlError) else f"{type(error).__name__}: "
        told.send(f"process {ranks.rank} of {ranks.world} ended by this: {name}{one_line(error)}")
        told.close()
        sys.stderr.flush()
        # At once: an exchange under way can't be ended in an orderly way, and closing its connection
        # is what the others notice.
        os._exit(1)
    dist.destroy_process_group()
