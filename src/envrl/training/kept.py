"""Which weights a checkpoint holds, and how they get back to where they were trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from envrl.errors import DataFault

Trained = Mapping[str, torch.nn.Parameter]
"""Trained parameters by their names in the module."""


def kept_weights(state: Mapping[str, Tensor], trained: Trained) -> dict[str, Tensor]:
    """The trained ones of a module's weights; the frozen base comes from its source."""
    return {name: weight for name, weight in state.items() if name in trained}


def joined_weights(weights: Mapping[str, Tensor], *, writes: bool) -> dict[str, Tensor]:
    """Weights whose pieces stand on several processes, whole; all processes call it.

    Args:
        weights: This process's pieces.
        writes: This process keeps the result; the others get nothing.
    """
    # Torch's distributed modules take more than a second to import.
    from envrl.policy.pieces import joined

    everything = ((name, joined(weight)) for name, weight in weights.items())
    return {name: whole for name, whole in everything if writes}


def check_weights(weights: Mapping[str, Tensor], trained: Trained) -> None:
    """Refuses weights of another module.

    Raises:
        DataFault: They are not those that are trained here.
    """
    if different := sorted(trained.keys() ^ weights.keys()):
        raise DataFault(
            f"the checkpoint holds other trained weights than the run ({different[0]} is only in one of "
            "them); go on with the configuration it was begun with, or train the run anew"
        )


def cut_weights(weights: Mapping[str, Tensor], trained: Trained) -> dict[str, Tensor]:
    """This process's pieces of whole weights, where its own are pieces."""
    from envrl.policy.pieces import cut_like

    return {name: cut_like(weight, trained[name]) for name, weight in weights.items()}
