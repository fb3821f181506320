"""How often the policy writes what only the environment should write."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from envrl.prompts.render import without_banner
from envrl.types import Trajectory

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]")
_FEWEST_WORDS = 2
_PAGE_MARK = "[SEP]"


def imagined_rate(trajectories: Sequence[Trajectory], decode: Callable[[Sequence[int]], str]) -> float:
    """Share of turns whose written text holds a whole sentence of the environment, or joins pages' texts.

    A sentence is two words or more up to a full stop, question or exclamation mark, as an observation of
    the same episodes has it; capitals and spaces don't matter. The WebShop's pages are not made of
    sentences, but of texts with the mark ``[SEP]`` between them: whoever writes the mark writes a page.
    Actions have neither, so a policy that only acts has 0 (declared choice: no source defines the rate).

    Args:
        trajectories: Episodes.
        decode: Text of written tokens.

    Returns:
        A number in [0, 1]; 0 without turns.
    """
    transitions = [t for trajectory in trajectories for t in trajectory.transitions]
    spoken: set[str] = set()
    if any(_PAGE_MARK in t.observation.text or _PAGE_MARK in t.next_observation.text for t in transitions):
        spoken.add(_plain(_PAGE_MARK))
    for text in {x for t in transitions for x in (t.observation.text, t.next_observation.text)}:
        spoken |= _sentences(without_banner(text))
    written = [_plain(decode(t.generation.token_ids)) for t in transitions]
    # Most answers are commands with neither, and are not searched.
    suspect = [text for text in written if _SENTENCE.search(text) or _plain(_PAGE_MARK) in text]
    imagined = sum(any(s in text for s in spoken) for text in suspect)
    return imagined / max(1, len(transitions))


def _sentences(text: str) -> set[str]:
    found = {_plain(sentence) for sentence in _SENTENCE.findall(text)}
    return {sentence for sentence in found if len(sentence.split()) >= _FEWEST_WORDS}


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
