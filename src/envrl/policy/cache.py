"""A preallocated key-value cache whose rows have different lengths.

Rows are written at their own positions, so nothing is ever padded on the left, copied on growth or
re-padded when a row drops out. It speaks the one method of a transformers cache that decoder layers
call (``update``); positions and the attention mask are passed to the model explicitly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from envrl.policy.blocks import Blocks, lay_out

_GROWTH = 128


class RaggedCache:
    """Keys and values of ``rows`` sequences, each ``lengths[row]`` tokens long.

    Use: :meth:`plan` the next block of tokens, run the model with this as ``past_key_values`` and the
    returned positions and mask, then :meth:`commit`. With :meth:`plan_blocks` the same without filler.

    Args:
        rows: Number of sequences.
        device: Where the lengths (and the keys and values) live.
    """

    def __init__(self, rows: int, device: torch.device | str = "cpu") -> None:
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        # Row and position of what is written next, in the form in which it comes from a layer.
        self._places: tuple[Tensor, Tensor] = (self.lengths, self.lengths)
        self._needed = self._visible = 0

    def plan(
        self, counts: Int[Tensor, " rows"], width: int
    ) -> tuple[Int[Tensor, "rows width"], Bool[Tensor, "rows 1 width visible"]]:
        """Positions and attention mask for the next ``width`` tokens of each row.

        Row ``i`` has ``counts[i] <= width`` real tokens, the rest is filler on the right: filler
        writes behind the row's end, where the next block overwrites it and no query looks.
        """
        device = self.lengths.device
        positions = self.lengths[:, None] + torch.arange(width, device=device)
        visible = int((self.lengths + counts).max())
        keys = torch.arange(visible, device=device)
        mask = keys[None, None, None, :] <= positions[:, None, :, None]
        rows = torch.arange(len(self.lengths), device=device)
        self._expect((rows[:, None], positions), visible)
        return positions, mask

    def plan_blocks(self, rows: Sequence[int], blocks: Sequence[Sequence[int]]) -> Blocks:
        """Layout of the next tokens of some rows in one flat sequence; see :meth:`commit`."""
        layout = lay_out(rows, blocks, self.lengths.tolist(), self.lengths.device)
        self._expect((layout.rows, layout.positions), max(bucket.seen for bucket in layout.buckets))
        return layout

    def commit(self, counts: Int[Tensor, " rows"]) -> None:
        """The planned block was run: every row grows by its number of real tokens."""
        self.lengths = self.lengths + counts

    def _expect(self, places: tuple[Tensor, Tensor], visible: int) -> None:
        self._places, self._visible = places, visible
        self._needed = int(places[1].max()) + 1
        self._reserve(self._needed)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Writes one layer's block at the planned positions; returns all that is visible to it.

        Args:
            key_states: ``[rows, heads, width, head_dim]``, with 1 for ``rows`` if it is one flat sequence.
            value_states: The same.
            layer_idx: Decoder layer.

        Returns:
            Keys and values, ``[rows, heads, visible, head_dim]``.
        """
        if layer_idx not in self._keys:
            _rows, heads, _w, head_dim = key_states.shape
            rows, capacity = len(self.lengths), self._capacity(self._needed)
            # [rows, position, heads, head_dim]: one index pair addresses a token's whole entry.
            self._keys[layer_idx] = key_states.new_zeros(rows, capacity, heads, head_dim)
            self._values[layer_idx] = value_states.new_zeros(rows, capacity, heads, value_states.shape[-1])
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._places] = key_states.transpose(1, 2)
        values[self._places] = value_states.transpose(1, 2)
        return (
            keys[:, : self._visible].transpose(1, 2),
            values[:, : self._visible].transpose(1, 2),
        )

    def keep(self, rows: Sequence[int]) -> None:
        """Drops every row that is not listed; the kept ones take the order of the list."""
        index = torch.as_tensor(list(rows), dtype=torch.long, device=self.lengths.device)
        self.lengths = self.lengths[index]
        for store in (self._keys, self._values):
            for layer, tensor in store.items():
                store[layer] = tensor[index]

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Makes rows equal to others, of which none is a target."""
        device = self.lengths.device
        origin, index = (torch.tensor(list(rows), device=device) for rows in (sources, targets))
        used = int(self.lengths[origin].max())
        self.lengths[index] = self.lengths[origin]
        for store in (self._keys, self._values):
            for tensor in store.values():
                tensor[index, :used] = tensor[origin, :used]

    def cut(self, lengths: Int[Tensor, " rows"]) -> None:
        """Forgets what stands behind the first ``lengths`` tokens of each row."""
        self.lengths = torch.minimum(self.lengths, lengths)

    def part(self, rows: Int[Tensor, " some"]) -> RaggedCache:
        """A cache of some of the rows, to go on with those alone; see :meth:`put_back`."""
        part = RaggedCache(len(rows), self.lengths.device)
        part.lengths = self.lengths[rows]
        used = int(self.lengths.max())
        part._keys = {layer: keys[rows, :used] for layer, keys in self._keys.items()}
        part._values = {layer: values[rows, :used] for layer, values in self._values.items()}
        return part

    def put_back(self, rows: Int[Tensor, " some"], part: RaggedCache) -> None:
        """Takes over what became of some rows in a cache of their own."""
        self.lengths[rows] = part.lengths
        used = int(part.lengths.max())
        self._reserve(used)
        for store, grown in ((self._keys, part._keys), (self._values, part._values)):
            for layer, tensor in grown.items():
                if layer not in store:
                    store[layer] = tensor.new_zeros(
                        len(self.lengths), self._capacity(used), *tensor.shape[2:]
                    )
                store[layer][rows, :used] = tensor[:, :used]

    @staticmethod
    def _capacity(positions: int) -> int:
        return -(-positions // _GROWTH) * _GROWTH

    def _reserve(self, positions: int) -> None:
        for store in (self._keys, self._values):
            for layer, tensor in store.items():
                if tensor.shape[1] < positions:
                    # Doubling keeps the copying linear in the final length.
                    grown = self._capacity(max(positions, 2 * tensor.shape[1]))
                    bigger = tensor.new_zeros(tensor.shape[0], grown, *tensor.shape[2:])
                    bigger[:, : tensor.shape[1]] = tensor
                    store[layer] = bigger
