"""Rivals' token losses and adaptive weights, against numbers worked out by hand."""

import math

import pytest
import torch

from envrl.errors import ConfigFault
from envrl.losses.balance import (
    gradient_norm_factor,
    next_log_variance,
    reward_factor,
    uncertainty_factor,
)
from envrl.losses.dynamics import state_prediction
from envrl.losses.world import clipped_mae, per_observation_cross_entropy


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor([math.log(p) for p in probabilities], requires_grad=True)


def test_clipped_mae_by_hand() -> None:
    # 1 − 0.5 − 0.1 = 0.4; 0.95 is known well enough; ½ · (1 − 0.2 − 0.1) = 0.35; 0.75 over 4 tokens.
    term = clipped_mae(logs(0.5, 0.95, 0.2), torch.tensor([1.0, 1.0, 0.5]), margin=0.1, denominator=4)
    assert term.value.item() == pytest.approx(0.1875)
    assert term.metrics["clipped_share"].item() == pytest.approx(0.25)


def test_clipped_mae_pulls_neither_at_known_nor_at_hopeless_tokens() -> None:
    given = logs(0.95, 0.5, 1e-6)
    clipped_mae(given, torch.ones(3), margin=0.1, denominator=1).value.backward()
    # d(1 − p)/d(log p) = −p
    assert given.grad.tolist() == pytest.approx([0.0, -0.5, -1e-6], abs=1e-7)


@pytest.mark.parametrize("margin", [-0.1, 1.0, math.nan])
def test_a_margin_outside_its_range_is_refused(margin: float) -> None:
    with pytest.raises(ConfigFault, match="margin of the clipped MAE"):
        clipped_mae(logs(0.5), torch.ones(1), margin=margin, denominator=1)


def test_each_observation_counts_the_same_by_hand() -> None:
    # Two observations, −1 and −3 (mean 2) and −4: mean 3 nats.
    given = torch.tensor([-1.0, -3.0, -4.0])
    term = per_observation_cross_entropy(given, torch.tensor([0.5, 0.5, 1.0]), denominator=2)
    assert term.value.item() == pytest.approx(3.0)


def test_with_equal_lengths_it_is_state_prediction() -> None:
    given = torch.tensor([-1.0, -3.0, -4.0, -0.5])
    ours = per_observation_cross_entropy(given, torch.full((4,), 0.5), denominator=2)
    assert ours.value.item() == pytest.approx(state_prediction(given, denominator=4).value.item())


def test_without_targets_both_are_zero_and_connected() -> None:
    empty = torch.zeros(0, requires_grad=True)
    for value in (
        clipped_mae(empty, torch.zeros(0), margin=0.1, denominator=0).value,
        per_observation_cross_entropy(empty, torch.zeros(0), denominator=0).value,
    ):
        assert value.item() == 0.0
        value.backward()


def test_gradient_norm_factor() -> None:
    assert gradient_norm_factor(0.5, 2.0, 10.0) == 0.25
    assert gradient_norm_factor(5.0, 0.1, 10.0) == 10.0
    assert gradient_norm_factor(0.0, 2.0, 10.0) == gradient_norm_factor(2.0, 0.0, 10.0) == 0.0


def test_uncertainty_by_hand() -> None:
    # s = 0, L = 3: the step is 0.1 · (1 − 3) = −0.2, so s = 0.2 and the factor exp(−0.2) = 0.818731.
    assert next_log_variance(0.0, 3.0, 0.1) == pytest.approx(0.2)
    assert uncertainty_factor(0.2, 10.0) == pytest.approx(0.8187308)
    assert uncertainty_factor(-5.0, 10.0) == 10.0


def test_the_log_variance_settles_at_the_log_of_the_loss() -> None:
    s = 0.0
    for _ in range(500):
        s = next_log_variance(s, 4.0, 0.1)
    assert s == pytest.approx(math.log(4.0), abs=1e-6)


def test_the_reward_factor_is_what_is_left_to_win() -> None:
    assert reward_factor(0.3) == pytest.approx(0.7)
    with pytest.raises(ConfigFault, match=r"success rate is 1\.5"):
        reward_factor(1.5)
