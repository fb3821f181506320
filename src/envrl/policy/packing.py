"""Rows of different lengths in one forward pass, without padding, and what they begin with alike only once.

Rows of an update repeat each other: the episodes of a group begin with the same prompt, and in the
``steps`` layout so do the steps of an episode. Under causal attention a token's hidden state depends on
nothing but the tokens before it, so one computation serves every row that begins that way, and its gradient
is the sum over these rows: the same loss, from fewer tokens.

The distinct tokens stand in one flat sequence. All of a model but attention works on single tokens and needs
to know nothing of this; :func:`attend` lets every token look at the tokens of its own row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

PACKED = "envrl_packed"
"""Name under which transformers knows :func:`attend`."""

_FILL = 0.8
"""Rows share an attention call if the shorter fills at least this share of the longer."""

Worth = Callable[[int, int], bool]
"""Whether to compute the first ``shared`` tokens of a row of ``length`` tokens together with another row."""


@dataclass(frozen=True)
class Bucket:
    """Rows whose attention is computed in one call.

    Attributes:
        rows: Number of rows.
        asked: Most tokens that are computed for one of these rows, which are its last ones.
        seen: Most tokens of one of these rows.
        mask: What each query may look at; None where rows begin with their own first token, so that plain
            causal attention does it.
    """

    rows: int
    asked: int
    seen: int
    mask: Tensor | None


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
    made = [_bucket(members, sizes, places, device) for members in _bucketed(owned, sizes)]
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


def _bucketed(owned: Sequence[tuple[int, int]], sizes: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Rows of about the same shape, those with a shared beginning apart."""
    for shares in (False, True):
        rows = [(row, start) for row, start in owned if (start > 0) == shares]
        rows.sort(key=lambda r: (sizes[r[0]] - r[1], sizes[r[0]]), reverse=True)
        bucket: list[tuple[int, int]] = []
        asked = least = most = 0
        for row, start in rows:
            n, own = sizes[row], sizes[row] - start
            if bucket and (own < _FILL * asked or min(n, least) < _FILL * max(n, most)):
                yield bucket
                bucket = []
            # The first of a bucket has most of its own.
            asked, least, most = (asked, min(n, least), max(n, most)) if bucket else (own, n, n)
            bucket.append((row, start))
        if bucket:
            yield bucket


def _bucket(
    members: Sequence[tuple[int, int]], sizes: Sequence[int], places: NDArray[np.int64], device: torch.device
) -> tuple[Bucket, NDArray[np.int64], NDArray[np.int64]]:
    """A bucket, which token each of its queries is (-1: filler), and which each of its keys."""
    asked = max(sizes[row] - start for row, start in members)
    seen = max(sizes[row] for row, _ in members)
    queries = np.full((len(members), asked), -1, dtype=np.int64)
    keys = np.zeros((len(members), seen), dtype=np.int64)
    for i, (row, start) in enumerate(members):
        n = sizes[row]
        queries[i, : n - start] = places[row, start:n]
        keys[i, :n] = places[row, :n]
    mask = None
    if members[0][1] > 0:
        starts = torch.tensor([start for _, start in members])
        # Filler may look at anything: a row of a mask without a true entry gives NaN.
        last = starts[:, None] + torch.arange(asked)
        mask = (torch.arange(seen) <= last[:, :, None])[:, None].to(device)
    return Bucket(len(members), asked, seen, mask), queries, keys


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: PackedRows | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of packed rows, in the form transformers asks for; of anything else that of its ``sdpa``.

    Args:
        module: Attention layer.
        query: ``[1, heads, tokens, head_dim]``.
        key: ``[1, key heads, tokens, head_dim]``.
        value: ``[1, key heads, tokens, head_dim]``.
        attention_mask: Not looked at for packed rows.
        dropout: Share of attention weights that are dropped.
        scaling: Factor of the scores; None is 1/√head_dim.
        packed: Layout of the tokens; None for other calls.
        options: More that transformers hands on.

    Returns:
        ``[1, tokens, heads, head_dim]``, and no attention weights.
    """
    if packed is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    packed.layers += 1
    heads, size = query.shape[1], query.shape[3]
    repeats = heads // key.shape[1]
    # Tokens first, so that a token's numbers lie together.
    q = cast(Tensor, _Queries.apply(_by_token(query), packed.queries, packed.answers))
    k, v = (_by_token(t).index_select(0, packed.keys) for t in (key, value))
    areas = [b.rows * b.asked for b in packed.buckets], [b.rows * b.seen for b in packed.buckets]
    parts = zip(packed.buckets, q.split(areas[0]), k.split(areas[1]), v.split(areas[1]), strict=True)
    results = []
    for bucket, asked, seen, told in parts:
        out = scaled_dot_product_attention(
            _by_head(asked, bucket.rows, size),
            _repeated(_by_head(seen, bucket.rows, size), repeats),
            _repeated(_by_head(told, bucket.rows, value.shape[3]), repeats),
            bucket.mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=bucket.mask is None,
        )
        results.append(out.transpose(1, 2).reshape(bucket.rows * bucket.asked, -1))
    together = torch.cat(results).index_select(0, packed.answers)
    return together.view(1, -1, heads, value.shape[3]), None


class _Queries(torch.autograd.Function):
    """``tokens[queries]``, whose gradient is no sum, because every token asks once: ``gradient[answers]``."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, queries: Tensor, answers: Tensor) -> Tensor:
        ctx.save_for_backward(answers)
        return tokens.index_select(0, queries)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (answers,) = ctx.saved_tensors
        return gradients[0].index_select(0, answers), None, None


def _by_token(heads: Tensor) -> Tensor:
    """``[tokens, heads · head_dim]`` of ``[1, heads, tokens, head_dim]``."""
    return heads[0].transpose(0, 1).flatten(1)


def _by_head(tokens: Tensor, rows: int, size: int) -> Tensor:
    """``[rows, heads, width, head_dim]`` of ``[rows · width, heads · head_dim]``."""
    return tokens.view(rows, -1, tokens.shape[1] // size, size).transpose(1, 2)


def _repeated(heads: Tensor, repeats: int) -> Tensor:
    """Every key head as often as there are query heads that use it."""
    if repeats == 1:
        return heads
    rows, number, width, size = heads.shape
    return heads[:, :, None].expand(rows, number, repeats, width, size).reshape(rows, -1, width, size)


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)
