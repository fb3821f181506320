"""Weights that adapt, the stop rule, and that both survive a checkpoint."""

import json

import pytest
import torch

from envrl.losses.schedules import Schedule
from envrl.losses.terms import LossTerm
from envrl.policy.batch import Outcome
from envrl.training.settings import BalanceSettings, StopSettings
from envrl.training.weights import AuxiliaryWeights, StopRule

SCHEDULES = {"sp": Schedule("constant", 0.2), "id": Schedule("linear", 0.1)}


def weights_of(balance: BalanceSettings, stop: StopSettings | None = None) -> AuxiliaryWeights:
    return AuxiliaryWeights(SCHEDULES, 10, balance, stop or StopSettings())


def loss(value: float) -> LossTerm:
    return LossTerm(torch.tensor(value), {})


def test_without_balancing_the_weight_is_the_schedule() -> None:
    weights = weights_of(BalanceSettings())
    weights.begin(Outcome(0.9))
    weights.finish(0, {"policy": 1.0, "sp": 7.0})
    assert weights.weights(5) == {"sp": 0.2, "id": 0.05}
    assert weights.metrics(5) == {"train/lambda_sp": 0.2, "train/lambda_id": 0.05}


def test_balanced_gradients_by_hand() -> None:
    weights = weights_of(BalanceSettings("gradient_norm", keep=0.5))
    assert weights.needs_gradients(0)
    # Nothing is known yet: no update is made with a gradient of unknown size.
    assert weights.weights(0) == {"sp": 0.0, "id": 0.0}
    weights.finish(0, {"policy": 1.0, "sp": 4.0})
    assert weights.weights(0) == pytest.approx({"sp": 0.05, "id": 0.0})
    # Averages: policy (1 + 3)/2 = 2, sp (4 + 4)/2 = 4, id 0.5 alone: factors 0.5 and 4.
    weights.finish(0, {"policy": 3.0, "sp": 4.0, "id": 0.5})
    assert weights.weights(0) == pytest.approx({"sp": 0.1, "id": 0.4})
    assert weights.metrics(0)["train/weight_factor/id"] == pytest.approx(4.0)


def test_gradients_are_measured_every_so_often() -> None:
    weights = weights_of(BalanceSettings("gradient_norm", every=3))
    assert [weights.needs_gradients(n) for n in range(5)] == [True, False, False, True, False]
    assert not weights_of(BalanceSettings("reward")).needs_gradients(0)


def test_uncertainty_learns_from_the_sum_over_micro_batches() -> None:
    weights = weights_of(BalanceSettings("uncertainty", rate=0.1))
    weights.begin(Outcome())
    weights.note({"sp": loss(1.0)})
    weights.note({"sp": loss(2.0)})
    assert weights.weights(0) == {"sp": 0.2, "id": 0.1}
    weights.finish(0, {})
    # s = 0.1 · (3 − 1) = 0.2; inverse dynamics had no targets and stays.
    assert weights.weights(0) == pytest.approx({"sp": 0.2 * 0.8187308, "id": 0.1})


def test_the_reward_counts_in_its_own_iteration() -> None:
    weights = weights_of(BalanceSettings("reward"))
    weights.begin(Outcome(0.75))
    assert weights.weights(0) == pytest.approx({"sp": 0.05, "id": 0.025})


def watched(seen: list[tuple[float, float, float]], **settings: float) -> StopRule:
    rule = StopRule(StopSettings(**({"window": 2, "success_drop": 0.1, "imagined_rise": 0.1} | settings)))
    for success, imagined, value in seen:
        rule.watch(Outcome(success, imagined), value)
    return rule


@pytest.mark.parametrize(
    ("seen", "stops"),
    [
        # (success, imagined, loss): the world is known better and the policy wins less.
        ([(0.6, 0.0, 3.0), (0.6, 0.0, 3.0), (0.4, 0.0, 2.0), (0.4, 0.0, 2.0)], True),
        # A fall of success alone may have other reasons.
        ([(0.6, 0.0, 2.0), (0.6, 0.0, 2.0), (0.4, 0.0, 3.0), (0.4, 0.0, 3.0)], False),
        # 0.05 is within the limit.
        ([(0.6, 0.0, 3.0), (0.6, 0.0, 3.0), (0.5, 0.0, 2.0), (0.6, 0.0, 2.0)], False),
        # Only three iterations were seen.
        ([(0.6, 0.0, 3.0), (0.4, 0.0, 2.0), (0.4, 0.0, 2.0)], False),
        # Imagined observations rise, whatever else happens.
        ([(0.5, 0.0, 3.0), (0.5, 0.0, 3.0), (0.9, 0.2, 3.0), (0.9, 0.2, 3.0)], True),
        # The windows move on: the fall is between iterations 2–3 and 4–5.
        ([(0.4, 0.0, 3.0), (0.6, 0.0, 3.0), (0.6, 0.0, 3.0), (0.4, 0.0, 2.0), (0.4, 0.0, 2.0)], True),
    ],
)
def test_when_objectives_are_given_up(seen: list[tuple[float, float, float]], stops: bool) -> None:
    assert watched(seen).stopped is stops
    assert not watched(seen, window=0).stopped


def test_what_was_given_up_stays_given_up() -> None:
    stop = StopSettings(window=1, success_drop=0.0, imagined_rise=0.0)
    weights = weights_of(BalanceSettings(), stop)
    verdicts = []
    for success, imagined in ((0.5, 0.0), (0.5, 0.3), (0.9, 0.0)):
        weights.begin(Outcome(success, imagined))
        weights.note({"sp": loss(1.0)})
        weights.finish(0, {})
        verdicts.append((weights.scheduled(0)["sp"], weights.metrics(0)["train/auxiliary_stopped"]))
    assert verdicts == [(0.2, 0.0), (0.0, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize("kind", ["gradient_norm", "uncertainty"])
def test_all_that_was_learnt_is_in_the_state(kind: str) -> None:
    settings = (BalanceSettings(kind), StopSettings(window=2))
    first, second = weights_of(*settings), weights_of(*settings)

    def iteration(weights: AuxiliaryWeights, n: int) -> None:
        weights.begin(Outcome(0.5 - 0.1 * n))
        weights.note({"sp": loss(3.0 - n), "id": loss(1.0)})
        weights.finish(0, {"policy": 1.0 + n, "sp": 2.0, "id": 0.3})

    for n in range(2):
        iteration(first, n)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for n in range(2, 4):
        iteration(first, n)
        iteration(second, n)
    assert second.weights(1) == first.weights(1)
    assert second.state_dict() == first.state_dict()
    assert first.metrics(0)["train/auxiliary_stopped"] == 1.0
