"""Forward and backward of micro-batches, in smaller parts where memory does not suffice for a whole one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from envrl.errors import PolicyFault
from envrl.policy.batch import RolloutBatch, RowBatch, TurnBatch
from envrl.policy.memory import is_out_of_memory
from envrl.training.notices import warn


@dataclass
class _Piece:
    """Rows of a micro-batch, and whether what they report was taken down already."""

    batch: RolloutBatch
    reported: bool


class FittingPasses:
    """Runs an update's micro-batches forward and backward; what does not fit is halved by rows.

    A micro-batch's loss is a sum over its rows with the denominators of the whole update, so its halves
    add up to the same gradient, apart from the order of floating-point sums. Where everything fits, the
    numbers are bitwise those of a plain forward and backward pass.

    :meth:`forward` hands out a scalar that stands for the loss and is not connected to it: whoever holds
    it must not keep alive the memory that smaller parts need. The real graph is run by :meth:`backward`.

    Args:
        loss: Loss of some rows of an update, connected to the graph; told whether to report it.
        parameters: What is trained.
        context: Precision of a forward pass.
    """

    def __init__(
        self,
        loss: Callable[[RolloutBatch, bool], Tensor],
        parameters: Callable[[], Iterator[torch.nn.Parameter]],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._loss = loss
        self._parameters = parameters
        self._context = context
        self._held: tuple[list[Tensor], Tensor, _Piece] | None = None
        self._done: list[RolloutBatch] = []
        self._told = False
        self.splits = 0

    def begin_update(self) -> None:
        """Forgets the last update's micro-batches."""
        self._held, self._done = None, []

    def forward(self, batch: RolloutBatch) -> Tensor:
        """Runs a micro-batch forward.

        Returns:
            A leaf with the value of the loss, to which a backward pass gives the factor that
            :meth:`backward` needs; 0 where the loss has to be made in parts.
        """
        graph = self._attempt(batch, report=True)
        if graph:
            stand_in = graph[0].detach().clone().requires_grad_()
        else:
            stand_in = torch.zeros((), device=next(self._parameters()).device, requires_grad=True)
        self._held = graph, stand_in, _Piece(batch, reported=bool(graph))
        return stand_in

    def backward(self) -> None:
        """Adds the micro-batch's gradient, times the gradient of its stand-in, to the parameters'.

        Raises:
            PolicyFault: Not even a single row fits.
        """
        assert self._held is not None, "a forward pass comes first"
        graph, stand_in, piece = self._held
        self._held = None
        factor = stand_in.grad
        assert factor is not None, "the stand-in's gradient comes first"
        waiting = [piece] if graph else self._halved(piece)
        while waiting:
            piece = waiting.pop(0)
            if not graph:
                with self._context():
                    graph = self._attempt(piece.batch, report=not piece.reported)
                piece.reported = piece.reported or bool(graph)
            forward_fits = bool(graph)
            if forward_fits and self._descend(graph, factor):
                self._done.append(piece.batch)
                continue
            waiting = [*self._halved(piece), *waiting]
            if forward_fits:
                # Some parameters may have their gradient of these rows and others not: all are made anew.
                for parameter in self._parameters():
                    parameter.grad = None
                waiting = [*(_Piece(batch, reported=True) for batch in self._done), *waiting]
                self._done = []

    def _attempt(self, batch: RolloutBatch, *, report: bool) -> list[Tensor]:
        """The loss of some rows, alone in a list; an empty one if memory does not suffice."""
        try:
            return [self._loss(batch, report)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        _free()
        return []

    def _descend(self, graph: list[Tensor], factor: Tensor) -> bool:
        """Runs the loss in the list backward; whether memory sufficed.

        It is taken out of the list, so that nobody holds its graph when the attempt has failed.
        """
        try:
            graph.pop().backward(factor)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return True
        _free()
        return False

    def _halved(self, piece: _Piece) -> list[_Piece]:
        parts = halves(piece.batch)
        if parts is None:
            raise PolicyFault(
                f"iteration {piece.batch.iteration}: a single row of {_width(piece.batch)} tokens does not "
                "fit in memory during an update; lower sampling.max_context, set "
                "policy.gradient_checkpointing=true, or use a narrower policy.dtype or a smaller model"
            )
        self.splits += 1
        if not self._told:
            self._told = True
            warn(
                "memory did not suffice for a micro-batch, so it is cut into smaller parts with the same "
                "gradient; raise batch.micro_batches to save the time of the failed attempts",
            )
        return [_Piece(part, piece.reported) for part in parts]


def halves(batch: RolloutBatch) -> tuple[RolloutBatch, RolloutBatch] | None:
    """A micro-batch as two with about half of the rows each; None for a single row."""
    policy, questions = _length(batch.policy), _length(batch.questions)
    if policy + questions < 2:
        return None
    if policy == 1 and questions == 1:
        return replace(batch, questions=None), replace(batch, policy=None)
    parts = [
        replace(batch, policy=_rows(batch.policy, policy_rows), questions=_rows(batch.questions, asked))
        for policy_rows, asked in (
            (slice(0, policy // 2), slice(0, (questions + 1) // 2)),
            (slice(policy // 2, policy), slice((questions + 1) // 2, questions)),
        )
    ]
    return parts[0], parts[1]


def _length(rows: RowBatch | None) -> int:
    return 0 if rows is None else len(rows.token_ids)


def _width(batch: RolloutBatch) -> int:
    return max(rows.token_ids.shape[1] for rows in (batch.policy, batch.questions) if rows is not None)


def _rows(rows: RowBatch | None, chosen: slice) -> RowBatch | None:
    """Some of the rows, as wide as before; None without any."""
    if rows is None or chosen.start == chosen.stop:
        return None
    tensors = {f.name: getattr(rows, f.name) for f in fields(rows)}
    cut: dict[str, Any] = {n: v[chosen] for n, v in tensors.items() if isinstance(v, Tensor)}
    marks = {name: mark[chosen] for name, mark in rows.marks.items()}
    return replace(rows, **cut, turns=_turns(rows.turns, chosen), marks=marks)


def _turns(turns: TurnBatch | None, chosen: slice) -> TurnBatch | None:
    """The turns of some rows, which are counted anew."""
    if turns is None:
        return None
    mine = (turns.rows >= chosen.start) & (turns.rows < chosen.stop)
    if not bool(mine.any()):
        return None
    cut = {f.name: getattr(turns, f.name)[mine] for f in fields(turns)}
    return TurnBatch(**(cut | {"rows": cut["rows"] - chosen.start}))


def _free() -> None:
    """Gives back what the failed attempt held: young cycles (its traceback) and the allocator's stock."""
    gc.collect(1)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
