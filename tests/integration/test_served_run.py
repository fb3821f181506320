"""A run whose tokens a server draws, through the real commands; the server is the one of ``fake_server``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from envrl.analysis.records import load_record
from fake_server import FakeServer, serving
from studies import call, tiny, write_yaml
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")
KEY = "a-key-nobody-may-read"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer(checkpoint(), api_key=KEY)) as running:
        yield running


def run_file(server: FakeServer, folder: Path) -> Path:
    content = tiny(
        checkpoint(),
        {
            "sampling": {"server": {"url": server.url, "adapters": str(folder / "adapters")}},
            "train": {"iterations": 2},
            # An update that moves a policy of this size by more than rounding does.
            "optim": {"lr": 0.01},
        },
    )
    return write_yaml(folder / "run.yaml", content)


def test_a_run_is_trained_and_evaluated_on_a_server(server: FakeServer, tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    done = call("train", "--config", run_file(server, tmp_path), "--root", root, ENVRL_SERVER_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    folder = root / "studies" / "single" / "runs" / "run" / "seed_0"
    record = load_record(folder / "record.json")
    assert record.status == "finished"
    assert [e.iteration for e in record.evaluations] == [0, 2]
    # One set of adapters before training and one after each update, and none is left in the end.
    loads, unloads = server.paths("/load_lora"), server.paths("/unload_lora")
    assert len(loads) == len(unloads) == 3
    assert server.loaded == [str(checkpoint())]
    assert list((tmp_path / "adapters").iterdir()) == []

    sampled = len(server.written)
    out = tmp_path / "evaluation.json"
    done = call("evaluate", "--run", folder, "--out", out, ENVRL_SERVER_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert len(server.written) > sampled
    # The panel's draws depend on its games alone, so the trained weights play them as before.
    again = [(o["game_id"], o["steps"]) for o in json.loads(out.read_text())["outcomes"]]
    assert again == [(o.game_id, o.steps) for o in record.evaluations[-1].outcomes]
    written = [path for path in root.rglob("*") if path.is_file()]
    assert written
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    assert KEY not in done.stdout + done.stderr


def test_a_run_without_its_server_does_not_begin(server: FakeServer, tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    done = call("train", "--config", run_file(server, tmp_path), "--root", root, ENVRL_SERVER_API_KEY="wrong")
    assert done.returncode != 0
    assert "refuses the key" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not root.exists()
