"""Log-probabilities, clipped surrogate, KL and entropy against hand arithmetic and a scalar reference."""

import math

import numpy as np
import pytest
import torch

from envrl.errors import ConfigFault
from envrl.losses.policy import (
    clipped_surrogate,
    entropy_bonus,
    kl_k3,
    token_entropies,
    token_logprobs,
)
from envrl.losses.terms import LossTerm

# Weights 1, 2, 5 of 8 in all: probabilities 1/8, 1/4, 5/8.
LOGITS = torch.tensor([[0.0, math.log(2), math.log(5)]])

# Six tokens: ratio, advantage, and what happens to each with clips 0.2 and dual clip 3:
#   1.5   2.0   −3.0 | −2.4   → −2.4  upper bound, gradient 0
#   0.5   2.0   −1.0 | −1.6   → −1.0  free, gradient −1.0
#   0.5  −1.0    0.5 |  0.8   →  0.8  lower bound, gradient 0
#   5.0  −1.0    5.0 |  1.2   →  3.0  dual bound, gradient 0 (plain PPO: 5.0, gradient 5.0)
#   1.0   0.5   −0.5 | −0.5   → −0.5  free, gradient −0.5
#   1.1  −1.0    1.1 |  1.1   →  1.1  free, gradient 1.1
RATIOS = torch.tensor([1.5, 0.5, 0.5, 5.0, 1.0, 1.1])
ADVANTAGES = torch.tensor([2.0, 2.0, -1.0, -1.0, 0.5, -1.0])


def _logprobs(ratios: torch.Tensor = RATIOS) -> tuple[torch.Tensor, torch.Tensor]:
    sampled = torch.linspace(-3.0, -2.0, len(ratios))
    return (sampled + ratios.log()).requires_grad_(), sampled


def _gradient(term: LossTerm, tensor: torch.Tensor) -> list[float]:
    (gradient,) = torch.autograd.grad(term.value, tensor, retain_graph=True)
    return [float(g) for g in gradient]


def _random_batch(seed: int = 0, n: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    sampled = -3 * torch.rand(n, generator=g)
    policy = (sampled + torch.randn(n, generator=g)).requires_grad_()
    return policy, sampled, torch.randn(n, generator=g)


def test_token_logprobs_are_logs_of_the_shares() -> None:
    got = token_logprobs(LOGITS.expand(2, 3), torch.tensor([2, 0]))
    # log(5/8), log(1/8)
    assert got.tolist() == pytest.approx([-0.4700036, -2.0794415])


def test_temperature_one_half_squares_the_weights() -> None:
    # Weights 1, 4, 25: log(25/30).
    assert token_logprobs(LOGITS, torch.tensor([2]), 0.5).tolist() == pytest.approx([-0.1823216])


def test_token_logprobs_of_bfloat16_logits_are_float32() -> None:
    logits = torch.tensor([[10.0, 3.0]], dtype=torch.bfloat16)  # both exact in bfloat16
    got = token_logprobs(logits, torch.tensor([0]))
    assert got.dtype == torch.float32
    # −log(1 + e⁻⁷) = −0.00091147; bfloat16 subtraction would give 0.
    assert got.item() == pytest.approx(-0.00091147, rel=1e-3)


def test_token_logprobs_refuse_a_temperature_that_is_not_positive() -> None:
    with pytest.raises(ConfigFault, match=r"temperature is 0\.0"):
        token_logprobs(LOGITS, torch.tensor([0]), 0.0)


def test_entropy_of_known_distributions() -> None:
    # 1/8·log 8 + 1/4·log 4 + 5/8·log(8/5) = 0.2599302 + 0.3465736 + 0.2937523; and log 4 for four equal.
    assert token_entropies(LOGITS).tolist() == pytest.approx([0.9002561])
    assert token_entropies(torch.full((1, 4), -7.0)).tolist() == pytest.approx([1.3862944])


def test_entropy_ignores_tokens_that_are_ruled_out() -> None:
    logits = torch.tensor([[2.0, 2.0, -torch.inf]], requires_grad=True)
    entropy = token_entropies(logits)
    entropy.sum().backward()
    assert entropy.tolist() == pytest.approx([0.6931472])  # log 2
    assert logits.grad is not None
    assert logits.grad.tolist() == [pytest.approx([0.0, 0.0, 0.0], abs=1e-7)]


def test_clipped_surrogate_of_six_tokens() -> None:
    policy, sampled = _logprobs()
    term = clipped_surrogate(policy, sampled, ADVANTAGES, denominator=6)
    # (−2.4 − 1.0 + 0.8 + 3.0 − 0.5 + 1.1) / 6 = 1/6
    assert term.value.item() == pytest.approx(0.1666667, rel=1e-5)
    assert [6 * g for g in _gradient(term, policy)] == pytest.approx([0, -1, 0, 0, -0.5, 1.1], abs=1e-5)


def test_clipped_surrogate_without_dual_clip_is_ppo() -> None:
    policy, sampled = _logprobs()
    term = clipped_surrogate(policy, sampled, ADVANTAGES, dual_clip=None, denominator=6)
    # The fourth token counts 5 instead of 3: (1.0 + 2.0) / 6.
    assert term.value.item() == pytest.approx(0.5, rel=1e-5)
    assert [6 * g for g in _gradient(term, policy)] == pytest.approx([0, -1, 0, 5, -0.5, 1.1], abs=1e-5)
    assert term.metrics["dual_clip_share"].item() == 0.0


def test_clipped_surrogate_metrics() -> None:
    policy, sampled = _logprobs()
    metrics = clipped_surrogate(policy, sampled, ADVANTAGES, denominator=6).metrics
    # Logs of the ratios: 0.4054651, −0.6931472 twice, 1.6094379, 0, 0.0953102; their sum 0.7239188.
    assert {name: 6 * value.item() for name, value in metrics.items()} == {
        "clip_share": pytest.approx(2),
        "dual_clip_share": pytest.approx(1),
        "ratio_mean": pytest.approx(9.6),
        "approx_kl": pytest.approx(2.8760812, rel=1e-5),  # (9.6 − 6) − 0.7239188
        "approx_kl_k1": pytest.approx(-0.7239188, rel=1e-5),
        "logprob_gap": pytest.approx(3.4965076, rel=1e-5),
    }
    assert not any(value.requires_grad for value in metrics.values())


def test_clip_bounds_are_independent() -> None:
    policy, sampled = _logprobs(torch.tensor([1.25, 0.75]))
    advantages = torch.tensor([1.0, -1.0])
    # Upper 0.28 lets 1.25 pass; lower 0.1 stops 0.75 at 0.9: (−1.25 + 0.9) / 2.
    wide = clipped_surrogate(policy, sampled, advantages, clip_low=0.1, clip_high=0.28, denominator=2)
    assert wide.value.item() == pytest.approx(-0.175, rel=1e-5)
    # Swapped: 1.25 stops at 1.1, 0.75 passes: (−1.1 + 0.75) / 2. Equal by chance of these numbers only.
    swapped = clipped_surrogate(policy, sampled, advantages, clip_low=0.28, clip_high=0.1, denominator=2)
    assert _gradient(wide, policy) == pytest.approx([-0.625, 0.0], abs=1e-6)
    assert _gradient(swapped, policy) == pytest.approx([0.0, 0.375], abs=1e-6)


def test_at_ratio_one_the_gradient_is_reinforces() -> None:
    policy, sampled, advantages = _random_batch()
    policy = sampled.clone().requires_grad_()
    term = clipped_surrogate(policy, sampled, advantages, denominator=64)
    (reinforce,) = torch.autograd.grad(-(advantages * policy).sum() / 64, policy)
    assert _gradient(term, policy) == pytest.approx(reinforce.tolist(), rel=1e-6)
    assert term.value.item() == pytest.approx(-advantages.mean().item(), rel=1e-5)


def test_clipped_surrogate_agrees_with_the_papers_formula_token_by_token() -> None:
    policy, sampled, advantages = _random_batch(seed=3)
    total = 0.0
    for p, q, a in zip(policy.tolist(), sampled.tolist(), advantages.tolist(), strict=True):
        # Objective (to be maximised) as printed in arXiv 1912.09729: max(min(rA, clip(r)A), cA) for A < 0.
        ratio = math.exp(p - q)
        objective = min(ratio * a, min(max(ratio, 0.9), 1.3) * a)
        total -= max(objective, 2.0 * a) if a < 0 else objective
    term = clipped_surrogate(
        policy, sampled, advantages, clip_low=0.1, clip_high=0.3, dual_clip=2.0, denominator=64
    )
    assert term.value.item() == pytest.approx(total / 64, rel=1e-5)


def test_dual_clip_leaves_positive_advantages_alone() -> None:
    policy, sampled, advantages = _random_batch(seed=4)
    on = clipped_surrogate(policy, sampled, advantages.abs(), dual_clip=1.001, denominator=64)
    off = clipped_surrogate(policy, sampled, advantages.abs(), dual_clip=None, denominator=64)
    assert torch.equal(on.value, off.value)
    assert _gradient(on, policy) == _gradient(off, policy)


def test_advantage_zero_gives_no_gradient() -> None:
    policy, sampled, _ = _random_batch()
    assert (
        _gradient(clipped_surrogate(policy, sampled, torch.zeros(64), denominator=64), policy) == [0.0] * 64
    )


def test_advantages_and_sampled_logprobs_are_constants() -> None:
    policy, sampled, advantages = _random_batch()
    sampled.requires_grad_(), advantages.requires_grad_()
    clipped_surrogate(policy, sampled, advantages, denominator=64).value.backward()
    assert policy.grad is not None
    assert (sampled.grad, advantages.grad) == (None, None)


def test_a_broken_token_stays_finite() -> None:
    policy = torch.tensor([0.0, 0.0], requires_grad=True)
    term = clipped_surrogate(
        policy, torch.tensor([-500.0, 500.0]), torch.tensor([-1.0, 1.0]), dual_clip=None, denominator=2
    )
    assert math.isfinite(term.value.item())
    assert all(math.isfinite(value.item()) for value in term.metrics.values())
    assert np.isfinite(_gradient(term, policy)).all()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("clip_low", -0.1), ("clip_low", 1.5), ("clip_high", -0.1), ("dual_clip", 1.0), ("clip_high", math.nan)],
)
def test_impossible_clipping_is_refused(setting: str, value: float) -> None:
    policy, sampled = _logprobs()
    with pytest.raises(ConfigFault, match=f"{setting} is {value}"):
        clipped_surrogate(policy, sampled, ADVANTAGES, denominator=6, **{setting: value})


def test_kl_k3_of_four_tokens() -> None:
    # d = log 2: 2 − 0.6931472 − 1 = 0.3068528. d = −log 2: 0.5 + 0.6931472 − 1 = 0.1931472. d = 0: 0.
    # d = 3: 20.0855 − 4 = 16.0855, clamped to 10. Sum 10.5.
    policy = torch.tensor([-1.0, -1.0, -1.0, -4.0], requires_grad=True)
    reference = torch.tensor([-1 + 0.6931472, -1 - 0.6931472, -1.0, -1.0])
    term = kl_k3(policy, reference, denominator=4)
    assert term.value.item() == pytest.approx(2.625, rel=1e-5)
    assert term.metrics["kl"].item() == pytest.approx(2.625, rel=1e-5)
    assert term.metrics["kl_clamped_share"].item() == 0.25
    # Derivative by the policy's log-probability: 1 − exp(d); none where clamped.
    assert [4 * g for g in _gradient(term, policy)] == pytest.approx([-1.0, 0.5, 0.0, 0.0], abs=1e-5)
    # A clamp above 16.0855 changes that token alone: 0.5 + 16.0855369.
    assert 4 * kl_k3(policy, reference, clamp=17.0, denominator=4).value.item() == pytest.approx(16.5855369)


def test_kl_k3_averages_to_the_exact_divergence() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL = ½·log 2 + ½·log(2/3) = 0.1438410; p is uniform, so the mean
    # over the two tokens is the expectation under p.
    policy, reference = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert kl_k3(policy, reference, denominator=2).value.item() == pytest.approx(0.1438410, rel=1e-5)


def test_kl_k3_keeps_its_digits_near_zero() -> None:
    # d = 1e-4: d²/2 + d³/6 = 5.00017e-9; exp(d) − d − 1 in float32 gives a multiple of 6e-8 or 0.
    value = kl_k3(torch.tensor([0.0]), torch.tensor([1e-4]), denominator=1).value.item()
    assert value == pytest.approx(5.00017e-9, rel=0.01)


def test_kl_k3_is_never_negative_and_finite_for_broken_tokens() -> None:
    policy, reference, _ = _random_batch(seed=5)
    assert all(
        kl_k3(p[None], r[None], denominator=1).value.item() >= 0
        for p, r in zip(policy, reference, strict=True)
    )
    broken = kl_k3(torch.tensor([-900.0]), torch.tensor([0.0]), denominator=1)
    assert broken.value.item() == 10.0


def test_kl_k3_refuses_an_impossible_clamp() -> None:
    with pytest.raises(ConfigFault, match=r"is 0\.0"):
        kl_k3(torch.zeros(1), torch.zeros(1), clamp=0.0, denominator=1)


def test_entropy_bonus_is_minus_the_mean() -> None:
    entropies = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    term = entropy_bonus(entropies, denominator=4)
    assert term.value.item() == -1.5
    assert term.metrics["entropy"].item() == 1.5
    assert _gradient(term, entropies) == [-0.25, -0.25, -0.25]


def test_micro_batches_add_up_to_the_batch() -> None:
    policy, sampled, advantages = _random_batch(seed=6)

    def losses(part: slice) -> list[LossTerm]:
        return [
            clipped_surrogate(policy[part], sampled[part], advantages[part], denominator=64),
            kl_k3(policy[part], sampled[part], denominator=torch.tensor(64)),
            entropy_bonus(-policy[part], denominator=64.0),
        ]

    whole = losses(slice(None))
    # Unequal parts, one of them empty: averages of averages would differ.
    parts = [losses(part) for part in (slice(0, 3), slice(3, 3), slice(3, 40), slice(40, 64))]
    for k, term in enumerate(whole):
        assert term.value.item() == pytest.approx(sum(p[k].value.item() for p in parts), rel=1e-5)
        for name, metric in term.metrics.items():
            assert metric.item() == pytest.approx(sum(p[k].metrics[name].item() for p in parts), abs=1e-5)
        gradients = [torch.autograd.grad(p[k].value, policy, allow_unused=True)[0] for p in parts]
        summed = sum(g for g in gradients if g is not None)
        assert torch.allclose(torch.autograd.grad(term.value, policy)[0], summed, atol=1e-7)


def test_padding_changes_nothing() -> None:
    policy, sampled, advantages = _random_batch(seed=7, n=6)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    padded = []
    for values in (policy.detach(), sampled, advantages):
        canvas = torch.full((2, 4), torch.nan)
        canvas[mask] = values
        padded.append(canvas.requires_grad_())
    flat = clipped_surrogate(policy, sampled, advantages, denominator=6)
    selected = clipped_surrogate(*(canvas[mask] for canvas in padded), denominator=6)
    assert torch.equal(flat.value, selected.value)
    (gradient,) = torch.autograd.grad(selected.value, padded[0])
    assert gradient[~mask].tolist() == [0.0, 0.0]
    assert gradient[mask].tolist() == _gradient(flat, policy)


def test_no_targets_give_zero_everywhere() -> None:
    empty = torch.zeros(0, requires_grad=True)
    for term in (
        clipped_surrogate(empty, empty, empty, denominator=0),
        kl_k3(empty, empty, denominator=0),
        entropy_bonus(empty, denominator=0),
    ):
        term.value.backward()
        assert term.value.item() == 0.0
        assert all(metric.item() == 0.0 for metric in term.metrics.values())
    assert empty.grad is not None
