"""Supervised training of the embedded policy on weighted rows."""

import numpy as np
import torch

from envrl.policy.pretraining import (
    PhaseSettings,
    TinyArchitecture,
    WeightedRow,
    _updates,
    build_tiny,
    train_phase,
)
from support import word_tokenizer

SMALL = TinyArchitecture(hidden=16, layers=1, heads=2, feed_forward=32, positions=64)


def trained(rows: list[WeightedRow], epochs: float) -> tuple[dict[str, torch.Tensor], list[float]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_tiny(word_tokenizer(), SMALL)
    losses: list[float] = []
    settings = PhaseSettings(epochs=epochs, lr=1e-2, tokens_per_update=24, warmup_updates=5)
    train_phase(model, rows, settings, np.random.default_rng(0), lambda u, n, loss: losses.append(loss))
    assert not model.training
    return {n: p.detach() for n, p in model.named_parameters()}, losses


def test_the_vocabulary_is_rounded_up_and_tied() -> None:
    model = build_tiny(word_tokenizer(), SMALL)
    assert model.get_input_embeddings().weight.shape == (64, 16)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.num_key_value_heads == 1


def test_rows_are_learnt() -> None:
    rows = [WeightedRow((2, n, 3, n, n + 1, 1), (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)) for n in range(4, 14)]
    _, losses = trained(rows, epochs=80.0)
    # Guessing costs log(64) = 4.16 nats.
    assert losses[0] > 1.0
    assert losses[-1] < 0.3


def test_tokens_of_weight_zero_are_no_targets() -> None:
    one, _ = trained([WeightedRow((2, 4, 3, 6, 1), (0.0, 0.0, 0.0, 1.0, 0.0))], epochs=3.0)
    other, _ = trained([WeightedRow((2, 4, 3, 6, 9), (0.0, 0.0, 0.0, 1.0, 0.0))], epochs=3.0)
    third, _ = trained([WeightedRow((2, 4, 3, 6, 9), (0.0, 0.0, 0.0, 1.0, 0.5))], epochs=3.0)
    # The last token is a target or nothing: no later token reads it.
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert not all(torch.equal(one[n], third[n]) for n in one)


def test_every_epoch_uses_every_row_once_and_a_part_of_one_a_part() -> None:
    rows = [WeightedRow((2,) * n, (1.0,) * n) for n in range(2, 12)]
    plan = list(_updates(rows, PhaseSettings(epochs=2.5, tokens_per_update=30), np.random.default_rng(0)))
    used = np.bincount([i for update in plan for i in update], minlength=10)
    assert used.sum() == 25
    assert set(used.tolist()) == {2, 3}
    assert max(len(u) * max(len(rows[i].token_ids) for i in u) for u in plan if len(u) > 1) <= 30 + 8 * 11
