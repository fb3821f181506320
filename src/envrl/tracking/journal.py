"""A file of values that MLflow has not taken yet: appended to, synced to disk, read again after a crash.

The first line says whose values these are. Every other line is one entry, or says that one was delivered.
The file is removed as soon as nothing is left in it. It may come from a stranger, so it is bounded, and no
link is followed to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from envrl.errors import DataFault
from envrl.untrusted import parse_json

Entry = dict[str, Any]
"""What is to be logged: its ``kind`` and plain values (:mod:`envrl.tracking.delivery`)."""
_PREFIX, _SUFFIX = "mlflow_unsent_", ".jsonl"
_REFUSED = ".refused.jsonl"
_LARGEST_LINE = 64 << 20
_LARGEST_FILE = 4 << 30
_ROOM = _LARGEST_FILE // 2
"""Entries take no more of a file than this: the rest is for the lines that say they were delivered."""
_LEVELS = 24
_LONGEST_TEXT = 4096


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
        DataFault: Another process holds it, it can't be written or is no regular file, a line is broken, or
            it has more than 64 MiB a line or 4 GiB.
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
            raise _unwritable(path, fault) from fault
        self.refused = 0
        """Entries that were put aside."""
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
        """Adds an entry; when this returns it is on the disk.

        Raises:
            DataFault: It is larger than what is read again, or the file is full.
        """
        self._last += 1
        self._waiting.append((self._last, self._write({"id": self._last, "entry": entry})))

    def first(self) -> tuple[int, Entry]:
        """Number and content of the oldest entry."""
        number, place = self._waiting[0]
        self._handle.seek(place)
        entry: Entry = parse_json(self._handle.readline(_LARGEST_LINE))["entry"]
        return number, entry

    def done(self, number: int) -> None:
        """Marks the oldest entry as delivered. Lost in a crash, it is only delivered again."""
        assert self._waiting[0][0] == number
        self._waiting.popleft()
        # A full disk must not stop the delivery that would make room on it.
        with contextlib.suppress(OSError):
            self._write({"done": number}, sync=False)

    def refuse(self, entry: Entry, reason: str) -> Path:
        """Puts an entry aside that MLflow will never take; returns the file it is kept in."""
        aside = self.path.with_suffix(_REFUSED)
        try:
            with _open(aside, "ab") as handle:
                handle.write(_line({**asdict(self.owner), "reason": reason, "entry": entry}))
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as fault:
            raise _unwritable(aside, fault) from fault
        self.refused += 1
        return aside

    def close(self) -> None:
        """Lets go of the file, and removes it if nothing is left in it."""
        if self._handle.closed:
            return
        if not self._waiting:
            self.path.unlink(missing_ok=True)
        self._handle.close()

    def _write(self, content: dict[str, Any], *, sync: bool = True) -> int:
        place, line = self._handle.seek(0, os.SEEK_END), _line(content)
        if sync and (len(line) > _LARGEST_LINE or place + len(line) > _ROOM):
            raise DataFault(
                f"{self.path} can't keep {len(line)} bytes more: a line has {_LARGEST_LINE} at most, and the "
                f"file {_ROOM}. Start the MLflow store, then run the command again"
            )
        self._handle.write(line)
        self._handle.flush()
        if sync:
            os.fsync(self._handle.fileno())
        return place

    def _load(self, owner: Owner | None) -> Owner:
        known: Owner | None = None
        for place, line in self._lines():
            try:
                content = _content(line)
                if known is None:
                    known = _owner(content)
                    if owner is not None and known.run_id != owner.run_id:
                        raise ValueError("it holds values of another run")
                elif "done" in content:
                    done = _number(content["done"])
                    while self._waiting and self._waiting[0][0] <= done:
                        self._waiting.popleft()
                else:
                    self._last = _entry_number(content)
                    self._waiting.append((self._last, place))
            except (ValueError, TypeError, KeyError) as fault:
                raise self._broken(str(fault)) from fault
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
        while line := self._handle.readline(_LARGEST_LINE + 1):
            if len(line) > _LARGEST_LINE:
                raise self._broken(f"a line has more than {_LARGEST_LINE} bytes")
            if not line.endswith(b"\n"):
                self._handle.truncate(place)
                return
            yield place, line
            place += len(line)
            if place > _LARGEST_FILE:
                raise self._broken(f"it has more than {_LARGEST_FILE} bytes")

    def _broken(self, reason: str) -> DataFault:
        return DataFault(
            f"{self.path} is broken ({reason}); repair the line or move the file away, what is in it is not "
            "in MLflow"
        )


def _line(content: dict[str, Any]) -> bytes:
    # Half of a character, which no file can hold, becomes a question mark.
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _content(line: bytes) -> dict[str, Any]:
    content = parse_json(line)
    if not isinstance(content, dict):
        raise TypeError(f"a line holds a {type(content).__name__}, no object")
    _check_depth(content, _LEVELS)
    return content


def _check_depth(value: object, levels: int) -> None:
    """Refuses what is nested so deeply that nobody who gets it could walk through it."""
    if levels == 0:
        raise ValueError(f"lists or objects are nested more than {_LEVELS} deep")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        if isinstance(item, (dict, list)):
            _check_depth(item, levels - 1)


def _owner(content: dict[str, Any]) -> Owner:
    for name, text in content.items():
        if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
            raise ValueError(f"{name} is no text of at most {_LONGEST_TEXT} characters")
    return Owner(**content)


def _entry_number(content: dict[str, Any]) -> int:
    entry = content["entry"]
    if not isinstance(entry, dict) or not isinstance(entry["kind"], str):
        raise TypeError("an entry has no kind")
    return _number(content["id"])


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError("the number of an entry is none")
    return value


def _unwritable(path: Path, fault: OSError) -> DataFault:
    return DataFault(
        f"{path} can't be written ({fault.strerror or fault}); make it a writable file, and no link"
    )


def _open(path: Path, mode: Literal["r+b", "a+b", "ab"]) -> IO[bytes]:
    """Opens a regular file; a link, a device or a pipe that a stranger may have put there is refused.

    Raises:
        OSError: It is one of these, or can't be opened.
    """
    handle: IO[bytes] = open(  # noqa: SIM115 - given to the caller
        path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    )
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
        handle.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return handle


def _lock(path: Path, mode: Literal["r+b", "a+b"]) -> IO[bytes]:
    """Opens the file and holds a lock of the operating system on it, which is freed when a process dies."""
    while True:
        handle = _open(path, mode)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            handle.close()
            raise
        if os.fstat(handle.fileno()).st_nlink:
            return handle
        handle.close()  # its last holder removed it between the two calls
