"""The official data files: where they are, where to get them, and reading them one entry at a time.

The product list of the full catalogue is several gigabytes, so both readers parse while they read and
hold one entry at a time; what a caller keeps is the only memory that grows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from envrl.errors import DataFault

HUMAN = "items_human_ins.json"
SMALL = ("items_shuffle_1000.json", "items_ins_v2_1000.json")
FULL = ("items_shuffle.json", "items_ins_v2.json")
"""Names of the product list and of the attribute file, for the 1,000 and the 1.18 million products."""

_DOWNLOADS: dict[str, str] = {
    SMALL[0]: "1EgHdxQ_YxqIQlvvq5iKlCrkEKR6-j0Ib",
    SMALL[1]: "1IduG0xl544V_A_jv3tHXC0kyFi7PnyBu",
    FULL[0]: "1A2whVgOO0euk5O13n2iYDM0bQRkkRduB",
    FULL[1]: "1s2j6NgHljiZzQNL3veZaAiyW_qDEgBNi",
    HUMAN: "14Kb5SPBk_jfdLZ_CDBNitW98QLDlKR5O",
}
"""File name to the Google Drive id under which the authors of WebShop publish it."""

_READ_BYTES = 1 << 16
_BLANKS = b" \t\r\n"
_LARGEST_ENTRY = 16 << 20
_MOST_DIGITS = 1000
_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % (_MOST_DIGITS + 1))


@dataclass(frozen=True, slots=True)
class ShopFiles:
    """Paths of one data set; ``human`` is None where only synthetic goals are wanted."""

    items: Path
    attributes: Path
    human: Path | None = None

    def __post_init__(self) -> None:
        """Makes sure that every file is there.

        Raises:
            DataFault: Files are missing; the message names each with its source.
        """
        paths = [path for path in (self.items, self.attributes, self.human) if path is not None]
        require_files(*paths)


def source_of(name: str) -> str:
    """Where to get a file of this name, as an error message says it."""
    if name in _DOWNLOADS:
        return f"download it from https://drive.google.com/uc?id={_DOWNLOADS[name]}"
    return "check the path, or generate a catalogue in this format"


def require_files(*paths: Path) -> None:
    """Makes sure that all files exist.

    Raises:
        DataFault: Some don't; all of them are named, each with where to get it.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        named = "; ".join(f"{path}: {source_of(path.name)}" for path in missing)
        raise DataFault(f"missing WebShop data: {named}")


def data_root() -> Path:
    """Folder named by the environment variable ``WEBSHOP_DATA``.

    Raises:
        DataFault: The variable is not set, or names no folder.
    """
    value = os.environ.get("WEBSHOP_DATA")
    if not value:
        raise DataFault(
            "WEBSHOP_DATA is not set: set it to the folder of the official files, or use invented products"
        )
    root = Path(value).expanduser()
    if not root.is_dir():
        raise DataFault(f"WEBSHOP_DATA names {value}, which is not a folder: correct it or unset it")
    return root


def find_files(folder: Path, *, full: bool = False, human: bool = False) -> ShopFiles:
    """Official files in a folder.

    Args:
        folder: Where they lie under their official names.
        full: The 1.18 million products instead of the 1,000.
        human: The human instructions too; synthetic goals don't need them.

    Raises:
        DataFault: Files are missing; the message names each with its source.
    """
    items, attributes = FULL if full else SMALL
    return ShopFiles(folder / items, folder / attributes, folder / HUMAN if human else None)


def _require_start(path: Path, opening: bytes, expected: str) -> None:
    """Makes sure that the document is of the expected kind: another one would read as an empty one."""
    with path.open("rb") as stream:
        start = stream.read(_READ_BYTES).lstrip(_BLANKS)[:1]
    if start != opening:
        found = repr(start.decode("latin-1")) if start else "nothing"
        raise DataFault(
            f"{path} starts with {found}, not with a JSON {expected}: make sure that it is the file meant "
            f"here, or fetch it again ({source_of(path.name)})"
        )


def _readable(path: Path, opening: bytes, expected: str) -> None:
    require_files(path)
    try:
        _require_start(path, opening, expected)
    except OSError as error:
        raise DataFault(f"can't read {path}: {error}. Check its permissions") from error


def _broken(path: Path, count: int, error: Exception) -> DataFault:
    # Some reasons come as bytes, which may quote bytes that are no text.
    first = error.args[0] if error.args else error
    text = first.decode("utf-8", "backslashreplace") if isinstance(first, bytes) else str(error)
    reason = " ".join(text.split()).removesuffix("(right here) ------^").strip()
    return DataFault(
        f"{path} is not valid JSON after {count} entries: {reason[:200]}. Fetch the file again "
        f"({source_of(path.name)})"
    )


class _Bounded:
    """A data file as a stream that ends in a sentence where the parser would end the process.

    Args:
        stream: The opened file.
        path: Its name, for messages.
    """

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._since = 0
        self._end = b""

    def begin_entry(self) -> None:
        """Counts the size of an entry anew."""
        self._since = 0

    def read(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            DataFault: An entry is too large, or a number too long, on which the C parser dies.
        """
        content = self._stream.read(size)
        self._since += len(content)
        if self._since > _LARGEST_ENTRY:
            raise DataFault(
                f"{self._path} has an entry of more than {_LARGEST_ENTRY} bytes: correct or remove it"
            )
        seam = self._end + content
        if _LONG_NUMBER.search(seam):
            raise DataFault(
                f"{self._path} has a number of more than {_MOST_DIGITS} digits: correct or remove it"
            )
        self._end = seam[-_MOST_DIGITS:]
        return content


def read_products(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Raw products of a product list with their position, counted from 0, one at a time.

    Numbers with a fraction arrive as ``decimal.Decimal``; no key that the shop reads holds one.

    Raises:
        DataFault: The file is missing, is not JSON, is not a list, or an entry is not an object.
    """
    _readable(path, b"[", "list")
    position = -1
    try:
        with path.open("rb") as stream:
            bounded = _Bounded(stream, path)
            for position, raw in enumerate(ijson.items(bounded, "item", buf_size=_READ_BYTES)):
                bounded.begin_entry()
                if not isinstance(raw, dict):
                    raise DataFault(
                        f"{path}: product {position} (from 0) is a {type(raw).__name__}, not an object: "
                        "correct or remove it"
                    )
                yield position, raw
    except (ijson.JSONError, OSError) as error:
        raise _broken(path, position + 1, error) from error


def read_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Key and value of each entry of a JSON object (attributes, human instructions), one at a time.

    Raises:
        DataFault: The file is missing, is not JSON, or is not an object.
    """
    _readable(path, b"{", "object")
    count = 0
    try:
        with path.open("rb") as stream:
            bounded = _Bounded(stream, path)
            for key, value in ijson.kvitems(bounded, "", buf_size=_READ_BYTES):
                bounded.begin_entry()
                yield key, value
                count += 1
    except (ijson.JSONError, OSError) as error:
        raise _broken(path, count, error) from error
