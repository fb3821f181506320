"""Batched sampling with a key-value cache and log-probabilities recorded as tokens are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from envrl.errors import PolicyFault
from envrl.policy.cache import RaggedCache
from envrl.policy.settings import SamplingSettings
from envrl.types import Finish

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


class CachedSession:
    """:class:`SamplerSession` over a transformers decoder with a :class:`RaggedCache`.

    Args:
        model: A causal language model, adapters merged or active.
        rows: Number of sequences.
        end_id: End-of-turn token.
    """

    def __init__(self, model: PreTrainedModel, rows: int, end_id: int) -> None:
        self._model = model
        self._decoder: nn.Module = model.get_decoder()
        head = model.get_output_embeddings()
        assert head is not None
        self._head: nn.Module = head
        self._device = next(model.parameters()).device
        self._cache = RaggedCache(rows, self._device)
        self._pending: list[list[int]] = [[] for _ in range(rows)]
        self._end_id = end_id

    def append(self, blocks: Sequence[Sequence[int]]) -> None:
        """Adds given tokens; they are run together with the next sampling."""
        for pending, block in zip(self._pending, blocks, strict=True):
            pending.extend(block)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops the rows that are not listed, cache entries included."""
        self._cache.keep(rows)
        self._pending = [self._pending[r] for r in rows]

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
        logits = self._run(self._pending)
        tokens = torch.full((rows, max_new_tokens), self._end_id, dtype=torch.long)
        logprobs = torch.zeros(rows, max_new_tokens)
        lengths = torch.full((rows,), max_new_tokens, dtype=torch.long)
        live = torch.ones(rows, dtype=torch.bool)
        for position in range(max_new_tokens):
            drawn, drawn_logprobs = draw(logits, uniforms[:, position], temperature)
            tokens[live, position] = drawn.cpu()[live]
            logprobs[live, position] = drawn_logprobs.cpu()[live]
            ended = live & (tokens[:, position] == self._end_id)
            lengths[ended] = position + 1
            live = live & ~ended
            if position + 1 == max_new_tokens or not bool(live.any()):
                break
            logits = self._advance(drawn, live)
        if not bool(logprobs.isfinite().all()):
            raise PolicyFault(
                "the policy's scores are not finite, so no token can be drawn; the weights have diverged: "
                "lower optim.lr, or use a wider policy.dtype"
            )
        self._hand_over(tokens, lengths)
        return [
            SampledTokens(
                tuple(tokens[r, : lengths[r]].tolist()),
                tuple(logprobs[r, : lengths[r]].tolist()),
                Finish.END if tokens[r, lengths[r] - 1] == self._end_id else Finish.LENGTH,
            )
            for r in range(rows)
        ]

    def _hand_over(self, tokens: Tensor, lengths: Tensor) -> None:
        # The last token a row wrote was never fed back, so it opens the row's next block.
        self._pending = [[int(tokens[r, n - 1])] for r, n in enumerate(lengths.tolist())]

    def _run(self, blocks: Sequence[Sequence[int]]) -> Float[Tensor, "rows vocab"]:
        """Runs a block of given tokens on every row; logits after each row's last one."""
        counts = torch.tensor([len(b) for b in blocks], device=self._device)
        if int(counts.min()) < 1:
            raise ValueError("every row needs at least one token before it can be sampled")
        width = int(counts.max())
        ids = torch.full((len(blocks), width), self._end_id, dtype=torch.long)
        for row, block in enumerate(blocks):
            ids[row, : len(block)] = torch.tensor(block, dtype=torch.long)
        positions, mask = self._cache.plan(counts, width)
        hidden = self._forward(ids.to(self._device), positions, mask)
        self._cache.commit(counts)
        last = hidden[torch.arange(len(blocks), device=self._device), counts - 1]
        return self._head(last)  # type: ignore[no-any-return]

    def _advance(self, drawn: Int[Tensor, " rows"], live: Tensor) -> Float[Tensor, "rows vocab"]:
        """Feeds back one drawn token per live row; ended rows compute filler and don't grow."""
        counts = live.to(self._device).long()
        positions, mask = self._cache.plan(counts, 1)
        hidden = self._forward(drawn[:, None], positions, mask)
        self._cache.commit(counts)
        return self._head(hidden[:, 0])  # type: ignore[no-any-return]

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        output = self._decoder(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        )
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
