"""What is known of a game's places: the commands there, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envrl.envs.alfworld.facts import Memo
from envrl.envs.alfworld.rules import ActionRules
from envrl.envs.alfworld.texts import Mapped

_LISTS_PER_PLACE = 16


@dataclass(frozen=True, slots=True)
class Change:
    """What an action does to a state: clear bits, then set bits.

    ``conditional`` are further changes with the facts (as conjunctions of needed and forbidden bits)
    that must have held before.
    """

    clear: int
    set_: int
    conditional: tuple[ConditionalChange, ...]

    def apply(self, bits: int) -> int:
        """The state after the action."""
        after = bits & ~self.clear | self.set_
        for change in self.conditional:
            if bits & change.needs == change.needs and not bits & change.forbids:
                after = after & ~change.clear | change.set_
        return after


@dataclass(frozen=True, slots=True)
class ConditionalChange:
    """Bits to clear and to set if ``needs`` were all set and ``forbids`` were not."""

    needs: int
    forbids: int
    clear: int
    set_: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command does.

    Attributes:
        change: The change of the state.
        place: Where the agent is after it.
        mapped: The action's arguments as the grammar names them.
        texts: Answers given so far.
    """

    change: Change
    place: Place
    mapped: Mapped
    texts: Memo[str]


class Command:
    """An action with its arguments, at one place."""

    __slots__ = ("action", "args", "outcome", "text")

    def __init__(self, text: str, action: ActionRules, args: tuple[str, ...]) -> None:
        self.text = text
        self.action = action
        self.args = args
        self.outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What can be done in a state: the sorted texts, and the commands that depend on the state."""

    texts: tuple[str, ...]
    commands: dict[str, Command]


class Place:
    """A location of the agent."""

    __slots__ = ("by_text", "commands", "everywhere", "location", "options")

    def __init__(self, location: str, everywhere: Sequence[Command]) -> None:
        self.location = location
        self.by_text: dict[str, Command] = {}
        self.everywhere = [
            c.text for c in everywhere if c.action.moves_to is None or c.args[c.action.moves_to] != location
        ]
        self.options: Memo[Options] = Memo(_LISTS_PER_PLACE)
        self.commands: dict[tuple[int, tuple[str, ...]], Command] = {}
