"""Studies and runs in a real MLflow store: opened, continued, ended, never doubled."""

import os
import subprocess
import time
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from mlflow.exceptions import MlflowException
from torch.utils.data import DataLoader

from envrl.errors import ConfigFault, DataFault
from envrl.tracking import runs
from envrl.tracking.delivery import send
from envrl.tracking.journal import Entry
from envrl.tracking.store import Store, client, quiet_mlflow

TAGS = {"env": "alfworld", "algorithm": "grpo", "arm": "grpo", "seed": "0", "panel": "abc"}


def open_run(store: Store, parent: str | None = None, run_id: str | None = None) -> str:
    with runs.run_context(store, "quick", "grpo/seed_0", parent, TAGS, run_id) as opened:
        pass
    return opened


def open_run_without_end(store: Store, parent: str) -> str:
    experiment = client(store).get_run(parent).info.experiment_id
    return str(client(store).create_run(experiment).info.run_id)


def count_runs(store: Store) -> int:
    experiment = client(store).get_experiment_by_name("quick")
    assert experiment is not None
    return len(client(store).search_runs([experiment.experiment_id]))


def test_child_run_belongs_to_its_study_and_carries_its_tags(store: Store) -> None:
    parent = runs.start_study(store, "quick", "study", {"env": "alfworld"})
    child = open_run(store, parent)
    runs.finish_study(store, parent)
    run = client(store).get_run(child)
    assert TAGS.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert (run.info.run_name, run.info.status) == ("grpo/seed_0", "FINISHED")
    assert client(store).get_run(parent).info.status == "FINISHED"


def test_system_metrics_are_logged_into_the_same_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS) as run_id:
        logger = runs.lightning_logger(store, run_id)
        logger.log_metrics({"eval/success_rate": 0.25, "iteration": 0.0}, step=9)
        logger.finalize("success")
        assert client(store).get_run(run_id).info.status == "RUNNING"
        time.sleep(0.8)
    metrics = client(store).get_run(run_id).data.metrics
    assert metrics["eval/success_rate"] == 0.25
    assert metrics["system/system_memory_usage_megabytes"] > 0
    assert count_runs(store) == 1


@pytest.mark.fault(
    "two runs name the same games to MLflow at the same moment, and it refuses one of them",
    "both runs have them",
)
def test_runs_that_begin_together_share_their_data_sets(store: Store) -> None:
    parent = runs.start_study(store, "quick", "study", {})
    opened = [open_run_without_end(store, parent) for _ in range(2)]
    faults: list[Exception] = []

    def log(run_id: str, entry: Entry, together: Barrier) -> None:
        together.wait()
        try:
            send(client(store), run_id, entry)
        except MlflowException as fault:
            faults.append(fault)

    for number in range(20):  # without a second try about every second one fails
        dataset = {"name": f"games-{number}", "digest": "1", "source_type": "code", "source": "{}"}
        entry = {"kind": "inputs", "datasets": [{"context": "eval", "dataset": dataset}]}
        together = Barrier(2)
        threads = [Thread(target=log, args=(run_id, entry, together)) for run_id in opened]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not faults
    for run_id in opened:
        named = [one.dataset.name for one in client(store).get_run(run_id).inputs.dataset_inputs]
        assert sorted(named) == sorted(f"games-{number}" for number in range(20))


def test_data_sets_of_a_run_that_was_deleted_are_refused(store: Store) -> None:
    gone = open_run(store)
    client(store).delete_run(gone)
    dataset = {"name": "games", "digest": "1", "source_type": "code", "source": "{}"}
    with pytest.raises(MlflowException, match="deleted"):
        send(client(store), gone, {"kind": "inputs", "datasets": [{"context": "eval", "dataset": dataset}]})


def test_exception_fails_the_run_and_ctrl_c_kills_it(store: Store) -> None:
    ids = {}
    for exception in (RuntimeError, KeyboardInterrupt):
        with (
            pytest.raises(exception),
            runs.run_context(store, "quick", "broken", None, TAGS) as ids[exception],
        ):
            raise exception
    assert client(store).get_run(ids[RuntimeError]).info.status == "FAILED"
    assert client(store).get_run(ids[KeyboardInterrupt]).info.status == "KILLED"


def test_continued_run_keeps_its_id_and_what_it_logged(store: Store) -> None:
    parent = runs.start_study(store, "quick", "study", {})
    first = open_run(store, parent)
    runs.log_metrics(store, first, {"eval/success_rate": 0.25}, iteration=0)
    assert runs.start_study(store, "quick", "study", {}, run_id=parent) == parent
    with runs.run_context(store, "quick", "grpo/seed_0", parent, TAGS, run_id=first) as second:
        assert client(store).get_run(second).info.status == "RUNNING"
        runs.log_metrics(store, second, {"eval/success_rate": 0.5}, iteration=1)
    assert second == first
    history = client(store).get_metric_history(first, "eval/success_rate")
    assert [(point.step, point.value) for point in history] == [(0, 0.25), (1, 0.5)]
    assert count_runs(store) == 2


def test_run_that_is_not_in_the_store(store: Store) -> None:
    with pytest.raises(DataFault, match=r"run 0{32} is not in the MLflow store .*start it anew"):
        open_run(store, run_id="0" * 32)
    deleted = open_run(store)
    client(store).delete_run(deleted)
    with pytest.raises(DataFault, match="is deleted"):
        open_run(store, run_id=deleted)


def test_find_run_by_name_and_parent(store: Store) -> None:
    assert runs.find_run(store, "quick", "grpo/seed_0") is None
    parents = [runs.start_study(store, "quick", name, {}) for name in ("one", "two")]
    children = [open_run(store, parent) for parent in parents]
    assert [runs.find_run(store, "quick", "grpo/seed_0", parent) for parent in parents] == children
    assert runs.find_run(store, "quick", "two") == parents[1]
    assert runs.find_run(store, "quick", "three") is None


def test_global_tracking_address_is_put_back(store: Store) -> None:
    mlflow = quiet_mlflow()
    before = mlflow.get_tracking_uri()
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS):
        assert mlflow.get_tracking_uri() == store.uri
    assert mlflow.get_tracking_uri() == before
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert mlflow.active_run() is None


def test_logger_outside_of_a_run_leaves_the_global_address_alone(store: Store) -> None:
    run_id = open_run(store)
    runs.lightning_logger(store, run_id).log_metrics({"train/loss": 1.0, "epoch": 3.0}, step=4)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert client(store).get_run(run_id).data.metrics["train/loss"] == 1.0


class Counting(LightningModule):
    """Two updates an epoch; logs the iteration as the training module does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.log("train/loss", float(self.current_epoch) * 10, on_step=False, on_epoch=True)
        self.log("iteration", float(self.current_epoch + 1), on_step=False, on_epoch=True)
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_logs_at_iterations_into_the_open_run(store: Store, tmp_path: Path) -> None:
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS) as run_id:
        trainer = Trainer(
            max_epochs=3,
            logger=runs.lightning_logger(store, run_id),
            default_root_dir=tmp_path,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=1,
        )
        trainer.fit(Counting(), DataLoader(torch.ones(2, 1)))
        assert client(store).get_run(run_id).info.status == "RUNNING"
    history = client(store).get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.0), (2, 10.0), (3, 20.0)]
    assert "epoch" not in client(store).get_run(run_id).data.metrics
    assert count_runs(store) == 1


def test_unlisted_metric_is_refused_and_nothing_is_logged(store: Store) -> None:
    run_id = open_run(store)
    with pytest.raises(
        ConfigFault, match="'eval/sucess_rate' is not listed; did you mean 'eval/success_rate'"
    ):
        runs.log_metrics(store, run_id, {"train/loss": 1.0, "eval/sucess_rate": 0.5}, iteration=0)
    assert client(store).get_run(run_id).data.metrics.keys() & {"train/loss", "eval/sucess_rate"} == set()


def test_long_parameters_are_cut_and_whole_in_the_yaml(store: Store) -> None:
    run_id = open_run(store)
    config = {
        "policy": {"model": "tiny", "note": "x" * 300},
        "seeds": [0, 1],
        "many": {f"key_{number}": number for number in range(120)},
    }
    runs.log_config(store, run_id, config)
    params = client(store).get_run(run_id).data.params
    assert len(params) == 123
    assert params["policy.note"] == "x" * 250
    assert (params["policy.model"], params["seeds"], params["many.key_119"]) == ("tiny", "[0, 1]", "119")
    path = client(store).download_artifacts(run_id, "config.yaml")
    assert yaml.safe_load(Path(path).read_text()) == config


def test_same_configuration_again_is_fine_and_another_is_refused(store: Store) -> None:
    run_id = open_run(store)
    runs.log_config(store, run_id, {"loss": {"lambda_sp": 0.2}})
    runs.log_config(store, run_id, {"loss": {"lambda_sp": 0.2}, "extra": 1})
    with pytest.raises(
        DataFault, match=r"started with loss\.lambda_sp='0\.2' and can't continue with '0\.5'"
    ):
        runs.log_config(store, run_id, {"loss": {"lambda_sp": 0.5}})
    path = client(store).download_artifacts(run_id, "config.yaml")
    assert yaml.safe_load(Path(path).read_text()) == {"loss": {"lambda_sp": 0.2}, "extra": 1}


def test_environment_and_artifacts(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store)
    runs.log_environment(store, run_id)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    runs.log_artifact(store, run_id, tmp_path / "folder", "whole")
    runs.log_artifact(store, run_id, tmp_path / "folder" / "a.txt", "single")
    names = [
        a.path for folder in (None, "whole", "single") for a in client(store).list_artifacts(run_id, folder)
    ]
    assert names == ["environment.yaml", "single", "whole", "whole/a.txt", "single/a.txt"]
    versions = yaml.safe_load(Path(client(store).download_artifacts(run_id, "environment.yaml")).read_text())
    assert versions["torch"] == torch.__version__
    assert {"python", "lightning", "transformers", "peft", "alfworld", "mlflow"} <= versions.keys()
    assert client(store).get_run(run_id).data.tags["git_commit"]


def test_git_commit_tells_clean_dirty_and_foreign(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    tracked, foreign = tmp_path / "code.py", tmp_path / "installed.py"
    tracked.write_text("1\n")
    foreign.write_text("1\n")
    git("add", "code.py")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert runs.git_commit(tracked) == commit
    assert runs.git_commit(foreign) is None
    tracked.write_text("2\n")
    assert runs.git_commit(tracked) == f"{commit}-dirty"
    assert runs.git_commit(tmp_path / "nowhere" / "x.py") is None
