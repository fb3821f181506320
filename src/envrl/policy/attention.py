"""Attention over tokens of many rows that stand in one flat sequence, without filler.

All of a model but attention works on single tokens, and needs to know nothing of rows. :func:`attend` lets
every token look at the tokens of its own row: rows of about the same shape are computed in one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from envrl.errors import PolicyFault

PACKED = "envrl_packed"
"""Name under which transformers knows :func:`attend`."""

_FILL = 0.8
"""Rows share an attention call if the shorter fills at least this share of the longer."""

_FULL, _SLIDING = "full_attention", "sliding_attention"


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

    @staticmethod
    def of(members: Sequence[tuple[int, int]], sizes: Sequence[int], device: torch.device) -> Bucket:
        """Of rows and the first token that is computed of each, either all 0 or none.

        Args:
            members: Row and first token computed.
            sizes: Tokens of every row, those of no bucket too.
            device: Where the mask is needed.
        """
        asked = max(sizes[row] - start for row, start in members)
        seen = max(sizes[row] for row, _ in members)
        mask = None
        if members[0][1] > 0:
            starts = torch.tensor([start for _, start in members])
            # Filler may look at anything: a row of a mask without a true entry gives NaN.
            last = starts[:, None] + torch.arange(asked)
            mask = (torch.arange(seen) <= last[:, :, None])[:, None].to(device)
        return Bucket(len(members), asked, seen, mask)


def bucketed(computed: Sequence[tuple[int, int]], sizes: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Rows of about the same shape, those that are computed from their first token on apart.

    Args:
        computed: Row and first token computed.
        sizes: Tokens of every row.
    """
    for shares in (False, True):
        rows = [(row, start) for row, start in computed if (start > 0) == shares]
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


@runtime_checkable
class FlatLayout(Protocol):
    """Where the tokens of rows stand, as :func:`attend` needs to know it.

    Attributes:
        buckets: How attention is computed.
        queries: Places in the flat sequence of the queries of all buckets, one after the other, with filler.
        answers: Place of every token among ``queries``.
        layers: Attention layers that have used it: a model that knows nothing of it would compute nonsense.
    """

    buckets: tuple[Bucket, ...]
    queries: Int[Tensor, " asked"]
    answers: Int[Tensor, " tokens"]
    layers: int

    def seen(self, states: Tensor) -> Sequence[Tensor]:
        """Keys or values that each bucket's rows look at, ``[rows, key heads, seen, head_dim]``."""
        ...


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: FlatLayout | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a flat sequence, in the form transformers asks for; of anything else that of its ``sdpa``.

    Args:
        module: Attention layer.
        query: ``[1, heads, tokens, head_dim]``.
        key: As the layout's ``seen`` takes it.
        value: As the layout's ``seen`` takes it.
        attention_mask: Not looked at for a flat sequence.
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
    q = cast(Tensor, _Queries.apply(by_token(query), packed.queries, packed.answers))
    parts = q.split([b.rows * b.asked for b in packed.buckets])
    results = []
    for bucket, asked, seen, told in zip(
        packed.buckets, parts, packed.seen(key), packed.seen(value), strict=True
    ):
        # On a GPU no fast kernel takes both a mask and fewer key heads than query heads.
        grouped = repeats > 1 and (bucket.mask is None or query.device.type == "cpu")
        out = scaled_dot_product_attention(
            by_head(asked, bucket.rows, size),
            _repeated(seen, 1 if grouped else repeats),
            _repeated(told, 1 if grouped else repeats),
            bucket.mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=bucket.mask is None,
            enable_gqa=grouped,
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


def by_token(heads: Tensor) -> Tensor:
    """``[tokens, heads · head_dim]`` of ``[1, heads, tokens, head_dim]``: a token's numbers lie together."""
    return heads[0].transpose(0, 1).flatten(1)


def by_head(tokens: Tensor, rows: int, size: int) -> Tensor:
    """``[rows, heads, width, head_dim]`` of ``[rows · width, heads · head_dim]``."""
    return tokens.view(rows, -1, tokens.shape[1] // size, size).transpose(1, 2)


def _repeated(heads: Tensor, repeats: int) -> Tensor:
    """Every key head as often as there are query heads that use it."""
    if repeats == 1:
        return heads
    rows, number, width, size = heads.shape
    return heads[:, :, None].expand(rows, number, repeats, width, size).reshape(rows, -1, width, size)


@dataclass(frozen=True)
class Reach:
    """How far back the layers of a model look.

    Attributes:
        window: Tokens that a layer with a window looks at, the asking one among them; None: no layer has one.
        mixed: Layers are of several kinds, and the model takes a mask for each.
    """

    window: int | None
    mixed: bool

    @staticmethod
    def of(model: PreTrainedModel) -> Reach:
        """As the model's configuration says.

        Raises:
            PolicyFault: There are layers that neither look at all tokens before nor through a window.
        """
        config = model.config.get_text_config()
        kinds = _layer_kinds(model)
        other = sorted(kinds - {_FULL, _SLIDING})
        if other:
            raise PolicyFault(
                f"policy.model '{config.name_or_path or type(model).__name__}' has layers of the kind "
                f"{other[0]}, and the sampler knows {_FULL} and {_SLIDING} only; use another model, or draw "
                "on a server with sampling.server.url"
            )
        window = int(config.sliding_window) if _SLIDING in kinds else None
        return Reach(window, getattr(config, "layer_types", None) is not None)

    def masks(self, mask: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """What the model takes as its attention mask.

        Args:
            mask: The causal one, ``[rows, 1, width, visible]``.
            positions: Of the asking tokens, ``[rows, width]``.
        """
        if self.window is None:
            return mask
        visible = mask.shape[-1]
        keys = torch.arange(visible, device=mask.device)
        # Filler far behind the last key has to see something: a row without a true entry gives NaN.
        last = positions.clamp(max=visible - 1)[:, None, :, None]
        near = mask & (keys > last - self.window)
        return {_FULL: mask, _SLIDING: near} if self.mixed else near


def _layer_kinds(model: PreTrainedModel) -> set[str]:
    """Names of transformers for what the model's layers do with the tokens before."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds)
    if getattr(model, "_is_stateful", False):
        return {"recurrent"}
    if getattr(config, "attention_chunk_size", None) is not None:
        return {"chunked_attention"}
    return {_FULL if getattr(config, "sliding_window", None) is None else _SLIDING}


def attends_to_all(model: PreTrainedModel) -> bool:
    """Whether every layer looks at all tokens before: packed rows know no windows."""
    return _layer_kinds(model) == {_FULL}


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)
