"""Opening MLflow's store: where it lies, two processes at once, and every way it can be unusable."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from envrl.errors import DataFault
from envrl.tracking import runs
from envrl.tracking.store import Store, client, experiment_id, open_store

WRITER = """
import sys
from pathlib import Path
from envrl.tracking import runs
store = runs.open_store(Path(sys.argv[1]))
with runs.run_context(store, "shared", sys.argv[2], None, {"arm": "a", "seed": sys.argv[2]}) as run_id:
    for iteration in range(60):
        runs.log_metrics(store, run_id, {"eval/success_rate": iteration / 100, "train/loss": 1.0}, iteration)
    runs.log_text(store, run_id, "hello", "notes/hello.txt")
print(run_id)
"""


def write_from_two_processes(root: Path) -> list[str]:
    """Runs the writer twice at the same time; returns the run ids. Nothing else may be printed."""
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=root.parent,
        )
        for name in ("0", "1")
    ]
    ids = []
    for writer in writers:
        out, err = writer.communicate(timeout=120)
        assert (writer.returncode, err) == (0, "")
        assert len(out.splitlines()) == 1, f"chatter on the console: {out}"
        ids.append(out.strip())
    return ids


def assert_complete(store: Store, run_id: str) -> None:
    history = client(store).get_metric_history(run_id, "eval/success_rate")
    assert sorted(point.step for point in history) == list(range(60))
    assert client(store).get_run(run_id).info.status == "FINISHED"
    assert [a.path for a in client(store).list_artifacts(run_id, "notes")] == ["notes/hello.txt"]


def test_store_is_one_database_and_one_folder_below_the_root(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    assert store.uri == f"sqlite:///{root}/mlflow.db"
    assert store.artifact_uri == f"file://{root}/artifacts"
    assert (root / "artifacts").is_dir()


def test_opening_again_keeps_the_runs(store: Store, store_root: Path) -> None:
    run_id = runs.start_study(store, "kept", "study", {})
    again = open_store(store_root)
    assert again == store
    assert client(again).get_run(run_id).info.run_name == "study"


def test_root_may_be_relative_and_nothing_is_left_beside_it(
    store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = open_store(Path("mlruns"))
    run_id = runs.start_study(relative, "here", "study", {})
    runs.log_text(relative, run_id, "x", "note.txt")
    assert relative.uri == f"sqlite:///{store_root}/mlflow.db"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlruns"]
    assert len(list((store_root / "artifacts").rglob("note.txt"))) == 1


def test_two_processes_write_to_one_store(store: Store, store_root: Path) -> None:
    for run_id in write_from_two_processes(store_root):
        assert_complete(store, run_id)


@pytest.mark.slow
def test_two_processes_create_one_store(tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    ids = write_from_two_processes(root)
    store = open_store(root)
    assert len(set(ids)) == 2
    for run_id in ids:
        assert_complete(store, run_id)


def test_tracking_uri_of_the_environment_wins(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    opened = open_store(tmp_path / "unused")
    assert (opened.uri, opened.artifact_uri) == (store.uri, None)
    assert not (tmp_path / "unused").exists()


def test_own_address_in_the_environment_keeps_the_artifact_folder(
    store: Store, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert open_store(store_root) == store


def test_unreachable_server_is_named_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    started = time.monotonic()
    with pytest.raises(DataFault, match=r"http://127\.0\.0\.1:9 can't be used"):
        open_store(tmp_path)
    assert time.monotonic() - started < 60.0
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0", "what the user has set is kept"


def test_file_store_in_the_environment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://store")
    with pytest.raises(DataFault, match="nonsense://store can't be used"):
        open_store(tmp_path)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_file_in_the_place_of_the_root(tmp_path: Path, below: str) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("mine")
    with pytest.raises(DataFault, match=r"blocker.* can't be written .*choose another folder"):
        open_store(blocker / below)
    assert blocker.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folder_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataFault, match="can't be written"):
            open_store(tmp_path / "mlruns")
    finally:
        tmp_path.chmod(0o700)


def test_broken_database_is_named_at_once_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database at all" * 100)
    started = time.monotonic()
    with pytest.raises(DataFault, match=r"mlflow\.db is not a database MLflow can write"):
        open_store(tmp_path)
    assert time.monotonic() - started < 5.0
    assert (tmp_path / "mlflow.db").read_bytes() == b"this is no database at all" * 100


def test_database_of_another_mlflow_version(store_root: Path) -> None:
    with closing(sqlite3.connect(store_root / "mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
        connection.commit()
    with pytest.raises(DataFault, match=r"can't be used: .*schema.*store of this MLflow version"):
        open_store(store_root)


def test_experiment_is_made_once_and_a_deleted_one_is_refused(store: Store) -> None:
    first = experiment_id(store, "quick")
    assert experiment_id(store, "quick") == first
    client(store).delete_experiment(first)
    with pytest.raises(DataFault, match=r"'quick' .* is deleted; restore it"):
        experiment_id(store, "quick")
