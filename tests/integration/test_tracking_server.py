"""A real MLflow server that goes away while a run is at work: nothing is lost, nothing comes twice."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envrl.experiments import deliver
from envrl.tracking import runs
from envrl.tracking.datasets import games_dataset
from envrl.tracking.journal import journals_below
from envrl.tracking.store import Store, client, open_store
from envrl.types import Game
from studies import call, command, write_study
from support import checkpoint
from tracking_servers import MlflowServer, episode_of_one_turn, mlflow_server

pytestmark = [pytest.mark.usefixtures("own_places"), pytest.mark.slow]

TAGS = {"env": "alfworld", "algorithm": "grpo", "arm": "grpo", "seed": "0", "panel": "abc"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path / "server") as started:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", started.uri)
        yield started


def log_everything(store: Store, run_id: str, folder: Path, iteration: int) -> None:
    """One iteration's log calls of every kind."""
    runs.log_metrics(store, run_id, {"eval/success_rate": iteration / 10, "train/loss": 1.0}, iteration)
    logger = runs.lightning_logger(store, run_id)
    logger.log_metrics({"train/entropy": 0.5 + iteration, "iteration": float(iteration)}, step=99)
    runs.log_text(store, run_id, f"after {iteration}", f"notes/{iteration}.txt")
    (folder / f"file_{iteration}").write_text("x")
    runs.log_artifact(store, run_id, folder / f"file_{iteration}", "files")
    played = [episode_of_one_turn("go"), episode_of_one_turn("look")]
    runs.log_episodes(store, run_id, played, str, arm="grpo", seed=0, iteration=iteration)


def assert_all_once(store: Store, run_id: str, iterations: int) -> None:
    """Every value of :func:`log_everything` is there exactly once."""
    mlflow_client = client(store)
    expected = {
        "eval/success_rate": [n / 10 for n in range(iterations)],
        "train/loss": [1.0] * iterations,
        "train/entropy": [0.5 + n for n in range(iterations)],
    }
    for name, values in expected.items():
        found = mlflow_client.get_metric_history(run_id, name)
        assert sorted((m.step, m.value) for m in found) == list(enumerate(values)), name
    for folder in ("notes", "files"):
        assert len(mlflow_client.list_artifacts(run_id, folder)) == iterations
    run = mlflow_client.get_run(run_id)
    traces = mlflow_client.search_traces(
        locations=[run.info.experiment_id], run_id=run_id, max_results=500, include_spans=True
    )
    assert sorted(int(t.info.tags["iteration"]) for t in traces) == sorted([*range(iterations)] * 2)
    assert {len(t.data.spans) for t in traces} == {2}
    assert run.info.status == "FINISHED"


@pytest.mark.fault(
    "the MLflow server goes away in the middle of a run and comes back",
    "training goes on, and in the end the server has everything exactly once",
)
def test_a_server_that_goes_and_comes_back_has_everything_once(
    server: MlflowServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path / "mlruns")
    folder = tmp_path / "run"
    folder.mkdir()
    game = Game("g1", "alfworld", "valid_seen", "look_at_obj_in_light", "spec", 10)
    waits = []
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS, None, folder) as run_id:
        for iteration in range(9):
            if iteration == 3:
                server.kill()
                runs.log_config(store, run_id, {"loss": {"sp": 0.2}})
                runs.log_environment(store, run_id)
                runs.log_datasets(store, run_id, games_dataset("panel", "abc", [game], "evaluation"))
            if iteration == 6:
                assert len(journals_below(folder)) == 1
                server.start()
            started = time.monotonic()
            log_everything(store, run_id, folder, iteration)
            waits.append(time.monotonic() - started)
    assert max(waits[3:6]) < 15.0
    assert journals_below(tmp_path) == []
    assert_all_once(store, run_id, 9)
    run = client(store).get_run(run_id)
    assert run.data.params == {"loss.sp": "0.2"}
    assert run.data.tags["git_commit"]
    assert [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs] == [("panel", "abc")]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 2, said
    assert "is away" in said[0]
    assert "MLflow is back" in said[1]


def test_what_could_not_be_delivered_is_delivered_by_the_command(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path / "mlruns")
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setitem(runs._WAIT_S, "FINISHED", 0.1)
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS, None, folder) as run_id:
        log_everything(store, run_id, folder, 0)
        server.kill()
        log_everything(store, run_id, folder, 1)
    assert deliver.main([str(folder)]) == 2
    assert "can't be reached" in capsys.readouterr().err
    server.start()
    assert deliver.main([str(folder)]) == 0
    # Five of the iteration and the status; system metrics where the machine is slow.
    assert re.search(r"^([6-9]|\d\d) log calls delivered$", capsys.readouterr().out, re.M)
    assert deliver.main([str(folder)]) == 0
    assert "nothing was left to deliver" in capsys.readouterr().out
    assert_all_once(store, run_id, 2)


@pytest.mark.fault(
    "the MLflow server and the command of a study go down together",
    "what was logged lies on the disk; with the server back the same command delivers it and goes on",
)
def test_a_study_outlives_its_server(server: MlflowServer, tmp_path: Path) -> None:
    """The command itself, killed together with its server, then run again."""
    file, root = write_study(tmp_path, checkpoint(), arms={"grpo": None}), tmp_path / "mlruns"
    arguments = command("ablate", "--study", file, "--root", root)
    folder = root / "studies" / "tiny"
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    progress = folder / "runs" / "grpo" / "seed_0" / "progress.json"
    while not progress.is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    server.kill()
    while not journals_below(folder):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    refused = call("ablate", "--study", file, "--root", root)
    assert refused.returncode == 2
    assert f"the MLflow store {server.uri} can't be used" in refused.stderr
    server.start()
    done = call("ablate", "--study", file, "--root", root)
    assert done.returncode == 0, done.stderr
    assert "registered: models:/envrl-alfworld-" in done.stdout
    assert journals_below(root) == []
    record = json.loads((progress.parent / "record.json").read_text())
    store = Store(root, server.uri, None)
    mlflow_client = client(store)
    run = mlflow_client.get_run(record["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    rates = {m.step for m in mlflow_client.get_metric_history(run.info.run_id, "eval/success_rate")}
    assert rates == {0, 2, 3}
    traces = mlflow_client.search_traces(
        locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=500
    )
    assert sorted(t.info.tags["iteration"] for t in traces) == ["0", "0", "2", "2", "3", "3"]
    assert len(run.inputs.dataset_inputs) == 2
