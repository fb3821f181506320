"""Batched sampling with a key-value cache and log-probabilities recorded as tokens are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from envrl.errors import PolicyFault
from envrl.policy.attention import PACKED, Reach
from envrl.policy.cache import RaggedCache
from envrl.policy.settings import SamplingSettings
from envrl.types import Finish

_FEWEST_ROWS = 8
"""So few rows are not thinned out: computing ended ones costs less than taking the others out."""

__all__ = ["CachedSession", "SampledTokens", "SamplerSession", "SamplingSettings"]


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One row's answer; ``logprobs`` at temperature 1, natural logarithm."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish


class SamplerSession(Protocol):
    """A set of growing token sequences that share forward passes."""

    def append(self, blocks: Sequence[Sequence[int]]) -> None:
        """Adds tokens to each row (given tokens, not sampled ones)."""
        ...

    def sample(
        self, generators: Sequence[np.random.Generator], temperature: float, max_new_tokens: int
    ) -> list[SampledTokens]:
        """Lets every row write until its end-of-turn token; what it writes is part of the row."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Drops the rows that are not listed."""
        ...

    def rewrite(self, prompts: Sequence[Sequence[int]], rows: Sequence[int] | None = None) -> None:
        """Replaces everything that stands in some rows, or in all; what stays need not be computed again."""
        ...


class CachedSession:
    """:class:`SamplerSession` over a transformers decoder with a :class:`RaggedCache`.

    Args:
        model: A causal language model, adapters merged or active.
        rows: Number of sequences.
        end_id: End-of-turn token.

    Raises:
        PolicyFault: The model has layers whose state is not the keys and values of the tokens before.
    """

    def __init__(self, model: PreTrainedModel, rows: int, end_id: int) -> None:
        self._model = model
        self._reach = Reach.of(model)
        self._decoder: nn.Module = model.get_decoder()
        head = model.get_output_embeddings()
        assert head is not None
        self._head: nn.Module = head
        self._device = next(model.parameters()).device
        self._cache = RaggedCache(rows, self._device)
        self._pending: list[list[int]] = [[] for _ in range(rows)]
        self._cached: list[list[int]] = [[] for _ in range(rows)]
        self._end_id = end_id
        self._flat = model.config._attn_implementation == PACKED
        # Four-dimensional masks are handed on as they are, so transformers makes none of its own.
        self._anything = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._device)

    def append(self, blocks: Sequence[Sequence[int]]) -> None:
        """Adds given tokens; they are run together with the next sampling."""
        for pending, block in zip(self._pending, blocks, strict=True):
            pending.extend(block)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops the rows that are not listed, cache entries included."""
        self._cache.keep(rows)
        self._pending = [self._pending[r] for r in rows]
        self._cached = [self._cached[r] for r in rows]

    def rewrite(self, prompts: Sequence[Sequence[int]], rows: Sequence[int] | None = None) -> None:
        """See :class:`SamplerSession`; keeps the cache of what a prompt and its row begin with alike."""
        lengths = self._cache.lengths.tolist()
        for row, prompt in zip(range(len(lengths)) if rows is None else rows, prompts, strict=True):
            # A row needs a token to be run, so the last one of a prompt is computed in any case.
            kept = common_prefix(self._cached[row], prompt[:-1])
            self._cached[row] = self._cached[row][:kept]
            self._pending[row] = list(prompt[kept:])
            lengths[row] = min(lengths[row], kept)
        self._cache.cut(torch.tensor(lengths, device=self._device))

    @torch.inference_mode()
    def sample(
        self, generators: Sequence[np.random.Generator], temperature: float, max_new_tokens: int
    ) -> list[SampledTokens]:
        """See :class:`SamplerSession`.

        Each row draws from its own generator (one uniform number a token), so its draws don't
        depend on which other rows are in the batch.

        Raises:
            PolicyFault: The model's scores are not numbers.
        """
        # Dropout would make sampler and trainer differ, and gradient checkpointing has no cache.
        with evaluation_mode(self._model):
            return self._sample(generators, temperature, max_new_tokens)

    def _sample(
        self, generators: Sequence[np.random.Generator], temperature: float, max_new_tokens: int
    ) -> list[SampledTokens]:
        rows = len(self._pending)
        uniforms = torch.from_numpy(np.stack([g.random(max_new_tokens) for g in generators])).to(self._device)
        tokens = torch.full((rows, max_new_tokens), self._end_id, dtype=torch.long)
        logprobs = torch.zeros(rows, max_new_tokens)
        lengths = torch.full((rows,), max_new_tokens, dtype=torch.long)
        logits = self._start()
        # Rows being computed, which of them still write, and the caches that they were taken out of.
        active, live = torch.arange(rows), torch.ones(rows, dtype=torch.bool)
        whole: list[tuple[RaggedCache, Tensor]] = []
        for position in range(max_new_tokens):
            drawn, drawn_logprobs = draw(logits, uniforms[active, position], temperature)
            writing = active[live]
            tokens[writing, position] = drawn.cpu()[live]
            logprobs[writing, position] = drawn_logprobs.cpu()[live]
            ended = live & (tokens[active, position] == self._end_id)
            lengths[active[ended]] = position + 1
            live = live & ~ended
            if position + 1 == max_new_tokens or not bool(live.any()):
                break
            if 2 * int(live.sum()) <= len(live) and len(live) > _FEWEST_ROWS:
                left = live.nonzero()[:, 0]
                whole.append((self._cache, left))
                self._cache = self._cache.part(left.to(self._device))
                active, drawn, live = active[left], drawn[left.to(self._device)], live[left]
            logits = self._advance(drawn, live)
        for cache, left in reversed(whole):
            cache.put_back(left.to(self._device), self._cache)
            self._cache = cache
        if not bool(logprobs.isfinite().all()):
            raise PolicyFault(
                "the policy's scores are not finite, so no token can be drawn; the weights have diverged: "
                "lower optim.lr, or use a wider policy.dtype"
            )
        self._hand_over(tokens, lengths)
        return [self._written(*row) for row in zip(tokens, logprobs, lengths, strict=True)]

    def _written(self, tokens: Tensor, logprobs: Tensor, length: Tensor) -> SampledTokens:
        """What one row wrote."""
        finish = Finish.END if tokens[length - 1] == self._end_id else Finish.LENGTH
        return SampledTokens(tuple(tokens[:length].tolist()), tuple(logprobs[:length].tolist()), finish)

    def _start(self) -> Float[Tensor, "rows vocab"]:
        """Runs what was given; logits after each row's last token.

        Rows that hold the same tokens are computed once, as the episodes of a group do when they begin and
        as long as they do the same.
        """
        if not all(self._pending):
            raise ValueError("every row needs at least one token before it can be sampled")
        known = [len(have) for have in self._cached]
        self._cached = [have + block for have, block in zip(self._cached, self._pending, strict=True)]
        first: dict[tuple[int, ...], int] = {}
        # The one with the least to compute serves the others.
        for row in sorted(range(len(known)), key=lambda row: -known[row]):
            first.setdefault(tuple(self._cached[row]), row)
        served = [first[tuple(content)] for content in self._cached]
        rows = [row for row, by in enumerate(served) if row == by]
        logits = self._run(rows, [self._pending[row] for row in rows])
        if len(rows) == len(served):
            return logits
        copies = [row for row, by in enumerate(served) if row != by]
        self._cache.copy([served[row] for row in copies], copies)
        place = {row: number for number, row in enumerate(rows)}
        return logits[torch.tensor([place[by] for by in served], device=self._device)]

    def _hand_over(self, tokens: Tensor, lengths: Tensor) -> None:
        # The last token a row wrote was never fed back, so it opens the row's next block.
        ends = lengths.tolist()
        self._pending = [[int(tokens[r, n - 1])] for r, n in enumerate(ends)]
        self._cached = [
            have + tokens[r, : n - 1].tolist()
            for r, (have, n) in enumerate(zip(self._cached, ends, strict=True))
        ]

    def _run(self, rows: Sequence[int], blocks: Sequence[Sequence[int]]) -> Float[Tensor, "some vocab"]:
        """Runs blocks of given tokens on some rows; logits after the last token of each."""
        counts = torch.zeros_like(self._cache.lengths)
        counts[torch.tensor(rows, device=self._device)] = torch.tensor(
            [len(block) for block in blocks], device=self._device
        )
        if self._flat:
            layout = self._cache.plan_blocks(rows, blocks)
            hidden = self._forward(layout.token_ids, layout.positions, self._anything, packed=layout)
            if layout.layers > 0:
                self._cache.commit(counts)
                return self._head(hidden[0, layout.ends])  # type: ignore[no-any-return]
            raise PolicyFault(
                "the layers of policy.model can't attend to a flat sequence; set policy.packed=false"
            )
        if len(rows) < len(counts):
            index = torch.tensor(rows, device=self._device)
            whole, self._cache = self._cache, self._cache.part(index)
            logits = self._run(range(len(rows)), blocks)
            whole.put_back(index, self._cache)
            self._cache = whole
            return logits
        width = int(counts.max())
        ids = torch.full((len(blocks), width), self._end_id, dtype=torch.long)
        for row, block in enumerate(blocks):
            ids[row, : len(block)] = torch.tensor(block, dtype=torch.long)
        positions, mask = self._cache.plan(counts, width)
        hidden = self._forward(ids.to(self._device), positions, mask)
        self._cache.commit(counts)
        return self._head(hidden[torch.arange(len(blocks), device=self._device), counts - 1])  # type: ignore[no-any-return]

    def _advance(self, drawn: Int[Tensor, " rows"], live: Tensor) -> Float[Tensor, "rows vocab"]:
        """Feeds back one drawn token per live row; ended rows compute filler and don't grow."""
        counts = live.to(self._device).long()
        positions, mask = self._cache.plan(counts, 1)
        hidden = self._forward(drawn[:, None], positions, mask)
        self._cache.commit(counts)
        return self._head(hidden[:, 0])  # type: ignore[no-any-return]

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor, **options: Any) -> Tensor:
        try:
            output = self._decoder(
                input_ids=ids,
                position_ids=positions,
                attention_mask=self._reach.masks(mask, positions),
                past_key_values=self._cache,
                use_cache=True,
                **options,
            )
        except AttributeError as error:
            if error.obj is not self._cache:
                raise
            raise PolicyFault(
                f"policy.model can't be sampled: {type(self._model).__name__} asks its cache for "
                f"'{error.name}', and the sampler's holds keys and values only; use another model, or draw "
                "on a server with sampling.server.url"
            ) from error
        return output.last_hidden_state  # type: ignore[no-any-return]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout and checkpointing; afterwards the model is in the mode it was in."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens at the beginning of both that are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def draw(
    logits: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, " rows"], temperature: float
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Draws one token per row by inverting the cumulative distribution.

    Args:
        logits: Scores of every token.
        uniforms: One number in [0, 1) per row.
        temperature: Softmax temperature; 0 takes the most likely token.

    Returns:
        Token ids, and their natural log-probabilities at temperature 1.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    if temperature == 0:
        chosen = logprobs.argmax(dim=-1)
    else:
        # float64: in float32 the tail of a 150,000-word vocabulary is lost to rounding.
        weights = torch.softmax(logits.double() / temperature, dim=-1)
        cumulative = weights.cumsum(dim=-1)
        targets = uniforms[:, None].double() * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, targets, right=True)[:, 0]
        chosen = chosen.clamp(max=logits.shape[-1] - 1)
    return chosen, logprobs.gather(-1, chosen[:, None])[:, 0]
