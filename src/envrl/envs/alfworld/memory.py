"""What an ALFWorld player has read so far: the task, the furniture, and what was seen lying where.

Understands the wording of grammar 2.1.2 (``You move the mug 1 to the desk 1.``) and of 2.1.1
(``You arrive at loc 12.``, ``You put the mug 1 in/on the desk 1.``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

from alfworld.gen import goal_library

from envrl.envs.alfworld.rooms import TASK_TYPES
from envrl.errors import DataFault

_THING = r"([a-z]+ \d+)"
_INTRO = re.compile(r"Looking quickly around you, you see (.+?)\.(?:\s|$)", re.DOTALL)
_TASK = re.compile(r"Your task is to: (.+?)\.?\s*$", re.DOTALL)
_LISTED = re.compile(rf"\ba {_THING}")
_ARRIVED = re.compile(rf"You arrive at {_THING}\.")
_FACING = re.compile(r"You are facing the (.+?)\. Next to it")
_CONTENT = re.compile(
    rf"(?:On|In) the {_THING}, you see (.+?)\.|The {_THING} is open\. In it, you see (.+?)\."
)
_CLOSED = re.compile(rf"The {_THING} is closed\.|You close the {_THING}\.")
_TAKEN = re.compile(rf"You pick up the {_THING} from the {_THING}\.")
_PUT = re.compile(rf"You (?:move|put) the {_THING} (?:to|in/on|in|on) the {_THING}\.")
_CHANGED = re.compile(rf"You (clean|heat|cool) the {_THING} using the {_THING}\.")
_OPPOSITE = {"heat": "cool", "cool": "heat"}


@dataclass(frozen=True, slots=True)
class TaskWords:
    """An instruction taken apart, in lower case; ``receptacle`` or ``toggle`` is empty where not named."""

    task_type: str
    target: str
    receptacle: str
    toggle: str


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """The goal library's templates as patterns, the most specific (longest) first."""
    pairs = [(template, name) for name in TASK_TYPES for template in goal_library.gdict[name]["templates"]]
    pairs.sort(key=lambda pair: -len(pair[0].replace("{obj}", "").replace("{recep}", "")))
    return tuple(
        (name, re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[a-z]+)", re.escape(template))))
        for template, name in pairs
    )


def parse_task(text: str) -> TaskWords:
    """Reads the task from the first observation.

    Raises:
        DataFault: There is no task, or it is not one of the goal library's sentences (a human's wording).
    """
    found = _TASK.search(text)
    if found is None:
        raise DataFault(
            f"no task in the first observation: expected 'Your task is to: ...' in {text[:200]!r}"
        )
    words = " ".join(found[1].split()).lower()
    for task_type, pattern in _patterns():
        if match := pattern.fullmatch(words):
            parts = match.groupdict()
            return TaskWords(task_type, parts["obj"], parts.get("recep") or "", parts.get("toggle") or "")
    raise DataFault(
        f"the task {words!r} follows no template of the goal library: the expert needs template goals"
    )


def kind_of(thing: str) -> str:
    """``cabinet 12`` -> ``cabinet``."""
    return thing.rsplit(" ", 1)[0]


@dataclass
class Memory:
    """Everything read since the first observation, whoever chose the commands.

    Attributes:
        receptacles: Furniture in the order of the first observation.
        contents: What was last seen in or on a receptacle; no entry if it was never seen.
        closed: Receptacles last seen closed.
        holding: Object in hand.
        changes: ``(change, object)`` pairs made with a tool: ``clean``, ``heat`` or ``cool``.
    """

    receptacles: tuple[str, ...] = ()
    contents: dict[str, list[str]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    holding: str | None = None
    changes: set[tuple[str, str]] = field(default_factory=set)

    def observe(self, text: str) -> None:
        """Takes in one feedback text; a text that tells nothing new changes nothing."""
        if not self.receptacles and (intro := _INTRO.search(text)):
            self.receptacles = tuple(_LISTED.findall(intro[1]))
            return
        for flat, seen_flat, opened, seen_opened in _CONTENT.findall(text):
            self.contents[flat or opened] = _LISTED.findall(seen_flat or seen_opened)
            self.closed.discard(flat or opened)
        for told, done in _CLOSED.findall(text):
            self.closed.add(told or done)
        if taken := _TAKEN.search(text):
            self.holding = taken[1]
            if taken[1] in (content := self.contents.get(taken[2], [])):
                content.remove(taken[1])
        elif put := _PUT.search(text):
            self.holding = None
            self.contents.setdefault(put[2], []).append(put[1])
        elif changed := _CHANGED.search(text):
            self.changes.discard((_OPPOSITE.get(changed[1], ""), changed[2]))
            self.changes.add((changed[1], changed[2]))

    def where(self, kind: str) -> list[tuple[str, str]]:
        """``(object, receptacle)`` pairs of all objects of this type seen and not taken since."""
        return [(o, r) for r, content in self.contents.items() for o in content if kind_of(o) == kind]
