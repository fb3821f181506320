"""How the time of an episode grows with what an iteration consists of, one setting at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from envrl.experiments.config import RunConfig
from envrl.experiments.runner import Parts
from iteration import Case
from measuring import STEPS, TRANSCRIPT, Numbers, made, update


@dataclass(frozen=True)
class Sweep:
    """A setting, and the values that it takes in a case."""

    name: str
    key: str
    values: tuple[int, ...]
    case: Case = TRANSCRIPT


SWEEPS = (
    Sweep("episodes", "rollout.episodes_per_game", (2, 8, 32)),
    Sweep("games", "rollout.games", (2, 8, 32)),
    Sweep("steps", "env.max_steps", (6, 12, 24, 48)),
    # Only prompts of this layout show a history.
    Sweep("history", "prompt.history", (0, 2, 8), STEPS),
)


def scaling(repeats: int) -> Numbers:
    """CPU milliseconds of an episode, collection and updates.

    A round measures every configuration once, so that what changes meanwhile hits all alike; one that
    belongs to several sweeps is measured for all of them. The first round warms up: it counts only if it is
    the only one.
    """
    cells: list[tuple[RunConfig, Callable[[], float]]] = []
    names: dict[str, int] = {}
    for sweep in SWEEPS:
        for value in sweep.values:
            config, parts = made(sweep.case, **{sweep.key: value})
            known = [number for number, (other, _) in enumerate(cells) if other == config]
            names[f"scaling_{sweep.name}_{value}_ms_per_episode"] = known[0] if known else len(cells)
            if not known:
                cells.append((config, _iteration(config, parts)))
    best = [float("inf")] * len(cells)
    for _ in range(max(1, repeats // 2)):
        for number, (config, run) in enumerate(cells):
            episodes = config.rollout.games * config.rollout.episodes_per_game
            best[number] = min(best[number], 1000 * run() / episodes)
    return {name: best[number] for name, number in names.items()}


def _iteration(config: RunConfig, parts: Parts) -> Callable[[], float]:
    """CPU seconds of the first iteration, the same one whenever it is called."""
    trained = [p for p in parts.module.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]

    def run() -> float:
        with torch.no_grad():
            for weights, first in zip(trained, before, strict=True):
                weights.copy_(first)
        started = time.process_time()
        batches = parts.source.collect(0, 0).batches
        update(parts, batches, config.batch.micro_batches)()
        return time.process_time() - started

    return run
