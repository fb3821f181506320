"""From what the policy wrote to the command sent to the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass

from envrl.prompts.settings import PromptForm

_START, _END = "<action>", "</action>"
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_MAX_COMPACT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class ParsedAction:
    """A command and whether the text around it followed the asked-for format.

    ``action`` is ``None`` only when nothing at all could be sent to the environment.
    """

    action: str | None
    format_valid: bool


def parse_action(text: str, form: PromptForm, *, tail_characters: int = 30) -> ParsedAction:
    """Projects a generation onto a command.

    ``reasoned`` follows the published projection (GiGPO, arXiv 2505.10978, public code): lower-case,
    the text between the first ``<action>`` and the first ``</action>``; if a tag is missing the last
    ``tail_characters`` characters are sent and the format is invalid; a missing think tag or a
    Chinese character also makes it invalid. Declared choices: an end tag before the first start tag
    is no pair, and an empty action is invalid. ``compact`` takes the single line as it stands.

    Args:
        text: Decoded generation without special tokens.
        form: Output format the policy was asked for.
        tail_characters: What is sent of a text without action tags (ALFWorld 30, WebShop 20).
    """
    if form == "compact":
        return _parse_compact(text)
    lowered = text.lower()
    # Not by a regular expression, which takes quadratic time on a start tag repeated without an end.
    start = lowered.find(_START)
    end = -1 if start < 0 else lowered.find(_END, start + len(_START))
    if end < 0:
        tail = lowered[-tail_characters:].strip()
        return ParsedAction(tail or None, False)
    action = lowered[start + len(_START) : end].strip()
    thought = "<think>" in lowered and "</think>" in lowered
    valid = bool(action) and thought and _CHINESE.search(text) is None
    return ParsedAction(action or None, valid)


def written_answer(action: str, form: PromptForm) -> str:
    """The shortest answer from which :func:`parse_action` reads an action: nothing is thought."""
    return f"<think></think><action>{action}</action>" if form == "reasoned" else action


def _parse_compact(text: str) -> ParsedAction:
    stripped = text.strip()
    if not stripped:
        return ParsedAction(None, False)
    valid = "\n" not in stripped and len(stripped) <= _MAX_COMPACT_CHARACTERS
    return ParsedAction(stripped.split("\n", 1)[0][:_MAX_COMPACT_CHARACTERS], valid)
