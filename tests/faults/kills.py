"""Kills studies at chosen moments, and compares what is left in the end with a study that was not killed."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from mlflow.entities import Run

from envrl.analysis.records import load_records
from envrl.tracking.metrics import METRICS
from envrl.tracking.store import client, open_store

LAUNCHER = Path(__file__).with_name("kill_launcher.py")
KILLED = -9
_CUT_OFF = re.compile(r"\..+\.[a-z0-9_]{8}")
"""Name of a file that was being written; a kill just then leaves it, and nothing ever reads it."""
_CLOCK = {spec.name for spec in METRICS if spec.unit in ("s", "tokens/s")}


@dataclass(frozen=True)
class Moment:
    """When a process dies: at a call of what is at work then, or right after it."""

    name: str
    call: int = 1
    after: bool = False

    def __str__(self) -> str:
        return f"{'after' if self.after else 'at'} {self.name}, call {self.call}"


class Launcher:
    """The process that starts studies which die (``kill_launcher.py``).

    Attributes:
        log: What the studies print.
        at_work: What the last one was at when it was killed after some seconds.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.at_work = ""
        self._process = subprocess.Popen(
            [sys.executable, str(LAUNCHER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        assert self._answer() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def study(
        self,
        file: Path,
        root: Path,
        moment: Moment | None = None,
        seconds: float | None = None,
        iteration: int = 0,
    ) -> int:
        """Runs the command for a study, or goes on with it.

        Args:
            file: Study file.
            root: Its MLflow store and folders.
            moment: When to die.
            seconds: Or after how long to be killed.
            iteration: Which iteration's start these seconds count from, 1 being the first that is made; 0
                counts from the start of all.

        Returns:
            Its exit code, ``KILLED`` if it was killed.
        """
        request = {
            "arguments": ["--study", str(file), "--root", str(root)],
            "log": str(self.log),
            "moment": None if moment is None else moment.name,
            "call": 1 if moment is None else moment.call,
            "after": moment is not None and moment.after,
            "seconds": seconds,
            "iteration": iteration,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code, self.at_work = self._answer()
        assert code in (0, KILLED), self.log.read_text()
        return int(code)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the launcher died; {self.log}"
        return json.loads(line)


def left_by(root: Path, study: str = "tiny") -> dict[str, Any]:
    """All that a study has left and that must not depend on how often it was killed, by what it is."""
    folder = root / "studies" / study
    found: dict[str, Any] = {"results": _results(folder)}
    for record in load_records(folder):
        run = folder / "runs" / record.arm / f"seed_{record.seed}"
        state = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
        found |= {
            f"{record.arm}: record": record.model_dump(exclude={"seconds", "mlflow_run_id"}),
            f"{record.arm}: weights": {name: value.tolist() for name, value in state.items()},
            f"{record.arm}: episodes": {
                path.name: gzip.decompress(path.read_bytes()) for path in _whole_files(run / "episodes")
            },
            f"{record.arm}: files": {path.name for path in _whole_files(run)},
        }
    for run in mlflow_runs(root, study):
        found |= _in_mlflow(root, run)
    mlflow_client = client(open_store(root))
    for model in mlflow_client.search_registered_models():
        versions = mlflow_client.search_model_versions(f"name='{model.name}'")
        found[f"model {model.name}"] = [(v.version, v.tags) for v in versions], model.aliases
    return found


def _whole_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not _CUT_OFF.fullmatch(path.name)]


def mlflow_runs(root: Path, study: str = "tiny") -> list[Run]:
    """All its runs in MLflow, deleted ones left out."""
    mlflow_client = client(open_store(root))
    experiment = mlflow_client.get_experiment_by_name(study)
    return [] if experiment is None else list(mlflow_client.search_runs([experiment.experiment_id]))


def lost_or_doubled(root: Path, expected: list[str], study: str = "tiny") -> int:
    """Runs that MLflow does not have, or has more than once."""
    names = Counter(run.info.run_name for run in mlflow_runs(root, study))
    wanted = Counter(expected)
    return (wanted - names).total() + (names - wanted).total()


def _results(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    for arm in results["arms"].values():
        arm.pop("seconds")
    return {name: results[name] for name in ("arms", "panel", "comparisons")}


def _in_mlflow(root: Path, run: Run) -> dict[str, Any]:
    """Every point of every curve, so that one that stands there twice is seen; of wall times the steps."""
    mlflow_client, name, run_id = client(open_store(root)), run.info.run_name, run.info.run_id
    points = {
        metric: sorted(
            (point.step, None if metric in _CLOCK else repr(point.value))
            for point in mlflow_client.get_metric_history(run_id, metric)
        )
        for metric in run.data.metrics
        if not metric.startswith("system/")
    }
    traces = mlflow_client.search_traces(
        locations=[run.info.experiment_id], run_id=run_id, max_results=500, include_spans=False
    )
    told = ("arm", "seed", "iteration", "game", "won", "return", "stop")
    tags = ("env", "algorithm", "arm", "seed", "panel", "study", "notes")
    return {
        f"MLflow {name}: points": points,
        f"MLflow {name}: status": run.info.status,
        f"MLflow {name}: parameters": run.data.params,
        f"MLflow {name}: tags": {key: run.data.tags.get(key) for key in tags},
        f"MLflow {name}: artifacts": _artifacts(root, run_id),
        f"MLflow {name}: datasets": sorted(d.dataset.digest for d in run.inputs.dataset_inputs),
        f"MLflow {name}: traces": sorted(tuple(t.info.tags[key] for key in told) for t in traces),
    }


def _artifacts(root: Path, run_id: str, folder: str | None = None) -> list[str]:
    listed = client(open_store(root)).list_artifacts(run_id, folder)
    inner = [path for entry in listed if entry.is_dir for path in _artifacts(root, run_id, entry.path)]
    return sorted([entry.path for entry in listed if not entry.is_dir] + inner)


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs, down to the name of a curve or file."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted({*mine, *theirs}):
        first, second = mine.get(key), theirs.get(key)
        if first == second:
            continue
        if isinstance(first, dict) and isinstance(second, dict):
            inner = differences(first, second)
            found |= {f"{key}, {name}": pair for name, pair in inner.items()}
        else:
            found[key] = first, second
    return found
