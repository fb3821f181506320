"""What is fuzzed: a function of bytes for one border, with valid inputs to start from.

Every function may raise an :class:`envrl.errors.EnvrlError` and nothing else; whatever other exception it
raises is a crash. Needs no fuzzer: tests call the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Run = Callable[[bytes], object]
JSON_WORDS = (
    *(b"null", b"true", b"-1", b"1e400", b"NaN", b"{}", b"[]", b'""', b'"\\ud800"', b'"\\u0000"'),
    *(b"9" * 30, b"[" * 40, b'"$"', b'"$.."', b'"nan"', b"\xff", b","),
)


@dataclass(frozen=True)
class Target:
    """One border.

    Attributes:
        make: Given an empty folder, imports what is tested and returns the function of bytes.
        seeds: Inputs that are accepted.
        words: What mutations put in.
        weight: Share of the time.
    """

    make: Callable[[Path], Run]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...] = ()
    weight: float = 1.0


def text_of(data: bytes) -> str:
    """The bytes as text; what is none becomes the sign for it."""
    return data.decode("utf-8", errors="replace")


def play(env: Any, observation: Any, actions: Sequence[str]) -> None:
    """Steps through an episode until it ends."""
    from envrl.types import Observation

    assert isinstance(observation, Observation)
    for action in actions:
        result = env.step(action)
        assert 0.0 <= result.info["task_score"] <= 1.0
        result.observation.text.encode()
        if result.terminated or result.truncated:
            return
