"""Writing files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from envrl.errors import DataFault


def write_whole(path: Path, text: str) -> None:
    """Writes a text file beside its place and renames it, so that no reader ever sees half of it.

    Args:
        path: The file; its folder is made if absent.
        text: Content, written as UTF-8.

    Raises:
        DataFault: The file can't be written; nothing is left behind then.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
        raise DataFault(f"can't write {path}: {error}. Choose another place or make room") from error
