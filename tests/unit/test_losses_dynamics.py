"""State prediction, inverse dynamics and the shuffled-target control."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envrl.losses.dynamics import inverse_dynamics, shuffled_pairing, state_prediction

LOGPROBS = [-1.0, -2.0, -3.0, -0.5, -0.5]


def test_state_prediction_is_the_mean_over_the_batchs_targets() -> None:
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    correct = torch.tensor([True, False, False, True, True])
    term = state_prediction(logprobs, argmax_correct=correct, denominator=10)
    term.value.backward()
    assert term.value.item() == pytest.approx(0.7)  # (1 + 2 + 3 + 0.5 + 0.5) / 10
    assert term.metrics["sp_ce"].item() == pytest.approx(0.7)
    assert term.metrics["sp_token_accuracy"].item() == pytest.approx(0.3)
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.1] * 5)


def test_state_prediction_reports_accuracy_only_when_measured() -> None:
    assert state_prediction(torch.tensor(LOGPROBS), denominator=5).metrics.keys() == {"sp_ce"}


def test_inverse_dynamics_counts_tokens_and_whole_actions() -> None:
    # Transitions 7 (two tokens, both right), 3 (three tokens, one wrong), 5 (one token, right).
    term = inverse_dynamics(
        torch.tensor([*LOGPROBS, -1.0]),
        torch.tensor([True, True, True, False, True, True]),
        torch.tensor([7, 3, 3, 3, 7, 5]),
        denominator=8,
        row_denominator=4,
    )
    assert term.value.item() == pytest.approx(1.0)  # 8 / 8
    assert {name: value.item() for name, value in term.metrics.items()} == {
        "id_ce": pytest.approx(1.0),
        "id_token_accuracy": pytest.approx(0.625),  # 5 / 8
        "id_exact_match": pytest.approx(0.5),  # 2 of the batch's 4 transitions
    }


def test_inverse_dynamics_without_targets_is_zero_with_gradient() -> None:
    logprobs = torch.zeros(0, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    term = inverse_dynamics(logprobs, none > 0, none, denominator=0, row_denominator=0)
    term.value.backward()
    assert [term.value.item(), *(m.item() for m in term.metrics.values())] == [0.0, 0.0, 0.0, 0.0]


def test_micro_batches_of_whole_transitions_add_up() -> None:
    g = torch.Generator().manual_seed(0)
    logprobs, correct = -torch.rand(30, generator=g), torch.rand(30, generator=g) < 0.7
    rows = torch.arange(30) // 3

    def both(part: slice) -> dict[str, float]:
        sp = state_prediction(logprobs[part], argmax_correct=correct[part], denominator=30)
        id_ = inverse_dynamics(logprobs[part], correct[part], rows[part], denominator=30, row_denominator=10)
        metrics = {**sp.metrics, **id_.metrics, "sp": sp.value, "id": id_.value}
        return {name: value.item() for name, value in metrics.items()}

    parts = [both(part) for part in (slice(0, 3), slice(3, 21), slice(21, 30))]
    for name, value in both(slice(None)).items():
        assert value == pytest.approx(sum(part[name] for part in parts), rel=1e-5)
        assert value > 0


def test_metrics_carry_no_graph() -> None:
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    ids = torch.arange(5)
    for term in (
        state_prediction(logprobs, denominator=5),
        inverse_dynamics(logprobs, ids > 2, ids, denominator=5, row_denominator=5),
    ):
        assert term.value.requires_grad
        assert not any(metric.requires_grad for metric in term.metrics.values())


def _mismatches(keys: list[str], pairing: list[int] | tuple[int, ...]) -> int:
    return sum(keys[i] != keys[j] for i, j in enumerate(pairing))


@given(keys=st.lists(st.sampled_from("abcd"), max_size=6), seed=st.integers(0, 2**32))
def test_shuffled_pairing_is_as_foreign_as_any_permutation(keys: list[str], seed: int) -> None:
    pairing = shuffled_pairing(keys, np.random.default_rng(seed))
    assert sorted(pairing) == list(range(len(keys)))
    best = max(_mismatches(keys, candidate) for candidate in itertools.permutations(range(len(keys))))
    assert _mismatches(keys, pairing) == best


@given(keys=st.lists(st.sampled_from("aaaaabbbcde"), min_size=7, max_size=80), seed=st.integers(0, 2**32))
def test_shuffled_pairing_of_larger_batches(keys: list[str], seed: int) -> None:
    pairing = shuffled_pairing(keys, np.random.default_rng(seed))
    assert sorted(pairing) == list(range(len(keys)))
    most = Counter(keys).most_common(1)[0][1]
    # Counted by hand: the majority can only go to the n − m others, and they can only take it.
    best = len(keys) if 2 * most <= len(keys) else 2 * (len(keys) - most)
    assert _mismatches(keys, pairing) == best


def test_shuffled_pairing_of_small_cases() -> None:
    rng = np.random.default_rng(0)
    assert shuffled_pairing([], rng) == []
    assert shuffled_pairing(["x"], rng) == [0]
    assert shuffled_pairing(["x", "y"], rng) == [1, 0]
    assert sorted(shuffled_pairing(["x", "x"], rng)) == [0, 1]
    assert set(shuffled_pairing([("a", 1), ("a", 1), ("b", 2), ("b", 2)], rng)[:2]) == {2, 3}


def test_shuffled_pairing_is_decided_by_the_generator() -> None:
    keys = [str(k % 9) for k in range(60)]
    first = shuffled_pairing(keys, np.random.default_rng(5))
    assert first == shuffled_pairing(keys, np.random.default_rng(5))
    assert first != shuffled_pairing(keys, np.random.default_rng(6))


def test_shuffled_pairing_spreads_over_all_derangements() -> None:
    """Of four different items there are nine derangements: each comes up, none rules."""
    rng = np.random.default_rng(1)
    seen = Counter(tuple(shuffled_pairing("abcd", rng)) for _ in range(900))
    assert len(seen) == 9
    assert max(seen.values()) < 250
