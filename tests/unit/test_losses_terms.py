"""Sums over targets, the weighted total, and the comparison of gradients."""

import math
import subprocess
import sys

import pytest
import torch

from envrl.errors import ConfigFault
from envrl.losses.terms import LossTerm, combine, gradient_alignment, same_shape, scaled_sum


def _term(value: torch.Tensor, **metrics: float) -> LossTerm:
    return LossTerm(value, {name: torch.tensor(number) for name, number in metrics.items()})


def test_scaled_sum_divides_by_the_batch_not_by_what_is_here() -> None:
    # (1 + 2 + 6) / 4; the fourth target is in another micro-batch.
    assert scaled_sum(torch.tensor([1.0, 2.0, 6.0]), 4).item() == 2.25
    assert scaled_sum(torch.tensor([1.0, 2.0, 6.0]), torch.tensor(4)).item() == 2.25
    assert scaled_sum(torch.tensor([True, False, True]), 4.0).item() == 0.5


def test_scaled_sum_adds_half_precision_in_float32() -> None:
    # bfloat16 has 8 bits of mantissa: adding ones in it stops at 256.
    assert scaled_sum(torch.ones(1000, dtype=torch.bfloat16), 1).item() == 1000.0


@pytest.mark.parametrize("denominator", [0, 5, torch.tensor(0), torch.tensor(5.0)])
def test_scaled_sum_without_targets_is_a_zero_with_gradient(denominator: float | torch.Tensor) -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    value = scaled_sum(weight[:0] * 2, denominator)
    value.backward()
    assert value.item() == 0.0
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("denominator", [0, -3, math.nan])
def test_scaled_sum_refuses_a_denominator_that_cannot_count_targets(denominator: float) -> None:
    with pytest.raises(ConfigFault, match=f"2 targets got the denominator {denominator}"):
        scaled_sum(torch.ones(2), denominator)


def test_combine_adds_weighted_terms_and_keeps_all_metrics() -> None:
    # 1 + 0.5 · 4 − 2 · 0.25 = 2.5
    total = combine(
        _term(torch.tensor(1.0), kl=7.0),
        {"sp": (0.5, _term(torch.tensor(4.0), sp_ce=4.0)), "id": (-2.0, _term(torch.tensor(0.25)))},
    )
    assert total.value.item() == 2.5
    assert {name: value.item() for name, value in total.metrics.items()} == {
        "kl": 7.0,
        "loss_policy": 1.0,
        "sp_ce": 4.0,
        "loss_sp": 4.0,
        "loss_id": 0.25,
    }


def test_combine_with_weight_zero_is_bitwise_the_policy_loss() -> None:
    weight = torch.tensor([0.1, 0.7], requires_grad=True)

    def policy() -> LossTerm:
        return _term((weight * 1.3).exp().sum())

    # log(0) makes this term and its gradient infinite: 0 · inf would be NaN.
    broken = _term((weight * 0.0).log().sum(), sp_ce=math.inf)
    alone = policy()
    (gradient_alone,) = torch.autograd.grad(alone.value, weight)
    both = combine(policy(), {"sp": (0.0, broken)})
    (gradient_both,) = torch.autograd.grad(both.value, weight)
    assert torch.equal(alone.value, both.value)
    assert torch.equal(gradient_alone, gradient_both)
    assert both.metrics["sp_ce"].item() == math.inf


def test_combine_metrics_carry_no_graph() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    total = combine(_term(weight * 1), {"sp": (0.5, _term(weight * 3))})
    assert total.value.requires_grad
    assert not any(metric.requires_grad for metric in total.metrics.values())


def test_combine_refuses_weights_and_names_that_would_spoil_the_sum() -> None:
    term = _term(torch.tensor(1.0), sp_ce=1.0)
    with pytest.raises(ConfigFault, match="'sp' is nan"):
        combine(term, {"sp": (math.nan, _term(torch.tensor(1.0)))})
    with pytest.raises(ValueError, match="sp_ce"):
        combine(term, {"sp": (1.0, _term(torch.tensor(1.0), sp_ce=2.0))})


def test_gradient_alignment_over_several_parameters() -> None:
    # a = (3, 4 | 0), b = (4, 3 | 0): both of length 5, product 24, cosine 24/25.
    alignment = gradient_alignment(
        [torch.tensor([[3.0], [4.0]]), torch.zeros(1)], [torch.tensor([[4.0], [3.0]]), None]
    )
    assert (alignment.norm_a, alignment.norm_b) == (5.0, 5.0)
    assert alignment.cosine == pytest.approx(0.96)


def test_gradient_alignment_of_special_pairs() -> None:
    a = [torch.tensor([0.1, 0.2, 0.3])]
    opposite = gradient_alignment(a, [-7.0 * a[0]])
    assert opposite.cosine == pytest.approx(-1.0)
    assert opposite.cosine >= -1.0
    nothing = gradient_alignment([None, torch.ones(2)], [None, None])
    assert (nothing.norm_a, nothing.norm_b, nothing.cosine) == (pytest.approx(2**0.5), 0.0, 0.0)
    # Sums of squares this small are nothing in half precision.
    tiny = gradient_alignment([torch.full((4,), 1e-18, dtype=torch.bfloat16)], [torch.ones(4)])
    assert tiny.norm_a == pytest.approx(2e-18, rel=0.01)
    assert tiny.cosine == pytest.approx(1.0)


def test_gradient_alignment_refuses_gradients_of_different_models() -> None:
    with pytest.raises(ValueError, match="zip"):
        gradient_alignment([torch.ones(2)], [torch.ones(2), torch.ones(2)])
    with pytest.raises(ValueError, match="shapes"):
        gradient_alignment([torch.ones(2)], [torch.ones(3)])


def test_same_shape_names_what_differs() -> None:
    with pytest.raises(ValueError, match=r"'policy': \(3,\), 'sampled': \(1,\)"):
        same_shape(policy=torch.ones(3), sampled=torch.ones(1))


WRONG_CALLS = """
import torch
from envrl.losses import advantages, dynamics, policy
three, one, ids = torch.zeros(3), torch.zeros(1), torch.zeros(3, dtype=torch.long)
calls = [
    lambda: policy.clipped_surrogate(three, one, three, denominator=3),
    lambda: policy.clipped_surrogate(three, three, one, denominator=3),
    lambda: policy.kl_k3(three, one, denominator=3),
    lambda: policy.token_logprobs(torch.zeros(3, 2), ids[:1]),
    lambda: dynamics.state_prediction(three, argmax_correct=one > 0, denominator=3),
    lambda: dynamics.inverse_dynamics(three, one > 0, ids, denominator=3, row_denominator=1),
    lambda: advantages.grpo_advantages(three, ids, ids[:1], normalisation="rows"),
    lambda: advantages.grpo_advantages(three, ids, ids, normalisation="steps"),
]
for call in calls:
    try:
        call()
        print("accepted")
    except Exception as error:
        print(type(error).__name__)
"""


def test_wrong_calls_are_refused_without_shape_checks_too() -> None:
    """The shape annotations are executed in this process only; users run without them."""
    out = subprocess.run([sys.executable, "-c", WRONG_CALLS], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["ValueError"] * 7 + ["ConfigFault"]
