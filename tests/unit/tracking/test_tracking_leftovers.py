"""Journals that ended processes have left: whose they are, and what they may name."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from envrl.errors import DataFault
from envrl.experiments import deliver as command
from envrl.tracking import runs
from envrl.tracking.journal import Journal, Owner, journal_path, journals_below
from envrl.tracking.leftovers import deliver
from envrl.tracking.outbox import Outbox
from envrl.tracking.store import Store, client, open_store
from tracking_servers import free_port, remote

TAGS = {"env": "alfworld", "algorithm": "grpo", "arm": "grpo", "seed": "0", "panel": "abc"}
RUN = "1" * 32


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


def open_run(store: Store) -> str:
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS) as run_id:
        pass
    return run_id


def points(value: float) -> dict[str, Any]:
    return {"kind": "metrics", "points": [["train/loss", value, 1000, 0]]}


def leave(folder: Path, uri: str, run_id: str, *entries: dict[str, Any]) -> Path:
    """The journal of a process that ended while its store was away."""
    journal = Journal(journal_path(folder, run_id), Owner(uri, run_id, "grpo/seed_0"))
    for entry in entries:
        journal.append(entry)
    journal.close()
    return journal.path


def losses(store: Store, run_id: str) -> list[float]:
    return [m.value for m in client(store).get_metric_history(run_id, "train/loss")]


def reasons(folder: Path) -> list[str]:
    """Why entries were put aside."""
    (aside,) = folder.glob("*.refused.jsonl")
    return [json.loads(line)["reason"] for line in aside.read_text().splitlines()]


# Whose they are


def test_a_command_delivers_to_its_own_store_alone(store: Store, tmp_path: Path) -> None:
    theirs = open_store(tmp_path / "theirs")
    run_id = open_run(theirs)
    study = tmp_path / "study"
    study.mkdir()
    (study / "notes.txt").write_text("mine")
    artifact = {"kind": "artifact", "path": str(study / "notes.txt"), "folder": "got"}
    path = leave(study, theirs.uri, run_id, points(1.0), artifact)
    said = io.StringIO()
    command.deliver_left(study, store.uri, Console(file=said, width=1000))
    assert "not delivered to MLflow: " in said.getvalue()
    assert f"{path} is meant for the MLflow store '{theirs.uri}' and not for {store.uri}" in said.getvalue()
    assert f"`python -m envrl.experiments.deliver {study} --uri ADDRESS`" in said.getvalue()
    assert losses(theirs, run_id) == []
    assert client(theirs).list_artifacts(run_id) == []
    assert path.is_file()
    said.truncate(0)
    command.deliver_left(study, theirs.uri, Console(file=said, width=1000))
    assert "2 log calls of earlier runs delivered" in said.getvalue()
    assert losses(theirs, run_id) == [1.0]


def test_the_command_delivers_elsewhere_only_where_it_is_told_to(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = open_store(tmp_path / "theirs")
    (run_id, own) = open_run(theirs), open_run(store)
    leave(tmp_path / "mlruns" / "a", theirs.uri, run_id, points(1.0))
    leave(tmp_path / "mlruns" / "b", store.uri, own, points(2.0))
    assert command.main([]) == 2, "the store below mlruns is meant"
    assert f"is meant for the MLflow store '{theirs.uri}'" in capsys.readouterr().err
    assert (losses(theirs, run_id), losses(store, own)) == ([], [2.0])
    assert command.main(["--uri", theirs.uri]) == 0
    assert losses(theirs, run_id) == [1.0]
    path = leave(tmp_path / "mlruns" / "a", theirs.uri, run_id, points(3.0))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs.uri)
    assert command.main([str(path.parent)]) == 0
    assert losses(theirs, run_id) == [1.0, 3.0]


def test_a_run_whose_store_has_another_address_now_goes_on(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store)
    leave(tmp_path, "http://former.example", run_id, points(1.0))
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS, run_id, tmp_path):
        assert losses(store, run_id) == [1.0]


# What they may name


@pytest.mark.parametrize(
    "kind", ["file", "parent", "link", "folder of links", "folder linked", "pipe", "gone"]
)
def test_only_files_of_the_journals_folder_are_uploaded(
    kind: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = open_run(store)
    secrets, folder = tmp_path / "secrets", tmp_path / "study" / "runs" / "x"
    for made in (secrets, folder / "adapter"):
        made.mkdir(parents=True)
    (secrets / "secret.txt").write_text("secret")
    path = {
        "file": secrets / "secret.txt",
        "parent": folder / ".." / ".." / ".." / "secrets",
        "folder of links": folder / "adapter",
    }.get(kind, folder / "named")
    match kind:
        case "link":
            path.symlink_to(secrets / "secret.txt")
        case "folder of links":
            (folder / "adapter" / "weights").symlink_to(secrets)
        case "folder linked":
            path.symlink_to(secrets)
        case "pipe":
            os.mkfifo(path)
    left = leave(
        folder, store.uri, run_id, {"kind": "artifact", "path": str(path), "folder": "got"}, points(1.0)
    )
    assert deliver(left, store.uri) == 1
    assert client(store).list_artifacts(run_id) == []
    assert losses(store, run_id) == [1.0], "what comes after it is delivered"
    assert len(reasons(folder)) == 1
    said = capsys.readouterr().err
    assert said.count("artifact is not delivered") == 1
    assert any(word in said for word in ("lies outside of", "is a link, a device or a pipe", "can't be read"))


def test_files_of_the_folder_are_uploaded_also_through_a_linked_folder(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store)
    disk, study = tmp_path / "disk", tmp_path / "study"
    (disk / "adapter").mkdir(parents=True)
    (disk / "adapter" / "weights").write_text("w")
    study.symlink_to(disk)
    entry = {"kind": "artifact", "path": str((study / "adapter").resolve()), "folder": "adapter"}
    assert deliver(leave(study, store.uri, run_id, entry), store.uri) == 1
    assert [a.path for a in client(store).list_artifacts(run_id, "adapter")] == ["adapter/weights"]


BAD_NAMES = [
    *("", "/etc/x", "../x", "../../../x", "a/../../x", "a/./b", "a//b", "a/", "a\\b", "a#b", "a\nb"),
    *("%2e%2e/x", "%252e%252e/x", "a\x00b"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leads_elsewhere_is_refused_before_it_is_logged_and_in_a_journal(
    name: str, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    text = {"kind": "text", "text": "t", "name": name}
    artifact = {"kind": "artifact", "path": str(tmp_path / "file"), "folder": name}
    nowhere = Outbox(remote(tmp_path, f"http://127.0.0.1:{free_port()}"), RUN, tmp_path, "grpo/seed_0")
    for entry in (text, artifact):
        with pytest.raises(DataFault, match="can't be the name of an artifact"):
            nowhere.put(entry)
    assert journals_below(tmp_path) == []
    run_id = open_run(store)
    assert deliver(leave(tmp_path, store.uri, run_id, text, artifact, points(1.0)), store.uri) == 1
    assert client(store).list_artifacts(run_id) == []
    assert len(reasons(tmp_path)) == 2


def test_what_could_not_be_delivered_later_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("x")
    folder = tmp_path / "run"
    box = Outbox(remote(tmp_path, f"http://127.0.0.1:{free_port()}"), RUN, folder, "grpo/seed_0")
    with pytest.raises(DataFault, match=r"elsewhere' lies outside of .*run, and only files of the run's own"):
        box.put({"kind": "artifact", "path": str(tmp_path / "elsewhere"), "folder": None})
    assert journals_below(tmp_path) == []
    assert box.close(0.1)


def test_nonsense_is_put_aside_and_told_of_once(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = open_run(store)
    nonsense = [
        {"kind": "\x1b[2Jshell"},
        {"kind": "text"},
        {"kind": "artifact", "path": 7, "folder": None},
        {"kind": "metrics", "points": [[{}, [], None, "x"]]},
        {"kind": "inputs", "datasets": [{"dataset": {"x": 1}, "context": 1}]},
        {"kind": "traces", "infos": [1], "spans": [], "experiment_id": "0"},
        {"kind": "status", "status": "ASLEEP", "time": 1},
    ]
    assert deliver(leave(tmp_path, store.uri, run_id, *nonsense, points(1.0)), store.uri) == 1
    assert losses(store, run_id) == [1.0]
    assert len(reasons(tmp_path)) == len(nonsense)
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert "\x1b" not in said
