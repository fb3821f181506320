"""What lets a killed run or study go on: its record, its checkpoint, and that nobody else is at it."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envrl.analysis.records import RunRecord, load_record
from envrl.errors import DataFault, EnvrlError
from envrl.experiments.config import RunConfig
from envrl.experiments.plain import as_plain, merge

CHECKPOINT = "last.ckpt"
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
    wanted = json.loads(json.dumps(as_plain(config)))
    # A record may be older than a setting; it was made with what is now that setting's default.
    had = merge(json.loads(json.dumps(as_plain(RunConfig()))), record.config)
    if had != wanted:
        difference = first_difference(had, wanted)
        raise DataFault(
            f"{path.parent} holds a run of another configuration ({difference}); choose "
            "another --name, or remove that folder to run it anew"
        )
    return record


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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint.

    Raises:
        DataFault: The file is missing or is no checkpoint.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content["state_dict"], content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    except FileNotFoundError as error:
        raise DataFault(f"'{path.parent}' holds no checkpoint ({path.name}); train it first") from error
    except Exception as error:
        raise DataFault(
            f"the checkpoint {path} is broken ({type(error).__name__}); remove the folder {path.parent} to "
            "run it anew"
        ) from error
    return dict(content)


def completed_iterations(checkpoint: Mapping[str, Any]) -> int:
    """Iterations completed in a checkpoint."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
