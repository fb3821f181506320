"""A disk that is full in the middle of a run: a small file system of its own, filled at chosen moments."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from envrl.analysis.episodes import evaluated_iterations, read_episodes
from envrl.analysis.records import load_record
from envrl.experiments import runner, shown, train
from envrl.experiments.full_disk import full_disk
from envrl.experiments.resume import read_checkpoint
from studies import tiny, write_yaml
from support import checkpoint

MEGABYTE = 1_000_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("there is no mount command")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"a small file system can't be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, left: int) -> None:
    """Leaves so many bytes free."""
    free = os.statvfs(disk)
    with (disk / "filler").open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, free.f_bavail * free.f_frsize - left)


def at_call(number: int, action: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; what is to happen happens before its call of that number, from 0."""
    calls = iter(range(10_000))

    def called(*arguments: Any, **named: Any) -> Any:
        if next(calls) == number:
            action()
        return function(*arguments, **named)

    return called


def outcome(folder: Path) -> tuple[Any, ...]:
    record = load_record(folder / "record.json")
    assert record.status == "finished"
    weights = read_checkpoint(folder / "last.ckpt")["state_dict"]
    numbers = {name: weight.tolist() for name, weight in weights.items()}
    return record.evaluations, record.training_success, numbers


@pytest.mark.slow
@pytest.mark.fault(
    "the disk is full in the middle of a run",
    "it ends with one sentence that names place and remedy; what was written stays whole; with space freed "
    "the same command goes on to the same numbers",
)
# Full for a file of the run's own, for the database and artifacts of the store, and for a last upload.
@pytest.mark.parametrize(
    ("function", "number", "left"),
    [("write_episodes", 1, 0), ("log_text", 1, 0), ("log_artifact", 1, 8192)],
    ids=["the episodes", "the store", "the adapters"],
)
def test_a_run_survives_a_full_disk(
    function: str,
    number: int,
    left: int,
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_yaml(tmp_path / "run.yaml", tiny(checkpoint()))
    monkeypatch.setenv("ENVRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    roots = {place: place / "mlruns" for place in (tmp_path, disk)}
    command = {place: ["--config", str(file), "--root", str(root)] for place, root in roots.items()}
    run = Path("studies", "single", "runs", "run", "seed_0")
    folders = {place: root / run for place, root in roots.items()}
    assert train.main(command[tmp_path]) == 0
    expected = outcome(folders[tmp_path])
    capsys.readouterr()

    with monkeypatch.context() as patch:
        owner = runner if function == "log_artifact" else shown
        original = getattr(owner, function)
        patch.setattr(owner, function, at_call(number, lambda: fill(disk, left), original))
        assert train.main(command[disk]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "is full; free space there and run the same command again" in said[0]
    assert str(disk) in said[0]

    folder = folders[disk]
    before = load_record(folder / "record.json")
    assert before.evaluations[0] == expected[0][0]
    read_checkpoint(folder / "last.ckpt")
    for iteration in evaluated_iterations(folder):
        assert len(list(read_episodes(folder, iteration))) > 0
    with sqlite3.connect(roots[disk] / "mlflow.db") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)

    (disk / "filler").unlink()
    assert train.main(command[disk]) == 0
    assert outcome(folder) == expected


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/record.json"), "/data"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "/runs"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "/runs"),
        (sqlite3.OperationalError("database or disk is full"), "/runs"),
    ],
)
def test_a_full_disk_is_known_in_every_library_s_words(error: Exception, told: str) -> None:
    wrapped = ValueError("can't save")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        fault = full_disk(one, Path("/runs"))
        assert fault is not None
        assert str(fault).startswith(f"the disk of {told} is full; free space")


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("disk")])
def test_other_errors_are_no_full_disk(error: Exception) -> None:
    assert full_disk(error, Path("/runs")) is None
