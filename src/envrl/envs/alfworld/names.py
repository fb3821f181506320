"""Names a player sees for the ids of a game's PDDL (``Mug_bar__plus_01...`` becomes ``mug 2``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from envrl.errors import DataFault

_SEPARATOR = "_bar_"


def player_names(ids: Iterable[str]) -> dict[str, str]:
    """Names the ids as the reference does (``alfworld.agents.utils.misc.Demangler``, not shuffled).

    An id with ``_bar_`` is called after the part before it, with ``basin`` appended when the word
    stands anywhere in the id (``sink|...|sinkbasin``); equally named ids are numbered so that the
    first in sorted order gets the highest number. Other ids keep their text, followed by a space
    as in the reference.

    Args:
        ids: Lower-case ids that occur in the facts true at the start.

    Raises:
        DataFault: Two ids can't be told apart by the rule.
    """
    ordered = sorted(set(ids))
    stems = {i: _stem(i) for i in ordered}
    left = Counter(s for s in stems.values() if s is not None)
    names: dict[str, str] = {}
    for identifier in ordered:
        stem = stems[identifier]
        if stem is None:
            names[identifier] = f"{_readable(identifier)} "
        else:
            names[identifier] = f"{stem} {left[stem]}"
            left[stem] -= 1
    return names


def _stem(identifier: str) -> str | None:
    head, separator, _ = identifier.partition(_SEPARATOR)
    if not separator:
        return None
    if _readable(head) != head or not head:
        raise DataFault(f"the id {identifier!r} has no plain type name before '_bar_'; rename it")
    return f"{head}basin" if "basin" in identifier else head


def _readable(text: str) -> str:
    for code, sign in (("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ",")):
        text = text.replace(code, sign)
    return text
