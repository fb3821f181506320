"""Copies of a model beside the trained one: to sample from, and to refer to."""

from __future__ import annotations

import copy

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

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
            target = copied.get_submodule(name)
            base = module.get_base_layer().weight
            target.weight.copy_(base + module.get_delta_weight(_ADAPTER))
