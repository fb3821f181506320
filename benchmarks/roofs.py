"""What the machine can do at most, and the clock that tells what was done: CPU seconds, on a GPU real ones.

What concerns a GPU was not run on one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Clock = Callable[[], float]


def clock_of(device: torch.device) -> Clock:
    """CPU seconds of the process: on a shared machine those of the clock would measure the neighbours.

    On a GPU those of the clock, once it has done all it was given.
    """
    if device.type == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def _best(work: Callable[[], object], times: int, clock: Clock, seconds: float) -> float:
    """Least seconds of a call, in tries of some calls each."""
    work()
    best, ends = float("inf"), clock() + seconds
    while clock() < ends:
        started = clock()
        for _ in range(times):
            work()
        best = min(best, (clock() - started) / times)
    return best


def peak_flops(
    device: torch.device | None = None, dtype: torch.dtype = torch.float32, seconds: float = 1.0
) -> float:
    """Floating-point operations a second of large matrix products: the roof that is reachable."""
    device = device or torch.device("cpu")
    size = 768 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: a @ b, 5, clock_of(device), seconds)


def peak_bandwidth(device: torch.device | None = None, mib: int = 256, seconds: float = 1.0) -> float:
    """Bytes a second that a large copy reads and writes."""
    device = device or torch.device("cpu")
    source = torch.ones(mib * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), 1, clock_of(device), seconds)
