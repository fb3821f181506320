"""What lets a killed run or study go on: its record, its checkpoint, and that nobody else is at it."""

from __future__ import annotations

import fcntl
import json
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envrl.analysis.episodes import episodes_path, evaluated_iterations
from envrl.analysis.records import RunRecord, load_record
from envrl.errors import DataFault, EnvrlError
from envrl.experiments.config import RunConfig
from envrl.experiments.plain import as_plain, merge
from envrl.training.checkpoints import CHECKPOINT, PREVIOUS, Damaged, check

__all__ = [
    "CHECKPOINT",
    "PREVIOUS",
    "Found",
    "alone",
    "completed_iterations",
    "covered_by",
    "existing_record",
    "first_difference",
    "forget_after",
    "newest_checkpoint",
    "put_aside",
    "read_checkpoint",
    "warn",
]

_BROKEN = "broken.ckpt"
_LOCK = ".lock"
_LOCK_WAIT_S = 10.0


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder of a run or study for this process; the system frees it when the process dies.

    Waits some seconds, because the workers of a command that was just killed take a moment to end.

    Raises:
        EnvrlError: Another process works in the folder, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / _LOCK).open("w")
    except OSError as error:
        reason = error.strerror or error
        raise DataFault(
            f"{folder} can't be written ({reason}); make it writable, or choose another --root"
        ) from error
    with handle:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _locked(handle.fileno()):
            if time.monotonic() > deadline:
                raise EnvrlError(f"another process works in {folder}; wait for it, or choose another --name")
            time.sleep(0.1)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def existing_record(path: Path, config: RunConfig) -> RunRecord | None:
    """The record at ``path``, None if there is none.

    Raises:
        DataFault: The record is broken, or of another configuration; the message names the first difference.
    """
    if not path.is_file():
        return None
    record = load_record(path)
    wanted = without_processes(json.loads(json.dumps(as_plain(config))))
    # A record may be older than a setting; it was made with what is now that setting's default.
    had = without_processes(merge(json.loads(json.dumps(as_plain(RunConfig()))), record.config))
    if had != wanted:
        difference = first_difference(had, wanted)
        raise DataFault(
            f"{path.parent} holds a run of another configuration ({difference}); choose "
            "another --name, or remove that folder to run it anew"
        )
    return record


def without_processes(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A plain configuration without the settings that a run may go on with other values of."""
    train = {k: v for k, v in plain["train"].items() if k not in ("devices", "nodes", "strategy")}
    return {**plain, "train": train}


def first_difference(old: Any, new: Any, key: str = "") -> str:
    """The first key in which two nested mappings differ, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                return first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    return f"{key}: was {old}, is {new}"


def covered_by(record: RunRecord, completed: int | None) -> RunRecord:
    """The record without what was measured after the checkpoint, because that is measured again.

    Args:
        record: As it was left.
        completed: Iterations in the checkpoint; None if there is none.
    """
    # Without a checkpoint even the evaluation before training is made anew.
    last = -1 if completed is None else completed
    kept = tuple(e for e in record.evaluations if e.iteration <= last)
    success = record.training_success[: max(0, last)]
    changes = {"status": "running", "error": None, "evaluations": kept, "training_success": success}
    return record.model_copy(update=changes)


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint of a run.

    Attributes:
        path: Its file.
        content: What was saved.
        note: Why it is not the newest that was written, as a sentence without its end; None if it is.
    """

    path: Path
    content: dict[str, Any]
    note: str | None

    @property
    def completed(self) -> int:
        """Iterations completed in it."""
        return completed_iterations(self.content)


def newest_checkpoint(folder: Path) -> Found | None:
    """The newest checkpoint of a run that is whole; None if the run has not written any.

    Raises:
        DataFault: There is one, and none is whole.
    """
    wrong: dict[Path, str] = {}
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        try:
            content = _content(path)
        except FileNotFoundError:
            continue
        except Damaged as fault:
            wrong[path] = str(fault)
            continue
        if path.name == CHECKPOINT:
            return Found(path, content, None)
        missing = f"the checkpoint {folder / CHECKPOINT} is missing"
        reason = next((f"the checkpoint {file} is broken ({why})" for file, why in wrong.items()), missing)
        done = completed_iterations(content)
        return Found(
            path, content, f"{reason}; the one before it is used, {path.name} after {done} iterations"
        )
    if not wrong:
        return None
    said = " and ".join(f"{file} is broken ({why})" for file, why in wrong.items())
    raise DataFault(f"the checkpoint {said}; remove the folder {folder} to run it anew")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a run's newest checkpoint that is whole; says so if that is not the newest.

    Args:
        path: The newest one, ``last.ckpt`` in the run's folder.

    Raises:
        DataFault: There is none, or none is whole.
    """
    found = newest_checkpoint(path.parent)
    if found is None:
        raise DataFault(f"'{path.parent}' holds no checkpoint ({path.name}); train it first")
    if found.note is not None:
        warn(found.note)
    return found.content


def _content(path: Path) -> dict[str, Any]:
    import torch

    check(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # torch writes them as they are; unpacked, compressed ones may be a thousand times larger.
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("a part is compressed")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(weight, torch.Tensor) for weight in content["state_dict"].values()):
            raise TypeError("a weight is no tensor")
        completed_iterations(content)
    except Exception as error:
        raise Damaged(type(error).__name__) from error
    return dict(content)


def forget_after(folder: Path, completed: int | None) -> None:
    """Removes what a run has left from after the checkpoint it goes on from, because that is made again.

    Records are cut by :func:`covered_by`; here it is the files of episodes.

    Args:
        folder: Folder of the run; this process holds it (:func:`alone`).
        completed: Iterations in the checkpoint; None if there is none.
    """
    for iteration in evaluated_iterations(folder):
        if completed is None or iteration > completed:
            episodes_path(folder, iteration).unlink(missing_ok=True)


def put_aside(folder: Path) -> None:
    """Moves a broken newest checkpoint out of the way, so that it never takes the place of the one before."""
    newest = folder / CHECKPOINT
    if newest.is_file():
        newest.replace(folder / _BROKEN)


def warn(text: str) -> None:
    """Says something on the console that does not end the command."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def completed_iterations(checkpoint: Mapping[str, Any]) -> int:
    """Iterations completed in a checkpoint."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
