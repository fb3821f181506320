"""What a store's answers mean: it is away, it fails, or it refuses a value that must hold up nothing else."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException, RestException

from envrl.tracking import runs
from envrl.tracking.delivery import is_away, is_failing, send
from envrl.tracking.journal import Journal, Owner, journal_path
from envrl.tracking.leftovers import empty
from envrl.tracking.store import Store, client
from tracking_servers import false_server, free_port, remote

RUN = "1" * 32


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


def points(value: float) -> dict[str, Any]:
    return {"kind": "metrics", "points": [["train/loss", value, 1000, 0]]}


def left(folder: Path, *entries: dict[str, Any]) -> Journal:
    journal = Journal(journal_path(folder, RUN), Owner("u", RUN, "grpo/seed_0"))
    for entry in entries:
        journal.append(entry)
    return journal


@pytest.mark.parametrize(
    ("status", "away", "failing"),
    [(s, True, False) for s in (408, 429, 502, 503, 504)] + [(500, True, True), (521, True, True)],
)
def test_what_a_server_answers_that_is_away_or_fails(
    status: int, away: bool, failing: bool, tmp_path: Path
) -> None:
    with false_server(lambda: status) as uri, pytest.raises(MlflowException) as caught:
        send(client(remote(tmp_path, uri)), RUN, points(1.0))
    assert (is_away(caught.value), is_failing(caught.value)) == (away, failing)


@pytest.mark.parametrize(
    ("code", "away", "failing"),
    [
        *(("TEMPORARILY_UNAVAILABLE", True, False), ("DEADLINE_EXCEEDED", True, False)),
        *(("REQUEST_LIMIT_EXCEEDED", True, False), ("INTERNAL_ERROR", True, True)),
        *(("INVALID_PARAMETER_VALUE", False, False), ("RESOURCE_DOES_NOT_EXIST", False, False)),
        ("NOT_IMPLEMENTED", False, False),
    ],
)
def test_what_a_server_says_of_itself(code: str, away: bool, failing: bool) -> None:
    fault = RestException({"error_code": code, "message": "so it is"})
    assert (is_away(fault), is_failing(fault)) == (away, failing)


def test_a_store_nobody_listens_at_and_a_database_that_fails_are_away(store: Store, tmp_path: Path) -> None:
    with pytest.raises(MlflowException) as refused:
        send(client(remote(tmp_path, f"http://127.0.0.1:{free_port()}")), RUN, points(1.0))
    assert (is_away(refused.value), is_failing(refused.value)) == (True, False)
    run_id = runs.start_study(store, "quick", "study", {})
    with closing(sqlite3.connect(store.root / "mlflow.db")) as database:
        database.execute("DROP TABLE metrics")
    with pytest.raises(MlflowException) as failed:
        send(client(store), run_id, points(1.0))
    assert (is_away(failed.value), is_failing(failed.value)) == (True, False)


def test_what_mlflow_refuses_on_its_own_is_not_away(store: Store) -> None:
    run_id = runs.start_study(store, "quick", "study", {})
    with pytest.raises(MlflowException, match="Invalid artifact path") as caught:
        send(client(store), run_id, {"kind": "text", "text": "t", "name": "../../../x"})
    assert caught.value.get_http_status_code() == 500
    assert not is_away(caught.value)


class Server:
    """Plays a script: what it says to each log call and each question, in turn; None is yes."""

    def __init__(self, logged: list[Exception | None], asked: list[Exception | None]) -> None:
        self.taken: list[float] = []
        self._logged, self._asked = logged, asked

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        fault = self._logged.pop(0)
        if fault is not None:
            raise fault
        self.taken.append(metrics[0].value)

    def get_run(self, run_id: str) -> None:
        fault = self._asked.pop(0)
        if fault is not None:
            raise fault


def failed() -> Exception:
    return RestException({"error_code": "INTERNAL_ERROR", "message": "Internal Server Error"})


def test_a_value_that_a_server_stumbles_over_holds_up_nothing(tmp_path: Path) -> None:
    server = Server([failed(), failed(), failed(), None], [None] * 3)
    journal = left(tmp_path, points(1.0), points(2.0))
    assert empty(journal, server) == 1  # type: ignore[arg-type]
    journal.close()
    assert server.taken == [2.0]
    (aside,) = tmp_path.iterdir()
    kept = json.loads(aside.read_text())
    assert (kept["entry"], kept["reason"]) == (points(1.0), "INTERNAL_ERROR: Internal Server Error")


def test_a_server_that_fails_now_and_then_gets_the_value_again(tmp_path: Path) -> None:
    server = Server([failed(), failed(), None], [None, None])
    journal = left(tmp_path, points(1.0))
    assert empty(journal, server) == 1  # type: ignore[arg-type]
    assert server.taken == [1.0]
    assert journal.refused == 0
    journal.close()


def test_a_server_that_fails_at_everything_is_away_and_nothing_is_put_aside(tmp_path: Path) -> None:
    server = Server([failed()], [failed()])
    journal = left(tmp_path, points(1.0), points(2.0))
    with pytest.raises(RestException) as caught:
        empty(journal, server)  # type: ignore[arg-type]
    assert is_away(caught.value)
    assert (len(journal), journal.refused) == (2, 0)
    journal.close()
