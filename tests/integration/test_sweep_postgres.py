"""Sweeps on a PostgreSQL server that the test starts: several machines, kills, a server that goes away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from envrl.errors import ConfigFault, DataFault
from envrl.experiments import sweep_storage
from envrl.experiments.sweep_file import StorageSettings
from envrl.experiments.sweep_search import Search, attempts, open_search
from envrl.experiments.sweep_space import Choices, Parameter, Space
from sweep_stub import RANK, method, stub_settings

SCRIPT = Path(__file__).resolve().parents[1] / "sweep_stub.py"
PASSWORD = "pw-of-the-test"


@dataclass(frozen=True)
class Server:
    """A running PostgreSQL server in a temporary folder."""

    programs: Path
    folder: Path
    port: int

    def url(self, database: str = "postgres", password: str = PASSWORD, port: int | None = None) -> str:
        return f"postgresql://sweeper:{password}@127.0.0.1:{port or self.port}/{database}"

    def control(self, *arguments: str) -> None:
        as_nobody(self.programs / "pg_ctl", "-D", self.folder / "data", "-w", *arguments, folder=self.folder)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.control("-l", str(self.folder / "log"), "-o", options, "start")


def as_nobody(*command: str | Path, folder: Path) -> None:
    """Runs a program of the server, which refuses to run as root."""
    root = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*root, *map(str, command)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    import tempfile

    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = found[-1] if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL's server (Debian's package postgresql) is not installed")
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv to become another user")
    # Not below pytest's folders, which only their owner may enter; short, for the socket's name.
    with tempfile.TemporaryDirectory(prefix="envrl_pg_") as name, socket.socket() as free:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody", "nogroup")
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        made = Server(Path(initdb).resolve().parent, folder, port)
        options = ("-U", "sweeper", "--auth=scram-sha-256", "--pwfile", folder / "password", "--no-sync")
        as_nobody(initdb, "-D", folder / "data", "--locale=C", "-E", "UTF8", *options, folder=folder)
        made.start()
        try:
            yield made
        finally:
            made.control("-m", "immediate", "stop")


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """URL of an empty database."""
    import psycopg

    def do(statement: str) -> None:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(statement)

    do("CREATE DATABASE trial")
    yield server.url("trial")
    do("DROP DATABASE trial WITH (FORCE)")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"password": "another"}, "correct the user or the password"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist; correct the database'),
        ({"port": 1}, "start the server, or correct the address"),
        ({"password": "a@b"}, "write the @ of the password as %40"),
    ],
)
def test_a_server_that_cannot_be_used_is_said_without_the_password(
    server: Server, wrong: dict[str, str], said: str, tmp_path: Path
) -> None:
    url = server.url(**wrong)  # type: ignore[arg-type]
    started = time.monotonic()
    with pytest.raises(ConfigFault) as fault:
        open_search(stub_settings(), StorageSettings(url), tmp_path)
    assert said in str(fault.value)
    assert wrong.get("password", PASSWORD) not in str(fault.value)
    assert "\n" not in str(fault.value)
    assert time.monotonic() - started < 20


def test_another_space_under_the_same_name_is_refused(database: str, tmp_path: Path) -> None:
    open_search(stub_settings(), StorageSettings(database), tmp_path)
    other = Space({RANK: Parameter(Choices((4, 16)))})
    with pytest.raises(DataFault) as fault:
        open_search(stub_settings(space=other, seeds=(1,)), StorageSettings(database), tmp_path)
    assert "space.policy.lora.rank: was {choices: [4, 8]}, is {choices: [4, 16]}" in str(fault.value)
    assert "space.loss.sp.weight: was {low: 0.001, high: 1.0, log: True}, is left out" in str(fault.value)
    assert "seeds: was [0], is [1]" in str(fault.value)


def machine(folder: Path, url: str, trials: int, seconds: float, grace: int = 3) -> subprocess.Popen[str]:
    """One machine's worker, with a folder of its own."""
    arguments = [sys.executable, "-W", "ignore", str(SCRIPT), str(folder), url]
    arguments += [str(trials), str(seconds), str(grace)]
    source = str(Path(sweep_storage.__file__).parents[2])
    path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until(due: Callable[[], bool], *processes: subprocess.Popen[str], limit_s: float = 200) -> None:
    deadline = time.monotonic() + limit_s
    while not due():
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(search: Search, folder: Path) -> list[int]:
    """Trials of that machine that have reported something of their run."""
    return [
        t.number
        for t in search.study.get_trials(deepcopy=False)
        if t.state.name == "RUNNING"
        and str(t.user_attrs.get("place", "")).endswith(f":{folder}")
        and any((folder / "runs").glob(f"trial_{t.number:04d}/*/record.json"))
    ]


@pytest.mark.fault(
    "one of two machines at a sweep goes down",
    "the other takes over its trial, and none is made too many",
)
@pytest.mark.slow
def test_a_dead_machines_trial_goes_over_to_the_other_and_none_is_too_many(
    database: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    search = open_search(
        stub_settings(trials=7, sampler=method("random")), StorageSettings(database), tmp_path
    )
    processes = [machine(folder, database, 7, 0.5) for folder in (first, second)]
    try:
        wait_until(lambda: bool(running(search, first) and running(search, second)), *processes)
        (lost,) = running(search, first)
        processes[0].send_signal(signal.SIGKILL)
        _, errors = processes[1].communicate(timeout=300)
    finally:
        for process in processes:
            process.kill()
    assert processes[1].returncode == 0, errors
    found = attempts(search.study)
    assert [a.last.state.name for a in found] == ["COMPLETE"] * 7
    (moved,) = [a for a in found if a.number == lost]
    assert moved.last.number != lost
    assert moved.last.user_attrs["place"].endswith(str(second))
    assert sum(t.state.name == "FAIL" for t in search.study.trials) == 1


@pytest.mark.fault(
    "the PostgreSQL server of a sweep goes away in the middle for some seconds, or for more than a minute",
    "the sweep waits for it and loses nothing",
)
@pytest.mark.slow
@pytest.mark.parametrize("away_s", [3.0, 65.0])
def test_a_server_that_is_started_again_in_the_middle_costs_nothing(
    away_s: float, server: Server, database: str, tmp_path: Path
) -> None:
    search = open_search(
        stub_settings(trials=4, sampler=method("random")), StorageSettings(database), tmp_path
    )
    process = machine(tmp_path / "one", database, 4, 0.4, grace=180)
    try:
        wait_until(lambda: bool(running(search, tmp_path / "one")), process)
        server.control("-m", "fast", "stop")
        try:
            time.sleep(away_s)
            assert process.poll() is None, process.communicate()
        finally:
            server.start()
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert [t.state.name for t in search.study.trials] == ["COMPLETE"] * 4


@pytest.mark.fault(
    "the PostgreSQL server of a sweep stays away",
    "the sweep ends with one sentence that names the server and the remedy",
)
def test_a_server_that_stays_away_ends_the_sweep_with_a_sentence(
    server: Server, database: str, tmp_path: Path
) -> None:
    search = open_search(stub_settings(), StorageSettings(database, patience_s=1.0), tmp_path)
    server.control("-m", "fast", "stop")
    try:
        started = time.monotonic()
        with pytest.raises(DataFault, match="has been away for 1 s; start it, then run the same command"):
            search.study.get_trials()
        with pytest.raises(DataFault), search.turn():
            pass
        assert time.monotonic() - started < 30
    finally:
        server.start()
