"""Runs of one or several processes from the test's own, with everything that the processes must agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient

from envrl.analysis.records import RunRecord
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.resume import CHECKPOINT
from envrl.experiments.run import execute_run
from envrl.experiments.runner import Runner, RunPlace
from envrl.tracking.store import open_store
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


def require_equal_weights(a: Done, b: Done) -> None:
    assert a.weights.keys() == b.weights.keys()
    for name, weight in a.weights.items():
        torch.testing.assert_close(b.weights[name], weight, rtol=1e-4, atol=2e-6, msg=name)
