"""The grammar of actions: ``search[words]`` and ``click[name]``."""

from __future__ import annotations

from dataclasses import dataclass

SEARCH_PLACEHOLDER = "search[<your query>]"
"""How a list of admissible actions names the search bar: any words may stand between the brackets."""


@dataclass(frozen=True, slots=True)
class ParsedAction:
    """An action taken apart; only the names ``search`` and ``click`` mean anything.

    Attributes:
        name: What stands before the bracket, as written.
        argument: What stands inside, lower-case, at least one character.
    """

    name: str
    argument: str


def parse_action(action: str) -> ParsedAction | None:
    """Takes ``name[argument]`` at the start of an action apart; None where it doesn't start like that.

    The argument opens at the last bracket that leaves one character before the last closing one, on
    the first line; what follows is ignored. So ``search[tea] please`` searches for tea, ``search[a [b] c]``
    has the name ``search[a`` and a blank, which means nothing. (The original matches the regular
    expression ``(.+)\\[(.+)\\]``, which takes quadratic time on a long run of brackets.)
    """
    line = action.partition("\n")[0]
    close = line.rfind("]")
    opening = line.rfind("[", 1, max(close - 1, 0))
    if opening < 0:
        return None
    return ParsedAction(line[:opening], line[opening + 1 : close].lower())


def admits(admissible: tuple[str, ...], action: str) -> bool:
    """Whether an action is among the admissible ones: listed, or a search while a search bar is there.

    An action counts as listed if the shop would carry it out as the listed one: upper case inside the
    brackets and words after them make no difference.

    Args:
        admissible: Actions of an observation of this environment.
        action: What an agent wrote.
    """
    if action in admissible:
        return True
    parsed = parse_action(action)
    if parsed is None:
        return False
    if parsed.name == "search":
        return SEARCH_PLACEHOLDER in admissible
    return f"{parsed.name}[{parsed.argument}]" in admissible
