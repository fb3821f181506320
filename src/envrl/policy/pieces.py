"""A policy whose layers are cut into pieces, one on each process of a run (FSDP, arXiv 2304.11277).

Torch's ``fully_shard`` does the cutting. In updates a layer is put together on every process just before
it computes and given up again after it, so all processes must make the same passes. Playing can't be like
that, because every process plays games of its own: for as long as it takes, the layers stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from envrl.errors import PolicyFault
from envrl.policy.copies import adapted_weight
from envrl.policy.parts import is_piece
from envrl.policy.ranks import together


class Pieces:
    """Cuts the layers of models and puts them together.

    What is cut are the blocks of the decoder, the greater part of any language model. Embeddings, head and
    final norm are whole everywhere, and so are adapters: they are small, and trained as without pieces.

    Args:
        policy: The model that is trained.
        others: Frozen models of the same kind (the reference of a KL term). They are moved to the device one
            after the other, so that it holds one of them whole at a time.
        device: Where they compute; the policy is there already.

    Raises:
        PolicyFault: A model does not say which of its modules are its blocks.
    """

    def __init__(
        self, policy: PreTrainedModel, others: Sequence[PreTrainedModel], device: torch.device
    ) -> None:
        self._decoder, self._blocks = _cut(policy, device)
        self._decoders = [self._decoder, *(_cut(other.to(device), device)[0] for other in others)]
        with torch.no_grad():
            for decoder in self._decoders:
                # Torch prepares itself in the first pass, which a process without games would not make.
                decoder(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
        # An adapter beside a layer that is not cut would be added to it for good.
        self._mergeable = [
            m for m in _adapted(policy) if is_piece(getattr(m.get_base_layer(), adapted_weight(m)))
        ]
        self._open = False

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Puts the trained model's layers together; all processes enter, then each computes as it likes.

        What is written into frozen weights meanwhile is forgotten at the end.

        Raises:
            ProcessGone: The connection to another process broke.
        """
        if self._open:
            yield
            return
        self._decoder.set_reshard_after_forward(False)
        together(self._unshard)
        self._open = True
        try:
            yield
        finally:
            self._open = False
            for module in self._mergeable:
                module.merged_adapters.clear()
            for block in self._blocks:
                block.reshard()
            self._decoder.set_reshard_after_forward(True)
            # Torch gathers ahead in the order of the passes before. Those in here were this process's own,
            # and another process would gather in another order, and wait without end.
            for decoder in self._decoders:
                decoder.reset_iter_state()

    def merge(self) -> None:
        """Adds the adapters to the base for as long as the layers are whole: sampling is faster then."""
        assert self._open, "what is added now would be added for good"
        for module in self._mergeable:
            if not module.merged:
                module.merge()

    def _unshard(self) -> None:
        for block in self._blocks:
            block.unshard()


def joined(tensor: Tensor) -> Tensor:
    """The whole of a tensor, in the machine's memory; all processes call it.

    Raises:
        ProcessGone: The connection to another process broke.
    """
    if isinstance(tensor, DTensor):
        piece, whole = tensor.detach(), []
        together(lambda: whole.append(cast(Any, piece).full_tensor()))
        tensor = whole[0]
    return tensor.detach().cpu()


def cut_like(whole: Tensor, example: Tensor) -> Tensor:
    """What of a whole tensor belongs on this process, if that of another tensor is a piece."""
    if not isinstance(example, DTensor):
        return whole
    mesh = example.device_mesh
    there = whole.to(device=example.device, dtype=example.dtype)
    return distribute_tensor(there, mesh, example.placements, src_data_rank=None)


def as_piece(part: Tensor, example: Tensor) -> Tensor:
    """A tensor of pieces, of which this is the one here, with the shape of another one."""
    if not isinstance(example, DTensor):
        return part
    return DTensor.from_local(
        part,
        example.device_mesh,
        example.placements,
        run_check=False,
        shape=example.shape,
        stride=example.stride(),
    )


def _cut(model: PreTrainedModel, device: torch.device) -> tuple[Any, list[Any]]:
    """Cuts the blocks of a model; its decoder and them."""
    decoder = model.get_decoder()
    kinds = set(model._no_split_modules or ())
    blocks = [module for module in decoder.modules() if type(module).__name__ in kinds]
    if not blocks:
        raise PolicyFault(
            f"train.strategy is fsdp, but {type(model).__name__} does not say which of its layers are to be "
            "divided; use train.strategy=zero"
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    adapters = {p for module in _adapted(model) for p in _own(module)}
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=adapters)
    cut = {p for block in blocks for p in block.parameters()}
    # Without a weight of its own: what runs it has its blocks gather ahead of time.
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - cut | adapters)
    return cast(FSDPModule, decoder), blocks


def _adapted(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _own(module: LoraLayer) -> Iterator[nn.Parameter]:
    """Parameters of an adapter, without those of the layer that it stands beside."""
    base = {id(p) for p in module.get_base_layer().parameters()}
    return (p for p in cast(nn.Module, module).parameters() if id(p) not in base)
