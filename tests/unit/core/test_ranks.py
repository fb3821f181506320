"""What processes tell each other, tried with real ones."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from envrl.errors import PolicyFault
from envrl.policy.ranks import ALONE, ProcessGone, Ranks, together

WORLD = 2


def _child(work: Callable[[Ranks], Any], rank: int, file: Path, told: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORLD)
    try:
        told.send(work(Ranks(rank, WORLD, rank)))
    except Exception as error:
        told.send(f"{type(error).__name__}: {error}")
    os._exit(0)


def in_processes(folder: Path, work: Callable[[Ranks], Any]) -> list[Any]:
    """What the work gives on each rank, or the error it ended with; None for a process that died."""
    context = multiprocessing.get_context("spawn")
    ends = []
    for rank in range(WORLD):
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(work, rank, folder / "meeting", theirs), daemon=True)
        child.start()
        theirs.close()
        ends.append((child, mine))
    answers: list[Any] = []
    for child, mine in ends:
        assert mine.poll(120), "a process waits without end"
        try:
            answers.append(mine.recv())
        except EOFError:
            answers.append(None)
        child.join(10)
    return answers


def _shares(ranks: Ranks) -> Any:
    seen = []

    def work(items: Any) -> list[int]:
        seen.append(tuple(items))
        return [10 * item for item in items]

    whole = [ranks.divided(range(count), work) for count in (5, 1, 0)]
    return whole, seen, ranks.everyone(lambda: ranks.rank), ranks.first(lambda: f"of {ranks.rank}")


def _gradients(ranks: Ranks) -> Any:
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    weights[0].grad = torch.tensor([1.0, 2.0]) * (ranks.rank + 1)
    if ranks.rank == 1:
        weights[1].grad = torch.tensor([8.0, 0.0])
    ranks.mean_gradients(weights)
    return [None if w.grad is None else w.grad.tolist() for w in weights]


def _one_fails(ranks: Ranks) -> Any:
    def work() -> None:
        if ranks.rank == 1:
            raise PolicyFault("the model\nis too large; use a smaller one")

    ranks.everyone(work)


def _one_dies(ranks: Ranks) -> Any:
    if ranks.rank == 1:
        os._exit(3)
    ranks.everyone(lambda: 0)


def test_items_are_dealt_out_and_results_come_back_in_order(tmp_path: Path) -> None:
    first, second = in_processes(tmp_path, _shares)
    whole = [[0, 10, 20, 30, 40], [0], []]
    assert first == (whole, [(0, 2, 4), (0,), ()], [0, 1], "of 0")
    assert second == (whole, [(1, 3), (), ()], [0, 1], "of 0")


def test_gradients_are_means_and_stay_away_where_nobody_has_one(tmp_path: Path) -> None:
    first, second = in_processes(tmp_path, _gradients)
    assert first == second == [[1.5, 3.0], [4.0, 0.0], None]


def test_the_error_of_one_is_the_error_of_all(tmp_path: Path) -> None:
    first, second = in_processes(tmp_path, _one_fails)
    assert second == "PolicyFault: the model\nis too large; use a smaller one"
    assert first == "EnvrlError: process 1 of 2 ended by this: the model is too large; use a smaller one"


def test_the_end_of_one_is_noticed(tmp_path: Path) -> None:
    first, second = in_processes(tmp_path, _one_dies)
    assert second is None
    assert first.startswith("ProcessGone: another process of this run has ended")


def test_alone_everything_is_done_here() -> None:
    assert ALONE.divided([1, 2], lambda items: [-i for i in items]) == [-1, -2]
    assert ALONE.everyone(lambda: 3) == [3]
    assert ALONE.writes
    with pytest.raises(PolicyFault):
        ALONE.first(_refuse)


def _refuse() -> None:
    raise PolicyFault("no")


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (RuntimeError("Connection closed by peer"), ProcessGone),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), torch.OutOfMemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError),
    ],
)
def test_a_full_device_is_not_taken_for_a_process_that_is_gone(
    error: RuntimeError, becomes: type[Exception]
) -> None:
    """As the first step of a divided optimiser may find, where its state is made."""

    def exchange() -> None:
        raise error

    with pytest.raises(becomes) as caught:
        together(exchange)
    assert type(caught.value) is becomes
    assert (caught.value is error) is (becomes is not ProcessGone)
