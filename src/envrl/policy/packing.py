"""Rows of different lengths in one forward pass, without padding, and what they begin with alike only once.

Rows of an update repeat each other: the episodes of a group begin with the same prompt, and in the
``steps`` layout so do the steps of an episode. Under causal attention a token's hidden state depends on
nothing but the tokens before it, so one computation serves every row that begins that way, and its gradient
is the sum over these rows: the same loss, from fewer tokens. The distinct tokens stand in one flat sequence
(:mod:`envrl.policy.attention`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from envrl.policy.attention import Bucket, bucketed, by_head, by_token

Worth = Callable[[int, int], bool]
"""Whether to compute the first ``shared`` tokens of a row of ``length`` tokens together with another row."""


@dataclass
class PackedRows:
    """Where the tokens of some rows stand in one flat sequence.

    Attributes:
        token_ids: The distinct tokens.
        positions: Place of each in its row.
        places: For every token of every row its place in the flat sequence; 0 for filler.
        buckets: How attention is computed.
        queries: Places in the flat sequence of the queries of all buckets, one after the other, with filler.
        keys: The same of their keys.
        answers: Place of every token among ``queries``.
        layers: Attention layers that have used it: a model that knows nothing of it would compute nonsense.
    """

    token_ids: Int[Tensor, "1 tokens"]
    positions: Int[Tensor, "1 tokens"]
    places: Int[Tensor, "rows width"]
    buckets: tuple[Bucket, ...]
    queries: Int[Tensor, " asked"]
    keys: Int[Tensor, " seen"]
    answers: Int[Tensor, " tokens"]
    layers: int = field(default=0, compare=False)

    def seen(self, states: Tensor) -> list[Tensor]:
        """See :class:`~envrl.policy.attention.FlatLayout`; ``states`` is ``[1, heads, tokens, head_dim]``."""
        parts = by_token(states).index_select(0, self.keys).split([b.rows * b.seen for b in self.buckets])
        return [by_head(part, b.rows, states.shape[3]) for part, b in zip(parts, self.buckets, strict=True)]


def pack(token_ids: Int[Tensor, "rows width"], lengths: Int[Tensor, " rows"], worth: Worth) -> PackedRows:
    """Finds what rows have in common, and lays them out.

    Args:
        token_ids: Rows padded on the right, at least one of them with a token.
        lengths: Tokens of each row.
        worth: Whether sharing a beginning saves more than it costs: the attention of a row's remainder then
            needs a mask and can't skip what lies above the diagonal.
    """
    device = token_ids.device
    ids = token_ids.cpu().numpy()
    sizes = lengths.cpu().tolist()
    places = np.zeros(ids.shape, dtype=np.int64)
    owned = _lay_out(ids, sizes, places, worth)
    flat = np.concatenate([ids[row, start : sizes[row]] for row, start in owned])
    positions = np.concatenate([np.arange(start, sizes[row]) for row, start in owned])
    made = [_bucket(members, sizes, places, device) for members in bucketed(owned, sizes)]
    queries = np.concatenate([asked.ravel() for _, asked, _ in made])
    keys = np.concatenate([seen.ravel() for _, _, seen in made])
    real = np.flatnonzero(queries >= 0)
    answers = np.zeros(len(flat), dtype=np.int64)
    answers[queries[real]] = real

    def tensor(array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return PackedRows(
        tensor(flat)[None],
        tensor(positions)[None],
        tensor(places),
        tuple(bucket for bucket, _, _ in made),
        tensor(queries.clip(0)),
        tensor(keys),
        tensor(answers),
    )


def _lay_out(
    ids: NDArray[np.int64], sizes: Sequence[int], places: NDArray[np.int64], worth: Worth
) -> list[tuple[int, int]]:
    """Rows in order of the flat sequence, each with the first token that it does not share; fills ``places``.

    In lexicographic order, a row has its longest common beginning with the row before it.
    """
    # As big-endian bytes, numbers >= 0 are in the order of the numbers.
    order = sorted(
        (row for row, n in enumerate(sizes) if n > 0),
        key=lambda r: ids[r, : sizes[r]].astype(">i8").tobytes(),
    )
    owned: list[tuple[int, int]] = []
    used, before = 0, -1
    for row in order:
        n = sizes[row]
        shared = 0 if before < 0 else _common(ids[before, : sizes[before]], ids[row, :n])
        # A row that is all in another one costs nothing; else some of it must be worth sharing.
        if shared < n and not (shared > 0 and worth(shared, n)):
            shared = 0
        places[row, :shared] = places[before, :shared]
        places[row, shared:n] = np.arange(used, used + n - shared)
        used += n - shared
        before = row
        if shared < n:
            owned.append((row, shared))
    return owned


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Tokens at the beginning that are the same."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _bucket(
    members: Sequence[tuple[int, int]], sizes: Sequence[int], places: NDArray[np.int64], device: torch.device
) -> tuple[Bucket, NDArray[np.int64], NDArray[np.int64]]:
    """A bucket, which token each of its queries is (-1: filler), and which each of its keys."""
    bucket = Bucket.of(members, sizes, device)
    queries = np.full((bucket.rows, bucket.asked), -1, dtype=np.int64)
    keys = np.zeros((bucket.rows, bucket.seen), dtype=np.int64)
    for i, (row, start) in enumerate(members):
        n = sizes[row]
        queries[i, : n - start] = places[row, start:n]
        keys[i, :n] = places[row, :n]
    return bucket, queries, keys
