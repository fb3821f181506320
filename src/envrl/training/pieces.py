"""Training a policy whose layers are in pieces: its passes and its optimiser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from envrl.errors import PolicyFault
from envrl.policy.batch import RolloutBatch
from envrl.policy.memory import is_out_of_memory
from envrl.policy.parts import local
from envrl.policy.pieces import as_piece, cut_like, joined
from envrl.policy.ranks import GONE, ProcessGone

_BROKEN = re.compile(r"gloo|nccl|connection (closed|reset|refused)", re.IGNORECASE)
"""What an exchange of layers says when another process has ended."""


class EqualPasses:
    """Runs an update's micro-batches forward and backward, one pass each.

    Takes the place of :class:`envrl.training.memory.FittingPasses` where all processes must make the same
    passes: one that cut its micro-batch into smaller parts would wait for the others without end.

    Args:
        loss: As there.
    """

    splits = 0

    def __init__(self, loss: Callable[[RolloutBatch, bool], Tensor]) -> None:
        self._loss = loss
        self._held: tuple[Tensor, Tensor] | None = None

    def begin_update(self) -> None:
        """Forgets the last micro-batch."""
        self._held = None

    def forward(self, batch: RolloutBatch) -> Tensor:
        """Runs a micro-batch forward; a stand-in for its loss.

        Raises:
            PolicyFault: It does not fit in memory.
            ProcessGone: The connection to another process broke.
        """
        loss: Tensor = _fitting(lambda: self._loss(batch, True))
        stand_in = loss.detach().clone().requires_grad_()
        self._held = loss, stand_in
        return stand_in

    def backward(self) -> None:
        """Runs it backward, times the gradient of its stand-in.

        Raises:
            PolicyFault: It does not fit in memory.
            ProcessGone: The connection to another process broke.
        """
        assert self._held is not None, "a forward pass comes first"
        (loss, stand_in), self._held = self._held, None
        _fitting(lambda: loss.backward(stand_in.grad))


class PiecesAdamW(torch.optim.Optimizer):
    """AdamW over weights of which some are pieces.

    A process keeps the two moments of its pieces and of what is whole everywhere, and updates these. A
    checkpoint holds the state of all, as an ordinary AdamW would write it.

    Args:
        groups: Parameters, or groups of them with options of their own.
        options: Of AdamW.
    """

    def __init__(self, groups: Iterable[Any], **options: Any) -> None:
        super().__init__(groups, dict(options))
        self._parameters = [p for group in self.param_groups for p in group["params"]]
        # An optimiser would be told of pieces and other tensors at once, which torch's can't work on.
        self._locals = {p: nn.Parameter(local(p.detach())) for p in self._parameters}
        self._inner = torch.optim.AdamW(
            [{**group, "params": [self._locals[p] for p in group["params"]]} for group in self.param_groups]
        )
        self._gathered: dict[str, Any] | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates this process's pieces and what is whole."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for parameter, own in self._locals.items():
            own.data = local(parameter.detach())
            own.grad = None if parameter.grad is None else local(parameter.grad)
        self._inner.step()
        for own in self._locals.values():
            # Held here, gradients would take their memory until the next step.
            own.grad = None
        return loss

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Gathers the whole state, for a checkpoint; all processes call it.

        Raises:
            ProcessGone: The connection to another process broke.
        """
        found, mine = self._inner.state_dict(), dist.get_rank() == to
        gathered: dict[int, dict[str, Tensor]] = {}
        for number, parameter in enumerate(self._parameters):
            for name, value in found["state"].get(number, {}).items():
                whole = value if name == "step" else joined(as_piece(value, parameter))
                if mine:
                    gathered.setdefault(number, {})[name] = whole
        self._gathered = {**found, "state": gathered}

    def state_dict(self) -> dict[str, Any]:
        """What was gathered last; it is not kept."""
        assert self._gathered is not None, "consolidate_state_dict comes first"
        gathered, self._gathered = self._gathered, None
        return gathered

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes from a whole state what belongs to this process's pieces."""
        state = dict(state_dict["state"])
        for number, parameter in enumerate(self._parameters):
            if kept := state.get(number):
                state[number] = {
                    name: value if name == "step" else local(cut_like(value, parameter))
                    for name, value in kept.items()
                }
        self._inner.load_state_dict({**state_dict, "state": state})


def _fitting(work: Callable[[], Any]) -> Any:
    """Work that exchanges layers with the other processes."""
    try:
        return work()
    except Exception as error:
        if is_out_of_memory(error):
            raise PolicyFault(
                "a micro-batch does not fit in memory, and train.strategy=fsdp can't cut it into smaller "
                "parts because all processes compute together; raise batch.micro_batches, or set "
                "policy.gradient_checkpointing=true"
            ) from error
        if isinstance(error, RuntimeError) and _BROKEN.search(str(error)):
            raise ProcessGone(GONE) from error
        raise
