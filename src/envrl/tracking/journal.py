"""A file of values that MLflow has not taken yet: appended to, synced to disk, read again after a crash.

The first line says whose values these are. Every other line is one entry, or says that one was delivered.
The file is removed as soon as nothing is left in it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from envrl.errors import DataFault

Entry = dict[str, Any]
"""What is to be logged: its ``kind`` and plain values (:mod:`envrl.tracking.delivery`)."""
_PREFIX, _SUFFIX = "mlflow_unsent_", ".jsonl"
_REFUSED = ".refused.jsonl"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose values a journal holds.

    Attributes:
        uri: MLflow tracking URI of the store.
        run_id: The run.
        name: What messages call the run.
    """

    uri: str
    run_id: str
    name: str


def journal_path(folder: Path, run_id: str) -> Path:
    """Where the values of a run are kept below a folder."""
    return folder / f"{_PREFIX}{run_id}{_SUFFIX}"


def journals_below(folder: Path) -> list[Path]:
    """Every journal in a folder and below it."""
    found = folder.rglob(f"{_PREFIX}*{_SUFFIX}")
    return sorted(path for path in found if not path.name.endswith(_REFUSED))


class NothingKept(Exception):
    """A journal is not there, or was cut off by a crash before anything was in it."""


class Journal:
    """The journal of one run, held by this process alone while it is open.

    Args:
        path: Its file; made with its folder if it is missing.
        owner: Whose it is; None takes what the file says, and makes no file.

    Raises:
        NothingKept: Without an owner: there is no file, or nothing in it; such a file is removed.
        DataFault: Another process holds it, it can't be written, or a line is broken.
    """

    def __init__(self, path: Path, owner: Owner | None = None) -> None:
        self.path = path
        try:
            if owner is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = _lock(path, "r+b" if owner is None else "a+b")
        except FileNotFoundError as fault:
            raise NothingKept(str(path)) from fault
        except BlockingIOError as fault:
            raise DataFault(
                f"{path} is in use by a process that is still at work and delivers it; wait for its end"
            ) from fault
        except OSError as fault:
            raise DataFault(
                f"{path} can't be written ({fault.strerror or fault}); make it writable"
            ) from fault
        self._waiting: deque[tuple[int, int]] = deque()
        self._last = 0
        try:
            self.owner = self._load(owner)
        except BaseException:
            self._handle.close()
            raise

    def __len__(self) -> int:
        return len(self._waiting)

    def append(self, entry: Entry) -> None:
        """Adds an entry; when this returns it is on the disk."""
        self._last += 1
        self._waiting.append((self._last, self._write({"id": self._last, "entry": entry})))

    def first(self) -> tuple[int, Entry]:
        """Number and content of the oldest entry."""
        number, place = self._waiting[0]
        self._handle.seek(place)
        entry: Entry = json.loads(self._handle.readline())["entry"]
        return number, entry

    def done(self, number: int) -> None:
        """Marks the oldest entry as delivered. Lost in a crash, it is only delivered again."""
        assert self._waiting[0][0] == number
        self._waiting.popleft()
        self._write({"done": number}, sync=False)

    def refuse(self, entry: Entry, reason: str) -> Path:
        """Puts an entry aside that MLflow will never take; returns the file it is kept in."""
        aside = self.path.with_suffix(_REFUSED)
        with aside.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({**asdict(self.owner), "reason": reason, "entry": entry}) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        return aside

    def close(self) -> None:
        """Lets go of the file, and removes it if nothing is left in it."""
        if self._handle.closed:
            return
        if not self._waiting:
            self.path.unlink(missing_ok=True)
        self._handle.close()

    def _write(self, content: dict[str, Any], *, sync: bool = True) -> int:
        place = self._handle.seek(0, os.SEEK_END)
        self._handle.write(json.dumps(content).encode() + b"\n")
        self._handle.flush()
        if sync:
            os.fsync(self._handle.fileno())
        return place

    def _load(self, owner: Owner | None) -> Owner:
        known: Owner | None = None
        for place, line in self._lines():
            try:
                content = json.loads(line)
                if known is None:
                    known = Owner(**content)
                elif "done" in content:
                    while self._waiting and self._waiting[0][0] <= content["done"]:
                        self._waiting.popleft()
                else:
                    content["entry"]["kind"]
                    self._last = int(content["id"])
                    self._waiting.append((self._last, place))
            except (ValueError, TypeError, KeyError) as fault:
                raise DataFault(
                    f"{self.path} is broken ({fault}); repair the line or move the file away, what is in it "
                    "is not in MLflow"
                ) from fault
        if known is None:
            if owner is None:
                self.path.unlink(missing_ok=True)
                raise NothingKept(str(self.path))
            known = owner
            self._write(asdict(owner))
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name of a new file is on the disk only then
            finally:
                os.close(folder)
        return known

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Whole lines with their places; half a line that a crash has left is cut off."""
        place = 0
        self._handle.seek(0)
        while line := self._handle.readline():
            if not line.endswith(b"\n"):
                self._handle.truncate(place)
                return
            yield place, line
            place += len(line)


def _lock(path: Path, mode: Literal["r+b", "a+b"]) -> BinaryIO:
    """Opens the file and holds a lock of the operating system on it, which is freed when a process dies."""
    while True:
        handle = path.open(mode)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            handle.close()
            raise
        if os.fstat(handle.fileno()).st_nlink:
            return handle
        handle.close()  # its last holder removed it between the two calls
