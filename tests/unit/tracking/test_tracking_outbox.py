"""A store that goes away loses nothing and doubles nothing: kept on disk, delivered when it is back."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from envrl.errors import DataFault
from envrl.tracking import outbox as outboxes
from envrl.tracking import runs
from envrl.tracking.journal import Journal, Owner, journal_path, journals_below
from envrl.tracking.leftovers import deliver
from envrl.tracking.outbox import Outbox, close_outbox
from envrl.tracking.store import Store, client
from tracking_servers import false_server, free_port, remote

TAGS = {"env": "alfworld", "algorithm": "grpo", "arm": "grpo", "seed": "0", "panel": "abc"}
RUN = "1" * 32
OWNER = Owner("http://127.0.0.1:9", RUN, "grpo/seed_0")


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setattr(outboxes, "_FIRST_RETRY_S", 0.05)


def points(name: str, *values: float) -> dict[str, Any]:
    return {"kind": "metrics", "points": [[name, value, 1000 + n, n] for n, value in enumerate(values)]}


def history(store: Store, run_id: str, name: str) -> list[tuple[int, float, int]]:
    return [(m.step, m.value, m.timestamp) for m in client(store).get_metric_history(run_id, name)]


def open_run(store: Store) -> str:
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS) as run_id:
        pass
    return run_id


def test_what_a_server_refuses_to_be_asked_is_kept_and_delivered_once_it_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"status": 503, "calls": 0}

    def answer() -> int:
        state["calls"] += 1
        return state["status"]

    with false_server(answer) as uri:
        box = Outbox(remote(tmp_path, uri), RUN, tmp_path, "grpo/seed_0")
        for number in range(3):
            box.put(points("train/loss", float(number)))
        (kept,) = journals_below(tmp_path)
        assert len(kept.read_text().splitlines()) == 4, "whose it is, and three entries"
        state["status"] = 200
        assert box.close(10.0)
    assert journals_below(tmp_path) == []
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2, said
    assert f"{uri} is away" in said[0]
    assert str(kept) in said[0]
    assert said[1] == "warning: grpo/seed_0: MLflow is back, 3 log calls delivered"


def test_logging_to_an_address_where_nobody_listens_does_not_hold_up_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = remote(tmp_path, f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    for iteration in range(50):
        runs.log_metrics(store, RUN, {"train/loss": float(iteration)}, iteration)
    runs.log_text(store, RUN, "hello", "notes/hello.txt")
    assert time.monotonic() - started < 5.0
    assert not close_outbox(store, RUN, 0.1)
    (path,) = journals_below(tmp_path)
    entries = [json.loads(line)["entry"] for line in path.read_text().splitlines()[1:]]
    assert [e["points"][0][3] for e in entries[:50]] == list(range(50))
    assert entries[50] == {"kind": "text", "text": "hello", "name": "notes/hello.txt"}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "connection refused" in said[0]
    assert f"51 log calls could not be delivered to {store.uri}" in said[1]
    assert f"python -m envrl.experiments.deliver {path.parent}" in said[1]


def test_a_value_no_store_would_take_is_the_callers_error(store: Store) -> None:
    run_id = open_run(store)
    with pytest.raises(MlflowException, match=r"(?i)invalid"):
        runs.outbox(store, run_id).put({"kind": "metrics", "points": [["train/loss?", 1.0, 1000, 0]]})
    assert journals_below(store.root) == []


def test_delivery_cut_short_and_made_again_doubles_nothing(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store)
    owner = Owner(store.uri, run_id, "grpo/seed_0")
    text = tmp_path / "a.txt"
    text.write_text("a")
    entries: list[dict[str, Any]] = [
        points("train/loss", 1.0, float("nan"), 3.0),
        {"kind": "params", "params": {"loss.sp.weight": "0.2"}},
        {"kind": "tags", "tags": {"git_commit": "abc"}},
        {"kind": "text", "text": "hello", "name": "notes/hello.txt"},
        {"kind": "artifact", "path": str(text), "folder": "files"},
        {"kind": "status", "status": "KILLED", "time": 5000},
    ]
    for _ in range(2):
        # What a crash after delivery and before it was marked leaves: everything once more.
        journal = Journal(journal_path(tmp_path, run_id), owner)
        for entry in entries:
            journal.append(entry)
        journal.close()
        assert deliver(journal_path(tmp_path, run_id), store.uri) == 6
    assert journals_below(tmp_path) == []
    found = history(store, run_id, "train/loss")
    assert [(step, time) for step, _, time in found] == [(0, 1000), (1, 1001), (2, 1002)]
    assert [str(value) for _, value, _ in found] == ["1.0", "nan", "3.0"]
    run = client(store).get_run(run_id)
    assert (run.data.params, run.data.tags["git_commit"]) == ({"loss.sp.weight": "0.2"}, "abc")
    assert (run.info.status, run.info.end_time) == ("KILLED", 5000)
    assert [a.path for a in client(store).list_artifacts(run_id, "files")] == ["files/a.txt"]


def test_an_entry_that_is_refused_is_put_aside_and_the_rest_goes_on(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = open_run(store)
    runs.log_config(store, run_id, {"seed": 0})
    path = journal_path(tmp_path, run_id)
    journal = Journal(path, Owner(store.uri, run_id, "grpo/seed_0"))
    journal.append({"kind": "params", "params": {"seed": "1"}})
    journal.append(points("train/loss", 1.0))
    journal.close()
    assert deliver(path, store.uri) == 1
    assert history(store, run_id, "train/loss") == [(0, 1.0, 1000)]
    (aside,) = tmp_path.glob("*.refused.jsonl")
    assert json.loads(aside.read_text())["entry"] == {"kind": "params", "params": {"seed": "1"}}
    assert "MLflow refused params" in capsys.readouterr().err
    assert journals_below(tmp_path) == []


def test_a_run_that_goes_on_delivers_first_what_it_could_not(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store)
    journal = Journal(journal_path(tmp_path, run_id), Owner(store.uri, run_id, "grpo/seed_0"))
    journal.append(points("train/loss", 1.0))
    journal.append({"kind": "status", "status": "FAILED", "time": 5000})
    journal.close()
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS, run_id, tmp_path):
        assert client(store).get_run(run_id).info.status == "RUNNING"
        assert history(store, run_id, "train/loss") == [(0, 1.0, 1000)]
    assert client(store).get_run(run_id).info.status == "FINISHED"
    assert journals_below(tmp_path) == []


def test_a_run_is_not_begun_while_the_store_is_away(tmp_path: Path) -> None:
    store = remote(tmp_path, f"http://127.0.0.1:{free_port()}")
    for run_id in (None, RUN):
        with (
            pytest.raises(DataFault, match=r"away, and grpo/seed_0 was not begun; .* same command again"),
            runs.run_context(store, "quick", "grpo/seed_0", None, TAGS, run_id),
        ):
            raise AssertionError("it must not begin")


CRASHING = """
import os, signal, sys
from pathlib import Path
from envrl.tracking.journal import Journal, Owner, journal_path
journal = Journal(journal_path(Path(sys.argv[1]), "r"), Owner("u", "r", "n"))
for number in range(20):
    journal.append({"kind": "metrics", "points": [["train/loss", float(number), 1, number]]})
journal.done(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_every_entry_it_had_kept(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CRASHING, str(tmp_path)], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    path = journal_path(tmp_path, "r")
    with path.open("ab") as handle:
        handle.write(b'{"id": 21, "entry": {"kind": "met')  # half a line, as a full disk would leave it
    journal = Journal(path)
    assert journal.owner == Owner("u", "r", "n")
    assert len(journal) == 19
    with pytest.raises(DataFault, match="in use by a process that is still at work"):
        Journal(path)
    journal.append(points("train/loss", 7.0))
    seen = []
    while len(journal):
        number, entry = journal.first()
        seen.append(entry["points"][0][1])
        journal.done(number)
    assert seen == [*map(float, range(1, 20)), 7.0]
    journal.close()
    assert not path.exists()


@pytest.mark.parametrize("begun", ["", '{"uri": "sqli'])
def test_a_journal_that_a_crash_cut_off_before_its_first_line_holds_nothing(
    begun: str, store: Store, tmp_path: Path
) -> None:
    run_id = open_run(store)
    path = journal_path(tmp_path, run_id)
    path.write_text(begun)
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS, run_id, tmp_path):
        runs.log_metrics(store, run_id, {"train/loss": 1.0}, 1)
    assert not path.exists()
    assert [value for _, value, _ in history(store, run_id, "train/loss")] == [1.0]
    assert deliver(path, store.uri) == 0
    assert not path.exists()


def test_one_file_that_can_not_be_delivered_does_not_hold_up_the_others(store: Store, tmp_path: Path) -> None:
    run_id = open_run(store)
    for folder, owner in (("a", "2" * 32), ("b", run_id), ("c", "3" * 32)):
        journal = Journal(journal_path(tmp_path / folder, owner), Owner(store.uri, owner, folder))
        journal.append(points("train/loss", 1.0))
        journal.close()
    with pytest.raises(DataFault, match=r"does not have the run .*\(1 more files could not"):
        runs.deliver_below(tmp_path, store.uri)
    assert [path.parent.name for path in journals_below(tmp_path)] == ["a", "c"]
    assert len(history(store, run_id, "train/loss")) == 1


def test_uploads_have_more_time_than_other_requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from envrl.tracking import delivery

    seen: list[str] = []

    class Client:
        def log_artifact(self, *_: object) -> None:
            seen.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])

    entry = {"kind": "artifact", "path": str(tmp_path / "file"), "folder": None}
    for limit in (None, "7"):
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
        if limit is not None:
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", limit)
        delivery.limit_http_waits()
        delivery.send(Client(), RUN, entry)  # type: ignore[arg-type]
        seen.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    assert seen == ["600", "20", "7", "7"]


def test_a_broken_or_foreign_journal_is_named(store: Store, tmp_path: Path) -> None:
    path = journal_path(tmp_path, RUN)
    path.write_text('{"uri": "u"}\n')
    with pytest.raises(DataFault, match=r"mlflow_unsent_1+\.jsonl is broken"):
        deliver(path, store.uri)
    path.unlink()
    journal = Journal(path, Owner(store.uri, RUN, "grpo/seed_0"))
    journal.append(points("train/loss", 1.0))
    journal.close()
    with pytest.raises(DataFault, match=r"does not have the run .*--uri"):
        deliver(path, store.uri)
    with pytest.raises(DataFault, match=r"can't be reached .*1 log call stay"):
        deliver(path, f"http://127.0.0.1:{free_port()}", foreign=True)
    assert len(Journal(path)) == 1


def test_a_disk_that_fills_up_while_values_are_delivered_does_not_stop_the_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"status": 503}
    write = Journal._write

    def full(self: Journal, content: dict[str, Any], *, sync: bool = True) -> int:
        if "done" in content:
            raise OSError(28, "No space left on device")
        return write(self, content, sync=sync)

    with false_server(lambda: state["status"]) as uri:
        box = Outbox(remote(tmp_path, uri), RUN, tmp_path, "grpo/seed_0")
        for number in range(3):
            box.put(points("train/loss", float(number)))
        monkeypatch.setattr(Journal, "_write", full)
        state["status"] = 200
        assert box.close(10.0)
    assert journals_below(tmp_path) == []
    assert "MLflow is back, 3 log calls delivered" in capsys.readouterr().err
