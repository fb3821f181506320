"""Fixed lists of games, so that two evaluations mean the same: each game once, known by its content."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pydantic

from envrl.envs.storage import write_whole
from envrl.errors import DataFault
from envrl.seeding import derive_seed, generator
from envrl.types import Game
from envrl.untrusted import read_text


class _GameEntry(pydantic.BaseModel):
    """One game as a panel file writes it."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    game_id: str = pydantic.Field(min_length=1)
    env: str = pydantic.Field(min_length=1)
    split: str = pydantic.Field(min_length=1)
    family: str = pydantic.Field(min_length=1)
    spec: str
    max_steps: int = pydantic.Field(ge=1)


class _PanelFile(pydantic.BaseModel):
    """A panel file."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    name: str = pydantic.Field(min_length=1)
    panel_hash: str
    games: list[_GameEntry] = pydantic.Field(min_length=1)


@dataclass(frozen=True)
class Panel:
    """A named list of games to evaluate on, each game once.

    Attributes:
        name: What tables call it, e.g. ``valid_seen``.
        games: At least one game, no two with the same id.
    """

    name: str
    games: tuple[Game, ...]

    def __post_init__(self) -> None:
        """Refuses an empty panel and a game that occurs twice.

        Raises:
            DataFault: There is no game, or two have the same id.
        """
        if not self.games:
            raise DataFault(f"panel {self.name!r} has no games: give it at least one")
        seen: dict[str, Game] = {}
        for game in self.games:
            if game.game_id in seen:
                first = seen[game.game_id].spec
                raise DataFault(
                    f"panel {self.name!r} has the same game twice ({first} and {game.spec}): drop one"
                )
            seen[game.game_id] = game

    @property
    def panel_hash(self) -> str:
        """Hash of the games' ids and step limits, 16 hexadecimal digits; order and file names don't count."""
        content = json.dumps(sorted((game.game_id, game.max_steps) for game in self.games))
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def require_disjoint(self, training_games: Iterable[Game]) -> None:
        """Makes sure that no game of the panel is trained on.

        Raises:
            DataFault: A training game has the same content as a game of the panel.
        """
        ids = {game.game_id for game in self.games}
        shared = sorted({game.spec for game in training_games if game.game_id in ids})
        if shared:
            raise DataFault(
                f"{len(shared)} training games are in panel {self.name!r} too, e.g. {shared[0]}: "
                "take the training games from another split or another seed"
            )

    def save(self, path: Path) -> None:
        """Writes the panel as JSON, whole or not at all.

        Raises:
            DataFault: The file can't be written.
        """
        record = {"name": self.name, "panel_hash": self.panel_hash, "games": [asdict(g) for g in self.games]}
        write_whole(path, json.dumps(record, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Panel:
        """Reads a panel and checks that its games are the ones its hash was made of.

        Raises:
            DataFault: The file is missing, is not a panel, or was changed by hand.
        """
        try:
            record = _PanelFile.model_validate_json(read_text(path))
        except (OSError, UnicodeDecodeError) as error:
            raise DataFault(
                f"can't read panel {path}: {error}. Check the path or make the panel again"
            ) from error
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise DataFault(
                f"{path} is not a panel: {place}: {first['msg']}. Make the panel again"
            ) from error
        panel = cls(record.name, tuple(Game(**entry.model_dump()) for entry in record.games))
        if panel.panel_hash != record.panel_hash:
            raise DataFault(
                f"{path} says panel_hash {record.panel_hash}, but its games hash to {panel.panel_hash}: "
                "it was changed after it was made; make the panel again"
            )
        return panel


def _shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """How many games each family gives: as even as the families' sizes allow, in name order."""
    shares = dict.fromkeys(sizes, 0)
    while (left := count - sum(shares.values())) > 0:
        open_families = [name for name in sorted(sizes) if shares[name] < sizes[name]]
        for name in open_families[:left]:
            shares[name] += 1
    return shares


def make_panel(games: Iterable[Game], count: int | None, seed: int, name: str = "panel") -> Panel:
    """Draws a panel with as even a number of games of every family as there are.

    The same games, in whatever order, and the same seed give the same panel.

    Args:
        games: Games to draw from; equal content counts once.
        count: Number of games; None takes all.
        seed: Seed of the draw.
        name: Name of the panel.

    Raises:
        DataFault: There are no games, or fewer than asked for.
    """
    unique = {game.game_id: game for game in sorted(games, key=lambda g: (g.game_id, g.spec), reverse=True)}
    count = len(unique) if count is None else count
    if not unique or not 1 <= count <= len(unique):
        raise DataFault(
            f"panel {name!r} shall have {count} games, but there are {len(unique)} different ones: "
            "generate or download more, or ask for fewer (at least 1)"
        )
    families: dict[str, list[Game]] = defaultdict(list)
    for game_id in sorted(unique):
        families[unique[game_id].family].append(unique[game_id])
    shares = _shares({family: len(members) for family, members in families.items()}, count)
    chosen: list[Game] = []
    for family in sorted(families):
        order = generator(seed, "panel", family).permutation(len(families[family]))
        chosen += [families[family][i] for i in order[: shares[family]]]
    return Panel(name, tuple(sorted(chosen, key=lambda game: game.game_id)))


def episode_seed(game: Game, root: int = 0) -> int:
    """Seed of a panel game's episode; it depends on the game alone, so all policies have the same draws.

    Args:
        game: The game.
        root: 0 in every evaluation; another number gives other draws.
    """
    return derive_seed(root, "panel", game.game_id)


def draw_games(games: Sequence[Game], count: int | None, seed: int) -> tuple[Game, ...]:
    """Games to train on: ``count`` of them in their order; all if there are no more or it is None."""
    if count is None or count >= len(games):
        return tuple(games)
    picked = generator(seed, "training-games").choice(len(games), size=count, replace=False)
    return tuple(games[i] for i in sorted(picked.tolist()))
