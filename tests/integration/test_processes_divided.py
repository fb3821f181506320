"""The optimiser's state divided among the processes of a run: the same numbers from less memory each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from envrl.training.divided import DividedAdamW
from envrl.training.module import EnvRLModule
from envrl.training.optimiser import adamw
from envrl.training.settings import OptimSettings
from process_runs import (
    Watched,
    configured,
    held_by_both,
    help_watched,
    interrupted,
    require_same,
    run,
    state_of,
    watched_run,
)

pytestmark = pytest.mark.usefixtures("own_places")
DIVIDED = {"train.strategy": "zero"}


def held(module: EnvRLModule) -> dict[str, int]:
    """Numbers of the optimiser's state that this process holds, and of weights."""
    optimiser = module.optimizers()
    assert not isinstance(optimiser, list)
    states = [optimiser.state, *([optimiser.optim.state] if isinstance(optimiser, DividedAdamW) else [])]
    tensors = {id(t): t for state in states for kept in state.values() for t in kept.values()}
    return {
        "held": sum(tensor.numel() for tensor in tensors.values()),
        "weights": sum(p.numel() for p in module._trained()),
    }


def _watched_helper(config: Any, place: Any, address: Any, told: Any) -> None:
    """A helping process that notes what it holds."""
    help_watched(Watched(place.study_folder.parent, held), config, place, address, told)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, configured(2))
    return folder


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("divided")
    watched_run(folder, configured(2, **DIVIDED), Watched(folder, held), _watched_helper)
    return folder


def test_weights_and_state_are_bitwise_those_of_undivided_state(whole: Path, divided: Path) -> None:
    require_same(state_of(divided), state_of(whole))


def test_each_process_holds_about_half(divided: Path) -> None:
    for iteration in (0, 1):
        found = held_by_both(divided, iteration)
        both = 2 * found[0]["weights"]
        # Two moments of every weight, and a count of steps for each matrix.
        assert both <= found[0]["held"] + found[1]["held"] <= 1.01 * both
        assert max(f["held"] for f in found) <= 0.6 * both


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"), [(DIVIDED, DIVIDED), (DIVIDED, {}), ({}, DIVIDED)], ids=["kept", "given up", "begun"]
)
def test_a_run_goes_on_whether_divided_or_not(
    tmp_path: Path, whole: Path, first: dict[str, Any], then: dict[str, Any]
) -> None:
    interrupted(tmp_path, configured(2, **first), after=2)
    assert run(tmp_path, configured(2, **then)).record.status == "finished"
    require_same(state_of(tmp_path), state_of(whole))


@pytest.mark.slow
def test_a_run_goes_on_alone(tmp_path: Path, divided: Path) -> None:
    interrupted(tmp_path, configured(2, **DIVIDED), after=2)
    run(tmp_path, configured(1))
    expected = state_of(divided)["state_dict"]
    for name, weight in state_of(tmp_path)["state_dict"].items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.fixture
def group(tmp_path: Path) -> Any:
    """A group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_the_critic_keeps_its_own_learning_rate_and_a_closure_has_gradients() -> None:
    torch.manual_seed(0)
    start = [torch.randn(3, 4), torch.randn(2)]

    def stepped(divided: bool) -> list[Tensor]:
        policy, critic = (nn.Parameter(tensor.clone()) for tensor in start)
        settings = OptimSettings(lr=0.1, weight_decay=0.01)
        optimiser = adamw([policy], settings, [critic], 0.01, divided="state" if divided else "nothing")

        def closure() -> float:
            optimiser.zero_grad()
            loss = (policy**2).sum() + (critic**3).sum()
            loss.backward()
            return float(loss.detach())

        with torch.no_grad():
            losses = [optimiser.step(closure) for _ in range(3)]
        return [policy.detach(), critic.detach(), torch.tensor(losses)]

    mine, other = stepped(True), stepped(False)
    assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    # Adam's first steps are about as long as the learning rate.
    assert float((mine[0] - start[0]).abs().max()) == pytest.approx(0.3, rel=0.4)
    assert float((mine[1] - start[1]).abs().max()) == pytest.approx(0.03, rel=0.4)
