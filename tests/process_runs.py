"""Runs of one or several processes from the test's own, with everything that the processes must agree on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from mlflow.tracking import MlflowClient

from envrl.analysis.records import RunRecord
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.processes import _help as helping
from envrl.experiments.resume import CHECKPOINT
from envrl.experiments.run import execute_run
from envrl.experiments.run_place import RunPlace
from envrl.experiments.runner import Runner
from envrl.policy.model import Policy, load_policy
from envrl.tracking.store import open_store
from envrl.training.module import EnvRLModule
from envrl.training.progress import Progress
from envrl.types import Group
from studies import tiny
from support import checkpoint

EVERYTHING: dict[str, Any] = {
    # An odd number of games, panel games and objectives: the shares differ.
    "rollout": {"games": 3, "episodes_per_game": 2, "refill_rounds": 1},
    "env": {"train_games": 8},
    "batch": {"micro_batches": 2, "updates": 2},
    "train": {"iterations": 2, "diagnose_every": 1},
    "evaluation": {"games": 5, "every": 2, "dynamics": 4},
    "loss": {
        "sp": {"kind": "constant", "weight": 0.2},
        "id": {"kind": "constant", "weight": 0.2},
        "balance": {"kind": "uncertainty"},
        "kl_coefficient": 0.01,
    },
}


def configured(processes: int = 1, **changes: Any) -> RunConfig:
    return config_from(tiny(checkpoint(), EVERYTHING), {"train.devices": processes}, changes)


@dataclass
class Done:
    """What a run left."""

    record: RunRecord
    weights: dict[str, torch.Tensor]
    metrics: dict[str, float]
    episodes: list[tuple[Group, ...]] = field(default_factory=list)


def place_in(folder: Path) -> RunPlace:
    return RunPlace(folder / "studies", "e", "a", open_store(folder))


def run(folder: Path, config: RunConfig, report: Callable[[Progress], None] | None = None) -> Done:
    """Executes a run here; the episodes are those that rank 0 learnt from, by iteration."""
    place, episodes = place_in(folder), []
    with pytest.MonkeyPatch.context() as changed:
        collected = Runner._collected

        def watched(self: Runner, iteration: int, experience: Any) -> None:
            episodes.append(experience.groups)
            collected(self, iteration, experience)

        changed.setattr(Runner, "_collected", watched)
        record = execute_run(config, place, report)
    state = torch.load(place.folder(0) / CHECKPOINT, weights_only=True)["state_dict"]
    assert record.mlflow_run_id is not None
    metrics = MlflowClient(place.store.uri).get_run(record.mlflow_run_id).data.metrics
    return Done(record, state, metrics, episodes)


def interrupted(folder: Path, config: RunConfig, after: int) -> None:
    """Executes a run that is stopped after so many iterations."""

    def stop(progress: Progress) -> None:
        if progress.iteration == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, config, stop)


class Watched:
    """Notes after every iteration what a process holds, in files of its own.

    Args:
        folder: Where to.
        measure: What it holds, in numbers.
    """

    def __init__(self, folder: Path, measure: Callable[[EnvRLModule], dict[str, int]]) -> None:
        self._folder = folder
        self._measure = measure
        self._ended = EnvRLModule.on_train_epoch_end

    def __call__(self, module: EnvRLModule) -> None:
        self._ended(module)
        file = held_file(self._folder, module._ranks.rank, module.trainer.current_epoch)
        file.write_text(json.dumps(self._measure(module)))


def held_file(folder: Path, rank: int, iteration: int) -> Path:
    """What a process held after an iteration."""
    return folder / f"held_{rank}_{iteration}.json"


def held_by_both(folder: Path, iteration: int) -> list[dict[str, int]]:
    """What each of two processes held after an iteration."""
    return [json.loads(held_file(folder, rank, iteration).read_text()) for rank in (0, 1)]


def watched_run(folder: Path, config: RunConfig, watched: Watched, helper: Callable[..., None]) -> Done:
    """Executes a run whose processes are watched; the others by a helper that calls :func:`help_watched`."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("envrl.experiments.processes._help", helper)
        changed.setattr(EnvRLModule, "on_train_epoch_end", lambda module: watched(module))
        return run(folder, config)


def help_watched(watched: Watched, *arguments: Any) -> None:
    """A helping process that notes what it holds."""
    with patch.object(EnvRLModule, "on_train_epoch_end", lambda module: watched(module)):
        helping(*arguments)


def state_of(folder: Path) -> dict[str, Any]:
    """Weights and optimiser of a run's newest checkpoint."""
    found: dict[str, Any] = torch.load(place_in(folder).folder(0) / CHECKPOINT, weights_only=True)
    return found


def require_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Bitwise: weights, and both moments of every weight."""
    assert a["state_dict"]
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(w, b["state_dict"][name]) for name, w in a["state_dict"].items())
    [mine], [other] = a["optimizer_states"], b["optimizer_states"]
    assert mine["param_groups"] == other["param_groups"]
    assert mine["state"].keys() == other["state"].keys() == set(range(len(a["state_dict"])))
    for number, kept in mine["state"].items():
        assert kept.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, other["state"][number][name]) for name, value in kept.items())
        assert float(kept["exp_avg_sq"].abs().max()) > 0


MOST_TOKENS = 400
"""What fits into the memory of a process that has little: the longest row there can be, but not several."""


def with_little_memory(*arguments: Any, **options: Any) -> Policy:
    """The policy, of which an update over many tokens fails as on a device that is full."""
    policy = load_policy(*arguments, **options)

    def before(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[0].shape[:-1].numel()
        if torch.is_grad_enabled() and tokens > MOST_TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    policy.causal.get_decoder().layers[0].register_forward_pre_hook(before)
    return policy


def helper_with_little_memory(config: Any, place: Any, address: Any, told: Any) -> None:
    """A helping process; it is started by its name."""
    with patch("envrl.experiments.run.load_policy", with_little_memory):
        helping(config, place, address, told)


def require_equal_weights(a: Done, b: Done) -> None:
    assert a.weights.keys() == b.weights.keys()
    for name, weight in a.weights.items():
        torch.testing.assert_close(b.weights[name], weight, rtol=1e-4, atol=2e-6, msg=name)
