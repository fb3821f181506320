"""How often the policy writes what only the environment should write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from envrl.prompts.render import without_banner
from envrl.types import Group

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]")
_FEWEST_WORDS = 2


def imagined_rate(groups: Sequence[Group], decode: Callable[[Sequence[int]], str]) -> float:
    """Share of turns whose written text holds a whole sentence of the environment.

    A sentence is two words or more up to a full stop, question or exclamation mark, as an observation of
    the same episodes has it; capitals and spaces don't matter. Actions are commands without such an end, so
    a policy that only acts has 0 (declared choice: no source defines the rate).

    Args:
        groups: The iteration's episodes.
        decode: Text of written tokens.

    Returns:
        A number in [0, 1]; 0 without turns.
    """
    transitions = [t for group in groups for tr in group.trajectories for t in tr.transitions]
    spoken: set[str] = set()
    for text in {x for t in transitions for x in (t.observation.text, t.next_observation.text)}:
        spoken |= _sentences(without_banner(text))
    written = [_plain(decode(t.generation.token_ids)) for t in transitions]
    # Most answers are commands without a full stop, and are not searched.
    imagined = sum(any(s in text for s in spoken) for text in written if _SENTENCE.search(text))
    return imagined / max(1, len(transitions))


def _sentences(text: str) -> set[str]:
    found = {_plain(sentence) for sentence in _SENTENCE.findall(text)}
    return {sentence for sentence in found if len(sentence.split()) >= _FEWEST_WORDS}


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
