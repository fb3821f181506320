"""A disk that is full in the middle of a run: a small file system of its own, filled at chosen moments."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from envrl.analysis.episodes import evaluated_iterations, read_episodes
from envrl.analysis.records import load_record
from envrl.experiments import runner, shown, train
from envrl.experiments.full_disk import full_disk
from envrl.experiments.resume import newest_checkpoint, read_checkpoint
from envrl.training import callbacks
from envrl.training.checkpoints import CHECKPOINT
from studies import tiny, write_yaml
from support import checkpoint

RUN = Path("mlruns", "studies", "single", "runs", "run", "seed_0")
PAGE = 4096
"""Bytes by which a file system in memory gives space."""


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
    weights = read_checkpoint(folder / CHECKPOINT)["state_dict"]
    numbers = {name: weight.tolist() for name, weight in weights.items()}
    return record.evaluations, record.training_success, numbers


@dataclass(frozen=True)
class At:
    """Where the disk becomes full: before the second call of a module's function, so many bytes left."""

    owner: ModuleType
    function: str
    left: int


def command(place: Path, files: Path) -> list[str]:
    return ["--config", str(files / "run.yaml"), "--root", str(place / "mlruns")]


def unharmed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """What a run comes to on a disk with space."""
    write_yaml(tmp_path / "run.yaml", tiny(checkpoint()))
    monkeypatch.setenv("ENVRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert train.main(command(tmp_path, tmp_path)) == 0
    return outcome(tmp_path / RUN)


def stopped_by_full_disk(
    disk: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: At
) -> tuple[Path, str]:
    """The same run on the small disk: its folder, with what is in it whole, and its only error."""
    capsys.readouterr()
    with monkeypatch.context() as patch:
        original = getattr(at.owner, at.function)
        patch.setattr(at.owner, at.function, at_call(1, lambda: fill(disk, at.left), original))
        assert train.main(command(disk, files)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert str(disk) in said[0]
    read_checkpoint(disk / RUN / CHECKPOINT)
    with sqlite3.connect(disk / "mlruns" / "mlflow.db") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    return disk / RUN, said[0]


def gone_on(disk: Path, files: Path) -> tuple[Any, ...]:
    """What it comes to with space freed."""
    (disk / "filler").unlink()
    assert train.main(command(disk, files)) == 0
    return outcome(disk / RUN)


@pytest.mark.slow
@pytest.mark.fault(
    "the disk is full in the middle of a run",
    "it ends with one sentence that names place and remedy; what was written stays whole; with space freed "
    "the same command goes on to the same numbers",
)
# Full for a file of the run's own, for the database and artifacts of the store, and for a last upload.
@pytest.mark.parametrize(
    ("owner", "function", "left"),
    [(shown, "write_episodes", 0), (shown, "log_text", 0), (runner, "log_artifact", 8192)],
    ids=["the episodes", "the store", "the adapters"],
)
def test_a_run_survives_a_full_disk(
    owner: ModuleType,
    function: str,
    left: int,
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = unharmed_run(tmp_path, monkeypatch)
    folder, said = stopped_by_full_disk(disk, tmp_path, monkeypatch, capsys, At(owner, function, left))
    assert "is full; free space there and run the same command again" in said
    before = load_record(folder / "record.json")
    assert before.evaluations[0] == expected[0][0]
    for iteration in evaluated_iterations(folder):
        assert len(list(read_episodes(folder, iteration))) > 0
    assert gone_on(disk, tmp_path) == expected


@pytest.mark.slow
@pytest.mark.fault(
    "the disk gets full when half of a checkpoint is written",
    "the run ends with one sentence that names place and remedy; the checkpoint of before stays; with "
    "space freed the same command goes on to the same numbers",
)
def test_a_run_survives_a_disk_that_gets_full_within_a_checkpoint(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = unharmed_run(tmp_path, monkeypatch)
    size = (tmp_path / RUN / CHECKPOINT).stat().st_size
    half = size // 2 // PAGE * PAGE
    assert half >= PAGE
    written: list[int] = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path.name == f".{CHECKPOINT}.part":
            written.append(path.stat().st_size)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    folder, said = stopped_by_full_disk(
        disk, tmp_path, monkeypatch, capsys, At(callbacks, "write_checkpoint", half)
    )
    assert written == [half], "it was cut off within"
    assert "is full; free space there and run the same command again, which goes on from the last" in said
    assert not (folder / f".{CHECKPOINT}.part").exists()
    kept = newest_checkpoint(folder)
    assert kept is not None
    assert (kept.completed, kept.note) == (1, None)
    assert gone_on(disk, tmp_path) == expected


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
