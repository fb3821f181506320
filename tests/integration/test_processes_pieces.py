"""The policy's layers cut into pieces on the processes of a run: the same numbers from less memory each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from envrl.errors import EnvrlError, PolicyFault
from envrl.experiments import run as composition
from envrl.experiments.processes import _help as helping
from envrl.policy.model import Policy, load_policy
from envrl.policy.parts import local
from envrl.policy.settings import PolicySettings
from envrl.training.module import EnvRLModule
from process_runs import (
    Watched,
    configured,
    held_by_both,
    help_watched,
    helper_with_little_memory,
    interrupted,
    place_in,
    require_same,
    run,
    state_of,
    watched_run,
    with_little_memory,
)
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")

WHOLE: dict[str, Any] = {"train.strategy": "ddp", "train.diagnose_every": 0}
PIECES = {**WHOLE, "train.strategy": "fsdp"}
ALL_WEIGHTS = {"policy.lora.enabled": False}
FEW_ROWS = {"rollout.games": 1, "batch.micro_batches": 8}
"""More micro-batches than an update has rows: some have one kind, some none; one process has no game."""


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    """What a run left to be used."""
    [file] = (place_in(folder).folder(0) / "adapter").glob("*.safetensors")
    return load_file(file)


def require_same_runs(a: Path, b: Path) -> None:
    require_same(state_of(a), state_of(b))
    mine, other = adapter_of(a), adapter_of(b)
    assert mine
    assert mine.keys() == other.keys()
    assert all(torch.equal(weight, other[name]) for name, weight in mine.items())


def held(module: EnvRLModule) -> dict[str, int]:
    """Numbers of weights and of the optimiser's state."""
    optimiser = module.optimizers()
    assert not isinstance(optimiser, list)
    inner = getattr(optimiser, "_inner", optimiser)
    state = (t for kept in inner.state.values() for name, t in kept.items() if name != "step")
    layers = {n: p for n, p in module.policy.named_parameters() if ".layers." in n}
    return {
        "state": sum(t.numel() for t in state),
        "layers": sum(local(p).numel() for p in layers.values()),
        "all layers": sum(p.numel() for p in layers.values()),
        "trained": sum(p.numel() for p in module._trained()),
        "trained layers": sum(p.numel() for p in layers.values() if p.requires_grad),
    }


def _watched_helper(config: Any, place: Any, address: Any, told: Any) -> None:
    """A helping process that notes what it holds."""
    help_watched(Watched(place.study_folder.parent, held), config, place, address, told)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All weights trained, whole on both processes."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, configured(2, **WHOLE, **ALL_WEIGHTS))
    return folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All weights trained, in pieces."""
    folder = tmp_path_factory.mktemp("pieces")
    config = configured(2, **PIECES, **ALL_WEIGHTS)
    watched_run(folder, config, Watched(folder, held), _watched_helper)
    return folder


def test_weights_and_state_are_bitwise_those_of_whole_layers(whole: Path, pieces: Path) -> None:
    require_same_runs(pieces, whole)


def test_each_process_holds_half_of_the_layers_and_of_their_state(pieces: Path) -> None:
    for iteration in (0, 1):
        found = held_by_both(pieces, iteration)
        for own in found:
            assert own["layers"] == pytest.approx(own["all layers"] / 2, rel=0.01)
            undivided = own["trained"] - own["trained layers"]
            assert own["state"] == pytest.approx(2 * undivided + own["trained layers"], rel=0.01)
        assert found[0]["layers"] + found[1]["layers"] == found[0]["all layers"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="adapters"),
        pytest.param({"policy.merge_for_sampling": False, "policy.packed": False}, id="padded"),
        pytest.param({"policy.dtype": "bfloat16"}, id="half"),
        pytest.param(FEW_ROWS, id="few rows"),
        pytest.param({"batch.alternate": 1, **ALL_WEIGHTS}, id="alternating"),
        pytest.param({"policy.gradient_checkpointing": True, **ALL_WEIGHTS}, id="recomputed"),
        pytest.param({"loss.algorithm": "ppo", "loss.ppo.value_lr": 0.1}, id="critic"),
        pytest.param({"loss.sp.weight": 0.0, "loss.id.weight": 0.0, "loss.kl_coefficient": 0.0}, id="plain"),
    ],
)
def test_the_same_is_learnt(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, pieces = (
        run(tmp_path / strategy["train.strategy"], configured(2, **strategy, **changes))
        for strategy in (WHOLE, PIECES)
    )
    require_same_runs(tmp_path / "fsdp", tmp_path / "ddp")
    # The policy that plays and the one that is asked and criticised are the same too.
    known = {name for name in whole.metrics if "second" not in name}
    assert {name for name in pieces.metrics if "second" not in name} == known
    for name in known:
        assert pieces.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-5, abs=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        # The norm of pieces is added up over the processes.
        pytest.param({"optim.gradient_clip": 1e-3}, id="clipped"),
        # Gradients of pieces are added over processes first, then over micro-batches.
        pytest.param(FEW_ROWS, id="few rows"),
    ],
)
def test_the_same_is_learnt_but_for_rounding(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, pieces = (
        run(tmp_path / strategy["train.strategy"], configured(2, **strategy, **ALL_WEIGHTS, **changes))
        for strategy in (WHOLE, PIECES)
    )
    assert whole.metrics["train/grad_norm"] > 1e-3
    assert pieces.metrics["train/grad_norm"] == pytest.approx(whole.metrics["train/grad_norm"], rel=1e-4)
    for name, weight in whole.weights.items():
        torch.testing.assert_close(pieces.weights[name], weight, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"), [(PIECES, PIECES), (PIECES, WHOLE), (WHOLE, PIECES)], ids=["kept", "given up", "begun"]
)
def test_a_run_goes_on_whether_in_pieces_or_not(
    tmp_path: Path, whole: Path, first: dict[str, Any], then: dict[str, Any]
) -> None:
    interrupted(tmp_path, configured(2, **first, **ALL_WEIGHTS), after=2)
    assert run(tmp_path, configured(2, **then, **ALL_WEIGHTS)).record.status == "finished"
    require_same_runs(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.fault(
    "memory does not suffice for an update of a policy whose layers are in pieces on the run's processes",
    "the run ends with a sentence that says what to change; it goes on from its checkpoint",
)
@pytest.mark.parametrize("starved", [0, 1], ids=["the first", "the second"])
def test_too_little_memory_ends_the_run_with_a_sentence(
    starved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as changed:
        if starved == 0:
            changed.setattr(composition, "load_policy", with_little_memory)
        else:
            changed.setattr("envrl.experiments.processes._help", helper_with_little_memory)
        with pytest.raises(EnvrlError, match=r"does not fit in memory.*raise batch.micro_batches"):
            run(tmp_path, configured(2, **PIECES))
    assert run(tmp_path, configured(2, **PIECES)).record.status == "finished"


def _dying_helper(config: Any, place: Any, address: Any, told: Any) -> None:
    """A helping process that is gone in the middle of its first pass."""

    def load(*arguments: Any, **options: Any) -> Policy:
        policy = load_policy(*arguments, **options)

        def die(*_: Any) -> None:
            if torch.is_grad_enabled():
                os._exit(1)

        policy.causal.get_decoder().layers[1].register_forward_pre_hook(die)
        return policy

    with patch("envrl.experiments.run.load_policy", load):
        helping(config, place, address, told)


@pytest.mark.slow
@pytest.mark.fault(
    "a process dies in the middle of a pass that needs the layers of all",
    "the others end with a sentence; the same command goes on from the last checkpoint",
)
def test_a_process_that_dies_in_a_pass_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setattr("envrl.experiments.processes._help", _dying_helper)
        with pytest.raises(EnvrlError, match=r"another process of this run has ended.*Run the same"):
            run(tmp_path, configured(2, **PIECES))
    assert run(tmp_path, configured(2, **PIECES)).record.status == "finished"


@pytest.fixture
def divided(tmp_path: Path) -> Iterator[Policy]:
    """A policy in pieces, all of them on this process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    policy = load_policy(PolicySettings(model=str(checkpoint())), to_divide=True)
    policy.divide(torch.device("cpu"))
    yield policy
    torch.distributed.destroy_process_group()


def adapted(policy: Policy) -> None:
    """Gives its adapters an effect."""
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)


def test_layers_are_whole_inside_and_adapters_merged_for_as_long(divided: Policy) -> None:
    adapted(divided)
    ids = torch.arange(12).view(1, 12)
    before = divided.hidden_states(ids).detach()
    base = next(p for n, p in divided.causal.named_parameters() if "base_layer.weight" in n)
    assert local(base) is not base
    for _ in range(2):
        with divided.whole(), divided.whole():
            model = divided.sampling_model()
            weights = dict(model.named_parameters())
            assert all(local(w) is w for w in weights.values())
            with torch.inference_mode():
                inside = divided.hidden_states(ids).clone()
        torch.testing.assert_close(inside, before, rtol=1e-4, atol=1e-5)
        assert not torch.equal(inside, before)
        # What was added to the base is gone with the whole layers.
        assert torch.equal(divided.hidden_states(ids), before)


def test_adapters_are_written_while_the_layers_are_whole(divided: Policy, tmp_path: Path) -> None:
    """As a sampling server needs them."""
    adapted(divided)
    trained = {n: p.detach().clone() for n, p in divided.model.named_parameters() if p.requires_grad}
    with divided.whole():
        divided.save_adapter(tmp_path / "written")
        assert all(local(p) is p for p in divided.parameters())
    written = load_file(tmp_path / "written" / "adapter_model.safetensors")
    assert written.keys() == {name.replace(".default.", ".") for name in trained}
    assert all(torch.equal(written[n.replace(".default.", ".")], p) for n, p in trained.items())


def test_an_error_inside_gives_the_layers_back(divided: Policy) -> None:
    with pytest.raises(ZeroDivisionError), divided.whole():
        divided.sampling_model().get_parameter("model.norm.weight").numel() / 0
    layers = [p for n, p in divided.causal.named_parameters() if "base_layer.weight" in n]
    assert all(local(p) is not p for p in layers)
    with pytest.raises(AssertionError, match="added for good"):
        divided.sampling_model()


def test_a_model_that_names_no_blocks_is_refused(tmp_path: Path) -> None:
    policy = load_policy(PolicySettings(model=str(checkpoint())))
    policy.causal._no_split_modules = None
    with pytest.raises(PolicyFault, match=r"does not say which of its layers.*train.strategy=zero"):
        policy.divide(torch.device("cpu"))
