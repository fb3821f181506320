"""Tiny studies for tests of the commands: real processes, real MLflow, a random policy of 32 hidden units."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from envrl.experiments.plain import merge, nested

TINY: dict[str, Any] = {
    "env": {"train_games": 4, "receptacles": 6, "objects_per_receptacle": 1.0, "max_steps": 10},
    "sampling": {"max_new_tokens": 6, "max_context": 400},
    "rollout": {"games": 2, "episodes_per_game": 2},
    "batch": {"micro_batches": 1},
    "policy": {"lora": {"rank": 2, "alpha": 4.0}},
    "train": {"iterations": 3, "diagnose_every": 2, "accelerator": "cpu", "transcripts": 2},
    "evaluation": {"games": 6, "every": 2},
}
"""Keys that make a run of seconds; evaluated at iterations 0, 2 and 3."""

ARMS: dict[str, Any] = {"grpo": None, "both": {"loss.sp.weight": 0.2, "loss.id": {"weight": 0.2}}}


@dataclass(frozen=True)
class FinishedStudy:
    """A tiny study that ran from beginning to end without a break.

    Attributes:
        file: Its YAML file.
        root: MLflow store and study folders.
        folder: The study's folder.
        done: How the command ended and what it printed.
    """

    file: Path
    root: Path
    folder: Path
    done: subprocess.CompletedProcess[str]


def tiny(model: Path, *changes: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration, as a file would hold it."""
    base: dict[str, Any] = merge(TINY, {"policy": {"model": str(model)}})
    for change in changes:
        base = merge(base, nested(change))
    return base


def write_yaml(path: Path, content: Mapping[str, Any]) -> Path:
    """Writes a configuration or study file."""
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))
    return path


def write_study(folder: Path, model: Path, **changes: Any) -> Path:
    """Writes a study file of two arms and one seed; ``changes`` replace whole keys."""
    content = {"name": "tiny", "baseline": "grpo", "seeds": [0], "base": tiny(model), "arms": ARMS}
    return write_yaml(folder / "study.yaml", content | changes)


def command(name: str, *arguments: str | Path) -> list[str]:
    """The command line of ``python -m envrl.experiments.<name>``."""
    return [sys.executable, "-m", f"envrl.experiments.{name}", *map(str, arguments)]


def call(name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end as a user would."""
    return subprocess.run(
        command(name, *arguments),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, **environment},
    )


def kill_when(
    arguments: Sequence[str], due: Callable[[], bool], *, limit_s: float = 400, whole_group: bool = False
) -> None:
    """Starts a command and kills it with SIGKILL as soon as ``due`` says so.

    Args:
        arguments: The command line.
        due: Asked every few milliseconds.
        limit_s: Fails the test if it is never due.
        whole_group: Kill the worker processes too, as a machine that goes down would.
    """
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + limit_s
        while not due():
            assert process.poll() is None, f"it ended before it was killed: {process.communicate()[0]}"
            assert time.monotonic() < deadline, "it never came as far as it should be killed at"
            time.sleep(0.005)
    finally:
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def require_gone(group: int) -> None:
    """No process of the command is left."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("processes of the command are still there after it has ended")
