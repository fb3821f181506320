"""MLflow servers for tests: a real one that can be killed and started again, and a small false one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from envrl.tracking.store import Store
from envrl.types import Finish, Generation, Observation, StopReason, Trajectory, Transition


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """``mlflow server`` with SQLite on a port of its own; its artifacts go through it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self._port}"
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
        command += [
            "--port",
            str(self._port),
            "--backend-store-uri",
            f"sqlite:///{self._folder / 'mlflow.db'}",
        ]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                env={
                    **os.environ,
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },
            )
        deadline = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                assert self._process.poll() is None, (self._folder / "server.log").read_text()
                assert time.monotonic() < deadline, "the MLflow server never answered"
                time.sleep(0.2)

    def kill(self) -> None:
        """Ends it at once, with its worker."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """A started server that is gone in the end."""
    server = MlflowServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def false_server(answer: Callable[[], int]) -> Iterator[str]:
    """Answers every request with the status ``answer`` gives and an empty JSON object; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(answer())
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_PATCH = do_PUT = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def remote(root: Path, uri: str) -> Store:
    """A store at an address, not asked whether it answers."""
    return Store(root, uri, None)


def episode_of_one_turn(action: str, *, won: bool = True) -> Trajectory:
    """An episode that ends with its first action."""
    generation = Generation((1, 2), b"\x01\x01", (7, 8, 9), (-0.5, -1.0, -0.25), Finish.END, 0)
    turn = Transition(
        Observation("A room.\nYour task is to: look.", ("go", "look")),
        generation,
        action,
        True,
        action in ("go", "look"),
        float(won),
        Observation("Done – fertig.", ()),
    )
    stop = StopReason.WON if won else StopReason.STEP_LIMIT
    return Trajectory("abc123", "look_at_obj_in_light", 42, (turn,), stop, won, float(won))
