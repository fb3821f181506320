"""Hidden states of an update's rows, whatever form they were computed in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RowStates:
    """Hidden states of rows padded on the right.

    Attributes:
        flat: One state after the other; rows may share some.
        places: For every token its place in ``flat``; anything for filler.
    """

    flat: Float[Tensor, "tokens hidden"]
    places: Int[Tensor, "batch seq"]

    @staticmethod
    def of(hidden: Float[Tensor, "batch seq hidden"]) -> RowStates:
        """States that were computed row by row."""
        batch, seq, _ = hidden.shape
        return RowStates(
            hidden.flatten(0, 1), torch.arange(batch * seq, device=hidden.device).view(batch, seq)
        )

    def before(self, targets: Bool[Tensor, "batch places"]) -> Float[Tensor, "target hidden"]:
        """What the model knew before each target, the targets being some of the tokens after the first."""
        return self.flat.index_select(0, self.places[:, :-1][targets])

    def at(
        self, rows: Int[Tensor, " chosen"], positions: Int[Tensor, " chosen"]
    ) -> Float[Tensor, "chosen hidden"]:
        """States of single tokens."""
        return self.flat.index_select(0, self.places[rows, positions])

    def detach(self) -> RowStates:
        """The same numbers without a gradient."""
        return replace(self, flat=self.flat.detach())
