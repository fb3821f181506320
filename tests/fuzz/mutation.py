"""Mutations that keep a text's form: whole words and bracketed parts are moved, so that parsers read on."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_WORD = re.compile(rb"[A-Za-z0-9_?.:+-]+|\s+|.", re.DOTALL)
_PAIRS = {b"(": b")", b"[": b"]", b"{": b"}"}
_MOST_CHANGES = 4


def mutated(data: bytes, most: int, rng: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """A changed input: one to four words or bracketed parts are removed, doubled, moved or replaced.

    Args:
        data: What is changed.
        most: Bytes that the result may have.
        rng: Every choice comes from it.
        words: What may be put in beside what stands there already.
    """
    parts = _WORD.findall(data)
    for _ in range(rng.randint(1, _MOST_CHANGES)):
        if not parts:
            break
        start, end = _some(parts, rng)
        action = rng.randrange(5)
        if action == 0:
            del parts[start:end]
        elif action == 1:
            parts[start:start] = parts[start:end]
        elif action == 2 and words:
            parts[start:end] = [rng.choice(words)]
        elif action == 3 and words:
            parts.insert(start, rng.choice(words))
        else:
            other = _some(parts, rng)
            parts[start:end] = parts[slice(*other)]
    return b"".join(parts)[:most]


def _some(parts: Sequence[bytes], rng: random.Random) -> tuple[int, int]:
    """A word, or from an opening bracket to its closing one."""
    start = rng.randrange(len(parts))
    opening = parts[start]
    closing = _PAIRS.get(opening)
    if closing is None:
        return start, start + 1
    depth = 0
    for end in range(start, len(parts)):
        depth += (parts[end] == opening) - (parts[end] == closing)
        if depth == 0:
            return start, end + 1
    return start, start + 1
