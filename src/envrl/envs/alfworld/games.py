"""ALFWorld game files as :class:`envrl.types.Game` records: the official splits, and any files or folders.

A game's id is a hash of what defines it (domain, grammar, problem), so the same game has the same id
under every name and in every folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from envrl.envs.alfworld.rooms import TASK_TYPES
from envrl.errors import DataFault
from envrl.types import Game
from envrl.untrusted import parse_json, read_text

GAME_FILE = "game.tw-pddl"
OFFICIAL_COUNTS: dict[str, int] = {"train": 3553, "valid_seen": 140, "valid_unseen": 134}
"""Playable games of the official splits (release 2.1.1), after the official loader's exclusions."""

_DATA_FOLDER = "json_2.1.1"
_DEFINING_FIELDS = ("pddl_domain", "grammar", "pddl_problem")
_DOWNLOAD = "download the games with alfworld-download and set ALFWORLD_DATA to their folder"


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DataFault: The file is missing, unreadable, not JSON, or not an object.
    """
    try:
        data = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise DataFault(
            f"can't read {path} as JSON: {error}. Check the path or fetch the file again"
        ) from error
    if not isinstance(data, dict):
        raise DataFault(f"{path} holds a {type(data).__name__}, not a JSON object: it is not a game file")
    return data


def content_id(game: str | Path | Mapping[str, Any], name: str = "the game") -> str:
    """Hash of a game's parsed content, 32 hexadecimal digits: equal for equal games wherever they are stored.

    Args:
        game: Path of a game file, or its parsed JSON object.
        name: What an error message calls a parsed object.

    Raises:
        DataFault: The file can't be read, or a defining field is missing or not text.
    """
    if isinstance(game, str | Path):
        return content_id(read_json(Path(game)), str(game))
    for field in _DEFINING_FIELDS:
        if not isinstance(game.get(field), str):
            raise DataFault(f"{name} has no text field {field!r}: it is not a game of ALFWorld 0.4 (tw-pddl)")
    content = json.dumps([game[field] for field in _DEFINING_FIELDS], ensure_ascii=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def data_root() -> Path:
    """Folder named by the environment variable ``ALFWORLD_DATA``.

    Raises:
        DataFault: The variable is not set, or names no folder.
    """
    value = os.environ.get("ALFWORLD_DATA")
    if not value:
        raise DataFault(f"ALFWORLD_DATA is not set: {_DOWNLOAD}, or use generated games")
    root = Path(value).expanduser()
    if not root.is_dir():
        raise DataFault(f"ALFWORLD_DATA names {value}, which is not a folder: {_DOWNLOAD}")
    return root


def _task_type(path: Path, data: Mapping[str, Any]) -> str:
    """Task type as the file itself, the trajectory beside it, or an enclosing folder's name tells it."""
    task_type = data.get("task_type")
    if task_type is None and (trajectory := path.with_name("traj_data.json")).is_file():
        task_type = read_json(trajectory).get("task_type")
    if task_type is None:
        names = (part.split("-", 1)[0] for part in reversed(path.parts))
        task_type = next((name for name in names if name in TASK_TYPES), None)
    if task_type not in TASK_TYPES:
        raise DataFault(f"{path} has the task type {task_type!r}: expected one of {', '.join(TASK_TYPES)}")
    return str(task_type)


def _describe(path: Path, data: Mapping[str, Any], split: str, max_steps: int) -> Game:
    return Game(content_id(data, str(path)), "alfworld", split, _task_type(path, data), str(path), max_steps)


def read_game(path: str | Path, split: str, max_steps: int = 50) -> Game:
    """Describes one game file.

    Raises:
        DataFault: The file is not a readable game of one of the six task types.
    """
    return _describe(Path(path), read_json(Path(path)), split, max_steps)


def find_game_files(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """Game files among the given files and, recursively, folders; sorted, each once.

    Raises:
        DataFault: A path does not exist, or there is no game file.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if path.is_dir():
            found.update(path.rglob("*.tw-pddl"))
        elif path.is_file():
            found.add(path)
        else:
            raise DataFault(f"{path} does not exist: give game files (.tw-pddl) or folders of them")
    if not found:
        raise DataFault(f"no .tw-pddl file in {', '.join(map(str, paths)) or 'nothing given'}: {_DOWNLOAD}")
    return tuple(sorted(found))


def _playable_game(trial: Path, folder: Path, split: str, max_steps: int) -> Game | None:
    """The game of a trial, or None by the official loader's exclusions.

    These are: movable receptacles, slices, no game file, not proven solvable.
    """
    name = str(trial.relative_to(folder))
    path = trial / GAME_FILE
    if "movable" in name or "Sliced" in name or not path.is_file():
        return None
    data = read_json(path)
    return _describe(path, data, split, max_steps) if data.get("solvable", False) else None


def load_split(root: Path, split: str, max_steps: int = 50, *, complete: bool = True) -> tuple[Game, ...]:
    """Games of an official split, sorted by id; the family is the task type.

    Args:
        root: Folder that holds ``json_2.1.1`` (what ``ALFWORLD_DATA`` names), or ``json_2.1.1`` itself.
        split: ``train``, ``valid_seen`` or ``valid_unseen``.
        max_steps: Environment steps after which an episode is truncated.
        complete: Insist on the official number of games; False accepts any number above zero.

    Raises:
        DataFault: The split is unknown, absent or incomplete, or holds a broken or doubled game.
    """
    if split not in OFFICIAL_COUNTS:
        raise DataFault(f"unknown split {split!r}: use one of {', '.join(OFFICIAL_COUNTS)}")
    base = root / _DATA_FOLDER if (root / _DATA_FOLDER).is_dir() else root
    folder = base / split
    if not folder.is_dir():
        raise DataFault(f"split {split!r} is absent: {folder} is not a folder; {_DOWNLOAD}")
    trials = sorted(path.parent for path in folder.rglob("traj_data.json"))
    found = (_playable_game(trial, folder, split, max_steps) for trial in trials)
    games = [game for game in found if game is not None]
    if not games or (complete and len(games) != OFFICIAL_COUNTS[split]):
        raise DataFault(
            f"split {split!r} in {folder} has {len(games)} playable games, not {OFFICIAL_COUNTS[split]}: "
            f"{_DOWNLOAD}, or accept a partial split with complete=False"
        )
    if len({game.game_id for game in games}) != len(games):
        raise DataFault(f"split {split!r} in {folder} holds the same game twice: remove the copies")
    return tuple(sorted(games, key=lambda game: game.game_id))
