"""What the parts of ``training.py`` share: what they measure, and how."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from envrl.experiments.config import RunConfig
from envrl.experiments.run import build
from envrl.experiments.runner import Parts
from envrl.policy.batch import RolloutBatch
from envrl.training.optimiser import adamw
from iteration import CASES, Case, configuration

TRANSCRIPT, TRANSCRIPT_BOTH, STEPS, STEPS_BOTH, WEBSHOP = CASES[:5]
Numbers = dict[str, float]


def least(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """Least CPU seconds of each function over rounds in which they take turns."""
    for function in functions:
        function()
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for n, function in enumerate(functions):
            started = time.process_time()
            function()
            best[n] = min(best[n], time.process_time() - started)
    return best


def made(case: Case, **changes: Any) -> tuple[RunConfig, Parts]:
    """What a run of the case is put together from."""
    config = configuration(replace(case, changes={**case.changes, **changes}))
    return config, build(config)


def update(parts: Parts, batches: Sequence[RolloutBatch], micro_batches: int) -> Callable[[], None]:
    """All updates of an iteration, as the trainer makes them."""
    module = parts.module
    optimiser = adamw((p for p in module.parameters() if p.requires_grad), module._optim)

    def run() -> None:
        for n, batch in enumerate(batches):
            (module.training_step(batch, n) / micro_batches).backward()
            if (n + 1) % micro_batches == 0:
                optimiser.step()
                optimiser.zero_grad()

    return run


def useful_tokens(batches: Sequence[RolloutBatch]) -> int:
    """Tokens of the rows, filler not counted."""
    return sum(int(r.lengths.sum()) for b in batches for r in (b.policy, b.questions) if r is not None)
