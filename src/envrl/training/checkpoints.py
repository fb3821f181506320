"""Checkpoint files: a kill at any moment leaves a whole one, and a damaged one is found when it is read.

A file is what `torch.save` writes, with the checksum of everything before it as the comment that a zip
archive may end with: file and checksum are one, and torch reads it as any other. Beside the newest,
``last.ckpt``, stands the one before it, ``previous.ckpt``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

from envrl.errors import DataFault

CHECKPOINT = "last.ckpt"
PREVIOUS = "previous.ckpt"
_LABEL = b"envrl sha256 "
_HEX = 64
_CHUNK = 1 << 20
# End of a zip archive: a signature, and in its last two bytes the length of the comment after it.
_END, _END_BYTES = b"PK\x05\x06", 22


class Damaged(Exception):
    """A checkpoint is not as it was written; the text says in what."""


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Replaces a checkpoint as a whole and keeps the one before it as ``previous.ckpt``.

    Args:
        content: What `torch.save` takes.
        path: The file; its folder is made if it is missing.

    Raises:
        DataFault: It can't be written; the checkpoint of before is still there.
    """
    import torch

    # One process works in a run's folder, so what a kill has left under this name is simply written over.
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as handle:
            sealed = _Sealed(handle)
            # All that torch asks of a file are these two methods.
            torch.save(dict(content), cast(IO[bytes], sealed))
            sealed.finish()
            handle.flush()
            os.fsync(handle.fileno())
        _keep_as_previous(path)
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as fault:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise DataFault(
            f"the checkpoint {path} can't be written ({fault.strerror or fault}); free space or make the "
            "folder writable, then run the same command again to go on from the checkpoint before it"
        ) from fault


def check(path: Path) -> None:
    """Reads a checkpoint through and compares its checksum.

    One without a checksum, as written before there was any, is compared with those of its zip archive.

    Raises:
        FileNotFoundError: There is none.
        Damaged: It is cut off, or a byte of it has changed.
    """
    size = path.stat().st_size
    if size == 0:
        raise Damaged("it is empty")
    with path.open("rb") as handle:
        handle.seek(max(0, size - len(_LABEL) - _HEX))
        label, written = handle.read(len(_LABEL)), handle.read(_HEX)
        if label != _LABEL:
            _check_archive(handle, size)
            return
        handle.seek(0)
        digest, left = hashlib.sha256(), size - _HEX
        while left > 0:
            block = handle.read(min(_CHUNK, left))
            if not block:
                raise Damaged("it was cut off while it was read")
            digest.update(block)
            left -= len(block)
    if digest.hexdigest().encode() != written:
        raise Damaged("its checksum does not match")


class _Sealed:
    """A file that `torch.save` writes to, with the checksum of what it wrote as the archive's comment.

    Parts go to the disk as they come: a checkpoint may be as large as what memory is left beside the weights.

    Args:
        handle: The file, empty.
    """

    def __init__(self, handle: io.BufferedIOBase) -> None:
        self._handle = handle
        self._digest = hashlib.sha256()
        # The archive's end holds the length of the comment, which torch doesn't know of.
        self._end = b""
        self._fault: OSError | None = None

    def write(self, block: bytes | memoryview) -> int:
        """Takes the next part."""
        size = len(block)
        if size < _END_BYTES:
            block = self._end + bytes(block)
        else:
            self._pass_on(self._end)
        self._pass_on(block[:-_END_BYTES])
        self._end = bytes(block[-_END_BYTES:])
        return size

    def flush(self) -> None:
        """Called by torch at the end."""

    def finish(self) -> None:
        """Writes the end of the archive and the checksum.

        Raises:
            OSError: A part could not be written.
        """
        assert self._end[:4] == _END, "torch.save no longer ends with a zip archive's end"
        self._pass_on(self._end[:-2] + (len(_LABEL) + _HEX).to_bytes(2, "little") + _LABEL)
        self._pass_on(self._digest.hexdigest().encode())
        if self._fault is not None:
            raise self._fault

    def _pass_on(self, block: bytes | memoryview) -> None:
        # Torch makes one of its own of an exception here, which doesn't say what happened.
        if self._fault is None:
            try:
                self._handle.write(block)
            except OSError as fault:
                self._fault = fault
        self._digest.update(block)


def _check_archive(handle: io.BufferedReader, size: int) -> None:
    handle.seek(max(0, size - _END_BYTES))
    end = handle.read()
    if end[:4] != _END or end[-2:] != b"\0\0":
        raise Damaged("it is cut off, or its end was changed")
    handle.seek(0)
    try:
        with zipfile.ZipFile(handle) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, RuntimeError) as fault:
        raise Damaged(f"its archive is damaged: {fault}") from fault
    if wrong is not None:
        raise Damaged(f"the checksum of {wrong} in it does not match")


def _keep_as_previous(path: Path) -> None:
    previous = path.with_name(PREVIOUS)
    link = path.with_name(f".{PREVIOUS}.part")
    link.unlink(missing_ok=True)
    if not path.is_file():
        return
    try:
        os.link(path, link)
    except OSError:
        # A file system without hard links: for a moment only the one before stands under a name.
        path.replace(previous)
        return
    link.replace(previous)
    # Both names of one file, as a kill here once left them: then renaming does nothing.
    link.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
