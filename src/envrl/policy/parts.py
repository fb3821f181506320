"""Tensors that may be pieces of larger ones, told apart without torch's distributed modules.

These take more than a second to import, which a run without pieces (``pieces.py``) has no use for.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor


def is_piece(tensor: Tensor) -> bool:
    """Whether other processes hold the rest of a tensor: a ``DTensor``."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's piece of a tensor, in the same memory; the tensor itself if it is no piece."""
    return cast(Tensor, cast(Any, tensor).to_local()) if is_piece(tensor) else tensor
