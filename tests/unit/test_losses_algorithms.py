"""RLOO, REINFORCE++, GiGPO, GAE, the critic's loss and the aggregations: hand arithmetic and relations."""

import math
from difflib import SequenceMatcher

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given
from hypothesis import strategies as st

from envrl.errors import ConfigFault
from envrl.losses.advantages import grpo_advantages, reinforce_pp_advantages, rloo_advantages
from envrl.losses.aggregation import token_weights, weighted
from envrl.losses.gigpo import anchor_groups, gigpo_advantages
from envrl.losses.policy import clipped_surrogate, entropy_bonus, kl_k3
from envrl.losses.returns import discounted_returns, generalised_advantages
from envrl.losses.value import value_loss


def wide(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


class TestRloo:
    def test_each_is_compared_with_the_others(self) -> None:
        # Group 0: 10, 0, 4 against 2, 7, 5. Group 1: 3 alone. Group 2: equal ones.
        got = rloo_advantages(
            wide(10, 3, 0, 4, 0.1, 0.1),
            ids(0, 1, 0, 0, 2, 2),
            ids(0, 1, 2, 3, 4, 5),
            normalisation="rows",
        )
        assert got.tolist() == [8.0, 0.0, -7.0, -1.0, 0.0, 0.0]

    def test_an_episodes_own_rows_are_all_left_out(self) -> None:
        # Episodes 7, 8, 9 stand as 9.5 (10 and 9), 0, 1. Baselines 0.5, 5.25, 4.75.
        got = rloo_advantages(wide(10, 9, 0, 1), ids(0, 0, 0, 0), ids(7, 7, 8, 9), normalisation="episodes")
        assert got.tolist() == [9.5, 8.5, -5.25, -3.75]

    @given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 9.9, 10.0])), min_size=1))
    def test_is_n_over_n_minus_1_times_grpo_without_std(self, rows: list[tuple[int, float]]) -> None:
        groups = torch.tensor([g for g, _ in rows])
        scores = torch.tensor([s for _, s in rows], dtype=torch.float64)
        numbers = torch.arange(len(rows))
        centred = grpo_advantages(scores, groups, numbers, normalisation="rows", scale_by_std=False)
        sizes = [sum(other == g for other, _ in rows) for g, _ in rows]
        expected = [float(c) * n / max(1, n - 1) for c, n in zip(centred, sizes, strict=True)]
        got = rloo_advantages(scores, groups, numbers, normalisation="rows")
        assert got.tolist() == pytest.approx(expected, abs=1e-9)


class TestReinforcePlusPlus:
    def test_the_whole_batch_is_one_pool(self) -> None:
        # 10, 0, 2: mean 4, squares 36 + 16 + 4 = 56, unbiased std √28 = 5.2915026.
        got = reinforce_pp_advantages(wide(10, 0, 2), ids(0, 1, 2), normalisation="rows")
        assert got.tolist() == pytest.approx([1.1338934, -0.7559289, -0.3779645], rel=1e-6)

    def test_is_grpo_where_there_is_one_group_only(self) -> None:
        scores, numbers = wide(10, 9.9, 0, 0), ids(0, 0, 1, 2)
        for normalisation in ("rows", "episodes"):
            one = grpo_advantages(scores, torch.zeros(4).long(), numbers, normalisation=normalisation)
            got = reinforce_pp_advantages(scores, numbers, normalisation=normalisation)
            assert torch.equal(got, one)
        # With two groups they part: each group of GRPO is 0 on average, the batch's halves are not.
        two = grpo_advantages(scores, ids(0, 0, 1, 1), numbers, normalisation="rows")
        got = reinforce_pp_advantages(scores, numbers, normalisation="rows")
        assert float(two[:2].sum()) == pytest.approx(0.0, abs=1e-9)
        assert float(got[:2].sum()) > 1

    def test_equal_scores_give_zero(self) -> None:
        got = reinforce_pp_advantages(wide(0.1, 0.1, 0.1), ids(0, 1, 2), normalisation="rows", eps=1e-30)
        assert got.tolist() == [0.0, 0.0, 0.0]


class TestReturns:
    def test_discounted_returns_of_mixed_episodes(self) -> None:
        # Episode 3: 0, 0, 8 -> 2, 4, 8 at γ = ½. Episode 1: 1, −2 -> 0, −2.
        got = discounted_returns(wide(0, 1, 0, -2, 8), ids(3, 1, 3, 1, 3), gamma=0.5)
        assert got.tolist() == [2.0, 0.0, 4.0, -2.0, 8.0]

    def test_gae_by_hand(self) -> None:
        # γ = λ = ½, V = 4, 2, 6; r = 1, 0, 8. δ: 1 + 1 − 4 = −2, 0 + 3 − 2 = 1, 8 − 6 = 2.
        # A_2 = 2, A_1 = 1 + ¼·2 = 1.5, A_0 = −2 + ¼·1.5 = −1.625. Returns: A + V.
        got = generalised_advantages(wide(1, 0, 8), wide(4, 2, 6), ids(5, 5, 5), gamma=0.5, lam=0.5)
        assert got.advantages.tolist() == [-1.625, 1.5, 2.0]
        assert got.returns.tolist() == [2.375, 3.5, 8.0]

    @pytest.mark.parametrize(("gamma", "lam"), [(0.95, 0.9), (1.0, 1.0), (0.99, 0.0)])
    def test_gae_is_a_linear_filter_of_the_surprises(self, gamma: float, lam: float) -> None:
        """scipy's ``lfilter``, run backwards, as OpenAI's Spinning Up computes it."""
        rng = np.random.default_rng(3)
        rewards, values = rng.standard_normal(9), rng.standard_normal(9)
        surprises = rewards + gamma * np.append(values[1:], 0.0) - values
        expected = scipy.signal.lfilter([1], [1, -gamma * lam], surprises[::-1])[::-1]
        got = generalised_advantages(
            torch.tensor(rewards), torch.tensor(values), torch.zeros(9).long(), gamma=gamma, lam=lam
        )
        assert got.advantages.tolist() == pytest.approx(expected.tolist(), abs=1e-12)

    def test_lambda_1_is_the_return_less_the_value_and_lambda_0_one_surprise(self) -> None:
        rewards, values, episode = wide(1, 2, 3), wide(0.5, -1, 4), ids(0, 0, 0)
        whole = discounted_returns(rewards, episode, gamma=0.9)
        far = generalised_advantages(rewards, values, episode, gamma=0.9, lam=1.0)
        assert far.advantages.tolist() == pytest.approx((whole - values).tolist())
        assert far.returns.tolist() == pytest.approx(whole.tolist())
        near = generalised_advantages(rewards, values, episode, gamma=0.9, lam=0.0)
        # 1 − 0.9 − 0.5, 2 + 3.6 + 1, 3 − 4.
        assert near.advantages.tolist() == pytest.approx([-0.4, 6.6, -1.0])

    def test_no_turns_and_bad_ones(self) -> None:
        assert discounted_returns(torch.zeros(0), torch.zeros(0).long(), gamma=0.9).shape == (0,)
        with pytest.raises(ConfigFault, match=r"gamma is 1\.5"):
            discounted_returns(wide(1), ids(0), gamma=1.5)
        with pytest.raises(ConfigFault, match=r"lam is -0\.1"):
            generalised_advantages(wide(1), wide(1), ids(0), gamma=1.0, lam=-0.1)
        with pytest.raises(ValueError, match="NaN"):
            generalised_advantages(wide(1), wide(math.nan), ids(0), gamma=1.0, lam=1.0)


class TestGigpo:
    def test_turns_meet_where_group_and_text_are_the_same(self) -> None:
        assert anchor_groups(["hall", "shelf", "hall", "hall", "shelf"], [0, 0, 0, 1, 0]) == [0, 1, 0, 2, 1]

    def test_similar_texts_join_the_first_group_they_are_similar_to(self) -> None:
        # difflib: "abcd" and "abce" share abc, 2·3/8 = 0.75; "abxy" shares 2 of 4 with both: 0.5.
        texts = ["abcd", "abxy", "abce", "abxz", "abcd"]
        assert anchor_groups(texts, [0] * 5, similarity=0.75) == [0, 1, 0, 1, 0]
        assert anchor_groups(texts, [0] * 5, similarity=0.5) == [0, 0, 0, 0, 0]
        assert anchor_groups(texts, [0] * 5, similarity=0.76) == [0, 1, 2, 3, 0]
        # Whoever is in another episode group is never met.
        assert anchor_groups(texts, [0, 0, 1, 1, 1], similarity=0.75) == [0, 1, 2, 3, 2]

    @given(st.lists(st.text("ab ", max_size=8), max_size=12), st.sampled_from([0.3, 0.6, 0.9, 1.0]))
    def test_similar_groups_are_those_of_difflib_alone(self, texts: list[str], least: float) -> None:
        leaders: list[str] = []
        expected = []
        for text in texts:
            near = [n for n, x in enumerate(leaders) if SequenceMatcher(None, text, x).ratio() >= least]
            if not near:
                near, leaders = [len(leaders)], [*leaders, text]
            expected.append(near[0])
        assert anchor_groups(texts, [0] * len(texts), similarity=least) == expected

    def test_both_levels_by_hand(self) -> None:
        # Step group 0: 10, 4 -> mean 7, std √18 = 4.2426407; group 1 alone; group 2: equal.
        episode, steps = wide(1, -1, 1, -1, 2), wide(10, 4, 6, 3, 3)
        groups = ids(0, 0, 1, 2, 2)
        mean_only = gigpo_advantages(episode, steps, groups, omega=0.5, scale_by_std=False)
        assert mean_only.tolist() == [2.5, -2.5, 1.0, -1.0, 2.0]
        scaled = gigpo_advantages(episode, steps, groups, omega=1.0)
        # 3 / 4.2426417 = 0.7071066
        assert scaled.tolist() == pytest.approx([1.7071066, -1.7071066, 1.0, -1.0, 2.0], abs=1e-6)

    def test_omega_0_is_the_episode_level_bit_by_bit(self) -> None:
        generator = torch.Generator().manual_seed(0)
        episode = torch.randn(40, generator=generator)
        steps, groups = torch.randn(40, generator=generator), torch.arange(40) // 5
        assert torch.equal(gigpo_advantages(episode, steps, groups, omega=0.0), episode)
        assert not torch.equal(gigpo_advantages(episode, steps, groups, omega=0.1), episode)

    def test_one_step_group_for_all_is_grpo_over_turns(self) -> None:
        steps = wide(1, 2, 4, 9)
        got = gigpo_advantages(torch.zeros_like(steps), steps, ids(0, 0, 0, 0), omega=2.0)
        grpo = grpo_advantages(steps, ids(0, 0, 0, 0), ids(0, 1, 2, 3), normalisation="rows")
        assert got.tolist() == pytest.approx((2 * grpo).tolist())

    def test_impossible_settings(self) -> None:
        with pytest.raises(ConfigFault, match="omega is -1"):
            gigpo_advantages(wide(0), wide(0), ids(0), omega=-1.0)
        for bad in (0.0, 1.1):
            with pytest.raises(ConfigFault, match="similarity of anchors is"):
                anchor_groups(["a"], [0], similarity=bad)
        with pytest.raises(ValueError, match="zip"):
            anchor_groups(["a"], [0, 1])


class TestValueLoss:
    def test_by_hand(self) -> None:
        # V 1, 5, 0; before 0, 0, 0; G 3, 4, −1; clip 2. Squares 4, 1, 1. Clipped V 1, 2, 0 -> 4, 4, 1.
        # Sum of the larger 4 + 4 + 1 = 9, half 4.5, over 6 turns of the update 0.75.
        term = value_loss(wide(1, 5, 0), wide(0, 0, 0), wide(3, 4, -1), clip=2.0, denominator=6)
        assert float(term.value) == pytest.approx(0.75)
        assert float(term.metrics["value_error"]) == pytest.approx(4 / 6)
        assert float(term.metrics["value_clip_share"]) == pytest.approx(1 / 6)
        plain = value_loss(wide(1, 5, 0), wide(0, 0, 0), wide(3, 4, -1), clip=None, denominator=6)
        assert float(plain.value) == pytest.approx(0.5)

    def test_the_gradient_is_the_error_and_0_where_the_bound_holds(self) -> None:
        values = wide(1, 5, 0).requires_grad_()
        value_loss(values, wide(0, 0, 0), wide(3, 4, -1), clip=2.0, denominator=2).value.backward()
        assert values.grad is not None
        assert values.grad.tolist() == [-1.0, 0.0, 0.5]

    def test_nothing_and_nonsense(self) -> None:
        assert float(value_loss(wide(), wide(), wide(), clip=0.2, denominator=0).value) == 0.0
        with pytest.raises(ConfigFault, match="clip of values is 0"):
            value_loss(wide(1), wide(1), wide(1), clip=0.0, denominator=1)


class TestAggregation:
    # Two rows: losses 1, 2, 3 and 5. N = 4, R = 2.
    LOSSES = wide(1, 2, 3, 5)
    LENGTHS = ids(3, 3, 3, 1)

    def total(self, aggregation: str, limit: int | None = None) -> float:
        weights = token_weights(
            self.LENGTHS, aggregation=aggregation, action_tokens=4.0, rows=2.0, row_limit=limit
        )
        return float(weighted(self.LOSSES, weights).sum() / 4)

    def test_by_hand(self) -> None:
        assert self.total("tokens") == 2.75  # 11 / 4
        assert self.total("rows") == pytest.approx(3.5)  # (2 + 5) / 2
        assert self.total("constant", 8) == pytest.approx(0.6875)  # (6 + 5) / 8 / 2

    def test_token_means_multiply_nothing(self) -> None:
        assert token_weights(self.LENGTHS, aggregation="tokens", action_tokens=4.0, rows=2.0) is None
        assert weighted(self.LOSSES, None) is self.LOSSES

    def test_rows_of_equal_length_are_the_token_mean_and_constant_of_that_length_too(self) -> None:
        lengths = ids(2, 2, 2, 2)
        for aggregation, limit in (("rows", None), ("constant", 2)):
            weights = token_weights(
                lengths, aggregation=aggregation, action_tokens=4.0, rows=2.0, row_limit=limit
            )
            assert weights is not None
            assert weights.tolist() == [1.0] * 4

    def test_no_targets_and_nonsense(self) -> None:
        none = torch.zeros(0).long()
        for aggregation, limit in (("rows", None), ("constant", 5)):
            weights = token_weights(
                none, aggregation=aggregation, action_tokens=0.0, rows=0.0, row_limit=limit
            )
            assert weights is not None
            assert weights.shape == (0,)
        with pytest.raises(ConfigFault, match="its length None"):
            self.total("constant")


class TestWeightedPolicyTerms:
    """Weights change the loss and its gradient; what is reported stays a mean over tokens."""

    def test_by_hand(self) -> None:
        # Ratio 1, A = 2, −1; weights 0.5, 3: −(1 − 3) / 2 = 1, unweighted −0.5.
        policy, sampled = wide(-1, -2).requires_grad_(), wide(-1, -2)
        term = clipped_surrogate(policy, sampled, wide(2, -1), denominator=2, weights=wide(0.5, 3))
        assert float(term.value.detach()) == pytest.approx(1.0)
        assert float(term.metrics["ratio_mean"]) == pytest.approx(1.0)
        term.value.backward()
        assert policy.grad is not None
        assert policy.grad.tolist() == pytest.approx([-0.5, 1.5])
        bonus = entropy_bonus(wide(1, 2), denominator=2, weights=wide(0.5, 3))
        assert float(bonus.value) == pytest.approx(-3.25)
        assert float(bonus.metrics["entropy"]) == pytest.approx(1.5)
        # d = log 2 and 0: k3 = 2 − 0.6931472 − 1 = 0.3068528 and 0.
        kl = kl_k3(wide(0, 0), wide(math.log(2), 0), denominator=2, weights=wide(4, 1))
        assert float(kl.value) == pytest.approx(0.6137056)
        assert float(kl.metrics["kl"]) == pytest.approx(0.1534264)

    def test_ppo_at_ratio_1_has_reinforces_gradient(self) -> None:
        advantages, logits = wide(2, -1, 0.5), wide(0.3, -0.2, 0.1).requires_grad_()
        logprobs = torch.log_softmax(logits, 0)
        clipped_surrogate(logprobs, logprobs.detach(), advantages, denominator=3).value.backward()
        # −Σ A·∇log p / 3 with ∇log p_i = e_i − p: −(A_i − p_i ΣA) / 3 and ΣA = 1.5.
        p = [math.exp(v) / sum(math.exp(x) for x in (0.3, -0.2, 0.1)) for v in (0.3, -0.2, 0.1)]
        expected = [-(a - q * 1.5) / 3 for a, q in zip((2, -1, 0.5), p, strict=True)]
        assert logits.grad is not None
        assert logits.grad.tolist() == pytest.approx(expected)
