"""Copies of a model beside the trained one: to sample from, and to refer to."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from transformers import PreTrainedModel

from envrl.errors import PolicyFault
from envrl.policy.settings import PolicySettings

_ADAPTER = "default"


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that is never trained, without dropout."""
    copied = copy.deepcopy(model).eval()
    copied.requires_grad_(False)
    return copied


def moved(copied: PreTrainedModel, trained: nn.Module) -> PreTrainedModel:
    """The copy, on the device of the trained model: what moves that one doesn't see the copies."""
    device = next(trained.parameters()).device
    if next(copied.parameters()).device != device:
        copied.to(device)
    return copied


@torch.no_grad()
def merge_into(copied: PreTrainedModel, trained: PreTrainedModel) -> None:
    """Writes base weight + adapter update of every adapted layer into the sampling copy."""
    for name, module in trained.named_modules():
        if isinstance(module, LoraLayer):
            # Experts have several weights and an adapter for each, one around the other.
            target = copied.get_submodule(name.replace(".base_layer", ""))
            weight = adapted_weight(module)
            getattr(target, weight).copy_(
                getattr(module.get_base_layer(), weight) + module.get_delta_weight(_ADAPTER)
            )


def adapted_weight(module: LoraLayer) -> str:
    """Name of the weight, in the layer that an adapter stands beside, to which it adds."""
    return module.parameter_name if isinstance(module, ParamWrapper) else "weight"


def refuse_shared(model: nn.Module, settings: PolicySettings) -> None:
    """Refuses adapters on a weight that another layer uses too, as an embedding and a head that are tied.

    An adapter stands beside one of the two. Merged into the weight, it would be in both.

    Raises:
        PolicyFault: There are such adapters.
    """
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if any(uses[id(weight)] > 1 for weight in module.get_base_layer().parameters()):
            raise PolicyFault(
                f"policy.lora.targets '{settings.lora.targets}' puts an adapter on {name}, whose weight "
                f"another layer of '{settings.model}' uses too (tie_word_embeddings), so it can't be merged; "
                "leave that layer out"
            )
