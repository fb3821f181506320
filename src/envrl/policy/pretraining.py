"""Supervised training of the embedded policy on weighted token rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


@dataclass(frozen=True)
class TinyArchitecture:
    """Size of the embedded policy, a Qwen2 decoder with tied embeddings."""

    hidden: int = 128
    """Width of the residual stream."""
    layers: int = 4
    """Decoder layers."""
    heads: int = 4
    """Query heads; keys and values have one head, which keeps the cache small."""
    feed_forward: int = 384
    """Width of the gated feed-forward layer."""
    positions: int = 4096
    """Longest sequence."""


@dataclass(frozen=True, slots=True)
class WeightedRow:
    """A token row and the weight of each token as a target (0 = not a target)."""

    token_ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class PhaseSettings:
    """One phase of supervised training."""

    epochs: float = 1.0
    """Passes over the rows."""
    lr: float = 2e-3
    """Peak learning rate of AdamW; linear warm-up, then cosine to a tenth."""
    tokens_per_update: int = 4096
    """Tokens of one update, padding included; rows of similar length share one."""
    warmup_updates: int = 50
    """Updates until the peak learning rate is reached."""


def build_tiny(tokenizer: PreTrainedTokenizerFast, architecture: TinyArchitecture) -> Qwen2ForCausalLM:
    """A freshly initialised model for the tokenizer (draws from torch's global generator)."""
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=architecture.hidden,
        intermediate_size=architecture.feed_forward,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=1,
        max_position_embeddings=architecture.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    return Qwen2ForCausalLM(config)


def train_phase(
    model: PreTrainedModel,
    rows: Sequence[WeightedRow],
    settings: PhaseSettings,
    rng: np.random.Generator,
    report: Callable[[int, int, float], None],
) -> None:
    """Trains on rows with weighted next-token cross-entropy, normalised by the weights of an update.

    Args:
        model: Trained in place.
        rows: What to learn from.
        settings: Length, learning rate and update size.
        rng: Order of rows and updates.
        report: Called as (update, updates, mean loss since the last call in nats) every 100 updates.
    """
    plan = list(_updates(rows, settings, rng))
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    recent: list[float] = []
    for update, members in enumerate(plan):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * _lr_factor(update, len(plan), settings.warmup_updates)
        ids, weights = _collate([rows[i] for i in members])
        loss = _weighted_cross_entropy(model, ids, weights)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        recent.append(float(loss.detach()))
        if (update + 1) % 100 == 0 or update + 1 == len(plan):
            report(update + 1, len(plan), sum(recent) / len(recent))
            recent = []
    model.eval()


def _weighted_cross_entropy(model: PreTrainedModel, ids: Tensor, weights: Tensor) -> Tensor:
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets, target_weights = ids[:, 1:], weights[:, 1:]
    chosen = target_weights > 0
    head = model.get_output_embeddings()
    assert head is not None
    losses = torch.nn.functional.cross_entropy(
        head(hidden[chosen]).float(), targets[chosen], reduction="none"
    )
    picked = target_weights[chosen]
    total: Tensor = (losses * picked).sum() / picked.sum().clamp(min=1e-8)
    return total


def _updates(
    rows: Sequence[WeightedRow], settings: PhaseSettings, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Rows of each update: shuffled, then neighbours in length are put together."""
    lengths = np.array([len(r.token_ids) for r in rows])
    whole, part = divmod(settings.epochs, 1.0)
    for epoch in range(math.ceil(settings.epochs)):
        share = 1.0 if epoch < whole else part
        order = rng.permutation(len(rows))[: max(1, int(len(rows) * share))]
        # A little noise on the length keeps the buckets different in every epoch.
        order = order[np.argsort(lengths[order] + rng.uniform(0, 8, len(order)), kind="stable")]
        buckets: list[list[int]] = [[]]
        for index in order.tolist():
            if (len(buckets[-1]) + 1) * lengths[index] > settings.tokens_per_update and buckets[-1]:
                buckets.append([])
            buckets[-1].append(index)
        for bucket in rng.permutation(len(buckets)).tolist():
            yield buckets[bucket]


def _lr_factor(update: int, updates: int, warmup: int) -> float:
    ramp = min(1.0, (update + 1) / max(1, warmup))
    return ramp * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * update / max(1, updates))))


def _collate(rows: Sequence[WeightedRow]) -> tuple[Tensor, Tensor]:
    width = max(len(r.token_ids) for r in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    weights = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        ids[i, : len(row.token_ids)] = torch.tensor(row.token_ids)
        weights[i, : len(row.weights)] = torch.tensor(row.weights)
    return ids, weights
