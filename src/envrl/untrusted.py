"""Reading what strangers wrote: bounded in size and depth, never more than text, numbers, lists and objects.

Every reader of a file that another person may have written goes through here, so that a broken or hostile
one ends in a sentence: no endless device, no archive that grows to gigabytes, no text that can't be printed.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

from envrl.errors import DataFault

LARGEST_FILE = 64 << 20
"""Most bytes of a file that is read as a whole; an official game has about 100 thousand."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN = 80


def read_bytes(path: Path, most: int = LARGEST_FILE) -> bytes:
    """Content of a file.

    Args:
        path: The file.
        most: Bytes it may have.

    Raises:
        OSError: It is missing or can't be read.
        DataFault: It is larger, or no file but a device or a pipe, which may never end.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a name with a NUL in it
        raise OSError(errno.EINVAL, str(error)) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataFault(f"{path} is no regular file but a device or a pipe; give a file")
    with path.open("rb") as handle:
        content = handle.read(most + 1)
    if len(content) > most:
        raise DataFault(f"{path} has more than {most} bytes, the most that are read; give a smaller file")
    return content


def read_text(path: Path, most: int = LARGEST_FILE) -> str:
    """Content of a UTF-8 file.

    Raises:
        OSError: It is missing or can't be read.
        ValueError: It is not UTF-8.
        DataFault: See :func:`read_bytes`.
    """
    return read_bytes(path, most).decode("utf-8")


def parse_json(content: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: It is not JSON in UTF-8, is nested too deeply, or holds half of a character
            (``"\\ud800"``), which no file and no tokenizer could take.
    """
    text = content.decode("utf-8") if isinstance(content, bytes) else content
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("lists or objects are nested too deeply") from error
    return value


def unpack(content: bytes, most: int = LARGEST_FILE) -> bytes:
    """What a gzip file holds.

    Args:
        content: The compressed bytes.
        most: Bytes it may grow to.

    Raises:
        OSError: It is no gzip file.
        EOFError: It ends too early.
        zlib.error: It is damaged.
        ValueError: It grows to more than ``most`` bytes.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
        found = packed.read(most + 1)
    if len(found) > most:
        raise ValueError(f"unpacked it has more than {most} bytes, the most that are read")
    return found


def standard_library(module: str) -> bool:
    """Whether a module is one of Python's own, some of which act when they are imported.

    A configuration may name a module of the user's; what it names is imported, hence executed.
    """
    return module.partition(".")[0] in sys.stdlib_module_names


def shown(value: object, most: int = _SHOWN) -> str:
    """A value for a message, cut to ``most`` characters; its type where it is nested too deeply to show."""
    try:
        return repr(value)[:most]
    except (RecursionError, ValueError):  # a number may have more digits than Python writes
        return f"a {type(value).__name__} that can't be shown"


def printable(text: str) -> str:
    """The text with control characters written out, which a terminal would otherwise obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
