"""Which names an artifact may have, and which files may be uploaded out of a journal.

A journal lies in a folder that may come from a stranger, so it names nothing beyond that folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote

from envrl.errors import DataFault
from envrl.tracking.delivery import KINDS
from envrl.tracking.journal import Entry
from envrl.untrusted import shown

_LONGEST_PATH = 1000
_MOST_DECODINGS = 8


def check_names(entry: Entry) -> None:
    """Refuses a name or folder of an artifact that is no plain relative path.

    Raises:
        DataFault: It is absolute, has ``..`` in it, or is one that MLflow can't keep.
    """
    if entry["kind"] == "text":
        _check_name(entry["name"])
    elif entry["kind"] == "artifact" and entry["folder"] is not None:
        _check_name(entry["folder"])


def check_kept(entry: Entry, folder: Path) -> None:
    """Refuses an entry of a journal that must not leave this machine.

    Args:
        entry: The entry.
        folder: Folder of the journal; what is uploaded has to lie in it, links followed.

    Raises:
        DataFault: A name is refused, or the file lies elsewhere, is missing, or is no file or folder.
    """
    if entry["kind"] not in KINDS:
        raise DataFault(f"{shown(entry['kind'])} is no kind of log call; known are {', '.join(KINDS)}")
    check_names(entry)
    if entry["kind"] != "artifact":
        return
    try:
        path, home = Path(entry["path"]).resolve(strict=True), folder.resolve()
        outside = not path.is_relative_to(home)
        odd = None if outside else _odd(path)
    except (OSError, ValueError, TypeError, RuntimeError) as fault:
        raise DataFault(
            f"the artifact {shown(entry['path'], _LONGEST_PATH)} can't be read ({fault}); leave files where "
            "they are until they are delivered"
        ) from fault
    if outside:
        raise DataFault(
            f"the artifact {shown(entry['path'], _LONGEST_PATH)} lies outside of {home}, and only files of "
            "the run's own folder are kept for delivery; copy it there before it is logged"
        )
    if odd is not None:
        raise DataFault(f"the artifact {odd} is a link, a device or a pipe; put a file in its place")


def _check_name(name: object) -> None:
    decoded = name if isinstance(name, str) else ""
    for _ in range(_MOST_DECODINGS):  # MLflow decodes it, also several times over
        decoded = unquote(decoded)
    parts = decoded.split("/")
    if not decoded.isprintable() or set(decoded) & set("\\#") or {"", ".", ".."} & set(parts):
        raise DataFault(
            f"{shown(name)} can't be the name of an artifact; use a relative path with / between its parts, "
            "without `..`, `#`, backslashes and control characters"
        )


def _odd(path: Path) -> Path | None:
    """What is neither a file nor a folder: the path, or something below it, where links are odd too."""
    below = [Path(place, name) for place, folders, files in os.walk(path) for name in (*folders, *files)]
    for one in (path, *below):
        mode = one.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return one
    return None
