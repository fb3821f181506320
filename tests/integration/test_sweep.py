"""A tiny sweep from the real command: its trials, its report, and that it can be killed at any time."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import optuna
import pytest
import yaml

from envrl.analysis.records import load_record, load_records
from envrl.experiments import sweep
from envrl.experiments.config import config_from
from envrl.experiments.sweep_search import attempts
from envrl.tracking.store import client, open_store
from studies import call, command, tiny, write_yaml
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")

SP, LR = "loss.sp.weight", "optim.lr"
SPACE = {SP: {"low": 0.01, "high": 0.5, "log": True}, LR: {"choices": [0.001, 0.0001]}}


@dataclass(frozen=True)
class FinishedSweep:
    """A tiny sweep of three trials that ran without a break."""

    file: Path
    root: Path
    folder: Path
    done: CompletedProcess[str]


def write_sweep(folder: Path, changes: Mapping[str, Any] | None = None, **run: Any) -> Path:
    base = tiny(checkpoint(), {"train.iterations": 2, "evaluation.every": 1, "evaluation.dynamics": 0}, run)
    content = {"name": "tiny", "base": base, "space": SPACE, "trials": 3, "enqueue": [{SP: 0.2, LR: 0.0001}]}
    return write_yaml(folder / "sweep.yaml", content | dict(changes or {}))


def study_of(root: Path) -> optuna.Study:
    return optuna.load_study(study_name="tiny", storage=f"sqlite:///{root / 'studies/tiny/optuna.db'}")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as handle:
        return list(csv.DictReader(handle))


def table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("┃", "│", "|"))]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, own_places: None) -> FinishedSweep:
    place = tmp_path_factory.mktemp("swept")
    file, root = write_sweep(place), place / "mlruns"
    done = call("sweep", "--study", file, "--root", root)
    return FinishedSweep(file, root, root / "studies" / "tiny", done)


def test_the_command_runs_all_trials_and_reports_them(swept: FinishedSweep) -> None:
    assert swept.done.returncode == 0, swept.done.stderr
    assert swept.done.stderr == ""
    assert "sweep tiny: 3 trials of 1 runs, panel of 6 games" in swept.done.stdout
    assert "trials: 3 complete" in swept.done.stdout
    assert len(table(swept.done.stdout)) == 4
    found = rows(swept.folder)
    assert [row["trial"] for row in found] == ["0", "1", "2"]
    records = load_records(swept.folder)
    assert [r.arm for r in records] == ["trial_0000", "trial_0001", "trial_0002"]
    for row, record in zip(found, records, strict=True):
        assert float(row["success"]) == record.evaluations[-1].success_rate
        assert float(row[SP]) == record.config["loss"]["sp"]["weight"]
        assert float(row[LR]) == record.config["optim"]["lr"]


def test_enqueued_settings_are_tried_first(swept: FinishedSweep) -> None:
    first, *others = rows(swept.folder)
    assert (float(first[SP]), float(first[LR])) == (0.2, 0.0001)
    assert all(0.01 <= float(row[SP]) <= 0.5 for row in others)


def test_the_best_configuration_can_be_trained(swept: FinishedSweep) -> None:
    best = max(rows(swept.folder), key=lambda row: (float(row["success"]), -int(row["trial"])))
    config = config_from(yaml.safe_load((swept.folder / "best.yaml").read_text()))
    assert config.loss.sp.weight == float(best[SP])
    printed = call("train", "--config", swept.folder / "best.yaml", "--print_config")
    assert printed.returncode == 0, printed.stderr
    assert yaml.safe_load(printed.stdout)["optim"]["lr"] == float(best[LR])


def test_mlflow_holds_the_report_and_the_runs(swept: FinishedSweep) -> None:
    mlflow_client = client(open_store(swept.root))
    experiment = mlflow_client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in mlflow_client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"tiny", *(f"trial_000{n}/seed_0" for n in range(3))}
    parent = runs.pop("tiny")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    found = mlflow_client.search_runs([experiment.experiment_id], "metrics.`trial/success` >= 0")
    assert {(r.info.run_name, r.data.tags["trial"]) for r in found} == {
        (f"trial_000{n}/seed_0", str(n)) for n in range(3)
    }
    listed = {a.path for a in mlflow_client.list_artifacts(parent.info.run_id)}
    assert {
        "best.yaml", "trials.csv", "sweep.json", "history.png", "slice.png", "parallel_coordinate.png",
        "timeline.png",
    } <= listed  # fmt: skip


def test_a_finished_sweep_is_left_alone_and_more_trials_can_be_added(
    swept: FinishedSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--study", str(swept.file), "--root", str(swept.root)]
    before = (swept.folder / "trials.csv").read_text()
    assert sweep.main(arguments) == 0
    said = capsys.readouterr().out
    assert "no trial is left to run" in said
    assert (swept.folder / "trials.csv").read_text() == before
    assert len(table(said)) == 4

    assert sweep.main([*arguments, "--trials", "4"]) == 0
    assert "trials: 4 complete" in capsys.readouterr().out
    assert (swept.folder / "trials.csv").read_text().startswith(before)
    assert len(rows(swept.folder)) == 4


def test_another_space_under_the_same_name_is_refused(
    swept: FinishedSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_yaml(tmp_path / "other.yaml", yaml.safe_load(swept.file.read_text()) | {"seeds": [1]})
    assert sweep.main(["--study", str(file), "--root", str(swept.root)]) == 2
    assert "holds another sweep 'tiny' (seeds: was [0], is [1])" in capsys.readouterr().err


@pytest.mark.fault(
    "a trial of a sweep fails",
    "it is marked as failed with its reason, and all other trials are made",
)
def test_a_bad_trial_is_pruned_and_a_failing_one_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The storage already holds a trial that won every game, so that the next ones are below the median."""
    space = {"policy.lora.targets": {"choices": ["all-linear", "knee_proj"]}}
    changes = {
        "space": space,
        "trials": 3,
        "enqueue": [{"policy.lora.targets": "all-linear"}, {"policy.lora.targets": "knee_proj"}],
        "pruner": {"kind": "median", "n_startup_trials": 0},
        "sampler": {"kind": "random"},
    }
    file, root = write_sweep(tmp_path, changes), tmp_path / "mlruns"
    from envrl.experiments.sweep_file import StorageSettings, load_sweep
    from envrl.experiments.sweep_search import open_search

    folder = root / "studies" / "tiny"
    settings = load_sweep(file)
    study = open_search(settings, StorageSettings(), folder).study
    study.add_trial(
        optuna.create_trial(
            params={"policy.lora.targets": "all-linear"},
            distributions={
                "policy.lora.targets": optuna.distributions.CategoricalDistribution(
                    ("all-linear", "knee_proj")
                )
            },
            value=1.0,
            intermediate_values={1: 1.0, 2: 1.0},
        )
    )
    assert sweep.main(["--study", str(file), "--root", str(root)]) == 1
    said = capsys.readouterr().out
    assert "trial_0000 pruned after 1 iterations of 2" in said
    assert "trial_0001 failed: policy.lora.targets 'knee_proj'" in said
    record = load_record(folder / "runs" / "trial_0000" / "seed_0" / "record.json")
    assert (record.status, record.error) == ("pruned", "pruned after 1 iterations of 2")
    mlflow_client = client(open_store(root))
    experiment = mlflow_client.get_experiment_by_name("tiny")
    (run,) = mlflow_client.search_runs([experiment.experiment_id], "tags.pruned = 'true'")
    assert (run.info.run_name, run.info.status) == ("trial_0000/seed_0", "FINISHED")
    assert [row["state"] for row in rows(folder)] == ["pruned", "fail", "complete"]


def worker_of(root: Path, parent: int) -> int | None:
    """A child of the command that holds a trial's lock."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rsplit(")", 1)[1].split()[1]) != parent:
                continue
            names = [os.readlink(fd) for fd in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(name.startswith(f"{root}/") and name.endswith(".trial.lock") for name in names):
            return int(process.name)
    return None


def iteration_of(folder: Path) -> int:
    try:
        return int(json.loads((folder / "runs/trial_0000/seed_0/progress.json").read_text())["iteration"])
    except (OSError, ValueError):
        return -1


@pytest.mark.fault(
    "a worker process of a sweep is killed",
    "the sweep says so and its trial goes on from its checkpoint",
)
@pytest.mark.slow
@pytest.mark.parametrize("stop", ["kill the worker", "ctrl-c"])
def test_a_trial_that_was_stopped_goes_on_from_its_checkpoint(stop: str, tmp_path: Path) -> None:
    import subprocess

    file = write_sweep(tmp_path, {"trials": 1}, **{"train.iterations": 6, "evaluation.every": 3})
    root = (tmp_path / "mlruns").resolve()
    folder = root / "studies" / "tiny"
    arguments = command("sweep", "--study", file, "--root", root)
    pipe = subprocess.PIPE
    process = subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        while iteration_of(folder) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        if stop == "ctrl-c":
            os.killpg(process.pid, signal.SIGINT)
        else:
            worker = worker_of(root, process.pid)
            assert worker is not None
            os.kill(worker, signal.SIGKILL)
        out, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    if stop == "ctrl-c":
        assert process.returncode == 130
        assert "run the same command again" in errors
        assert call("sweep", "--study", file, "--root", root).returncode == 0
    else:
        assert process.returncode == 0, errors
        assert "a worker process died; its trial goes on from its checkpoint" in out
    (attempt,) = attempts(study_of(root))
    assert (attempt.number, attempt.last.number, attempt.last.state.name) == (0, 1, "COMPLETE")
    assert [path.name for path in (folder / "runs").iterdir()] == ["trial_0000"]
    record = load_record(folder / "runs/trial_0000/seed_0/record.json")
    assert (record.status, len(record.training_success)) == ("finished", 6)
    mlflow_client = client(open_store(root))
    experiment = mlflow_client.get_experiment_by_name("tiny")
    assert len(mlflow_client.search_runs([experiment.experiment_id])) == 2


def test_two_objectives_and_two_workers_on_a_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"objectives": ["success", "seconds"], "sampler": {"kind": "nsga2"}, "trials": 2}
    file, root = write_sweep(tmp_path, changes), tmp_path / "mlruns"
    storage = f"journal:{tmp_path / 'journal.log'}"
    arguments = ["--study", str(file), "--root", str(root), "--workers", "2", "--storage", storage]
    assert sweep.main(arguments) == 0
    said = capsys.readouterr().out
    assert "Pareto front" in said
    assert "trials: 2 complete" in said
    folder = root / "studies" / "tiny"
    assert (folder / "pareto_front.png").stat().st_size > 1000
    assert {row["state"] for row in rows(folder)} == {"complete"}
    assert all(float(row["seconds"]) > 0 for row in rows(folder))
