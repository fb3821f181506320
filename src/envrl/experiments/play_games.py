"""Which game is meant: by number, by id, by task type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envrl.errors import ConfigFault
from envrl.types import Game

_SHOWN = 8
"""Names or numbers that an error message lists."""
_LEAST_OF_ID = 4
"""Characters of an id that are taken for one."""


@dataclass(frozen=True)
class GameList:
    """Games with the numbers they have among all of a panel, from 1.

    Attributes:
        numbered: Number and game, in this order; at least one.
        total: Games of the panel.
    """

    numbered: tuple[tuple[int, Game], ...]
    total: int

    def number(self, game: Game) -> int:
        """The number of one of the games."""
        return next(n for n, known in self.numbered if known.game_id == game.game_id)

    def after(self, game: Game) -> Game:
        """The game that follows; the first after the last."""
        games = [known for _, known in self.numbered]
        place = next(i for i, known in enumerate(games) if known.game_id == game.game_id)
        return games[(place + 1) % len(games)]

    def find(self, name: str) -> Game:
        """A game by its number, or by its id or the beginning of it.

        Raises:
            ConfigFault: There is none, or several ids begin like that.
        """
        matching = [game for n, game in self.numbered if name == str(n)]
        if not matching and len(name) >= _LEAST_OF_ID:
            matching = [game for _, game in self.numbered if game.game_id.startswith(name)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise ConfigFault(f"the ids of {len(matching)} games begin with '{name}'; give more of it")
        numbers = [n for n, _ in self.numbered]
        chosen = (
            f"a number from 1 to {self.total}"
            if len(numbers) == self.total
            else f"one of the numbers {_listed([str(n) for n in numbers])}"
        )
        raise ConfigFault(
            f"there is no game '{name}' here; give {chosen}, or the beginning of an id, "
            f"{_LEAST_OF_ID} characters or more (--set evaluation.games=N makes the panel larger)"
        )


def choose_games(panel: Sequence[Game], family: str | None) -> GameList:
    """The games of a panel, or those of one task type.

    Raises:
        ConfigFault: The panel has none of that task type.
    """
    numbered = tuple((n, game) for n, game in enumerate(panel, start=1) if family in (None, game.family))
    if not numbered:
        families = sorted({game.family for game in panel})
        raise ConfigFault(f"no game of the task type '{family}' here; choose from {_listed(families)}")
    return GameList(numbered, len(panel))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
