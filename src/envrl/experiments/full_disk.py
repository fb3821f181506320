"""A full disk as one sentence, wherever in the libraries it was noticed."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

from envrl.errors import DataFault

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = re.compile(r"no space left on device|disk quota exceeded|database or disk is full", re.IGNORECASE)


def full_disk(error: BaseException, folder: Path) -> DataFault | None:
    """What to say if a disk was full, None if it was something else.

    Libraries wrap the system's error or only repeat its words, so causes and texts are read too.

    Args:
        error: What ended the work.
        folder: Where the work writes.
    """
    for one in _chain(error):
        if (isinstance(one, OSError) and one.errno in _FULL) or _SAID.search(str(one)):
            file = getattr(one, "filename", None)
            place = folder if file is None else Path(str(file)).parent
            return DataFault(
                f"the disk of {place} is full; free space there and run the same command again, which goes "
                "on from the last checkpoint, or begin anew with another --root"
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
