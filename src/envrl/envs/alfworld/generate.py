"""Generates ALFWorld games from what the alfworld package ships: any number, any size, no download.

    python -m envrl.envs.alfworld.generate --out games --count 100 --receptacles 8 --max-steps 20

Every game is proven: the expert wins it within the step limit and it is not won at the start. Games of
different splits differ: ``*unseen*`` splits use the four official unseen scenes and no other split does;
two splits that share scenes draw from different seeds, and their ids (content hashes) differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from envrl.envs.alfworld.engine import load_game
from envrl.envs.alfworld.expert import Expert
from envrl.envs.alfworld.furnish import RoomSettings, candidate_scenes, draw_room
from envrl.envs.alfworld.games import content_id, read_json
from envrl.envs.alfworld.problem import game_data
from envrl.envs.alfworld.rooms import TASK_TYPES
from envrl.errors import ConfigFault, DataFault, EnvrlError
from envrl.seeding import derive_seed, generator
from envrl.types import Game, Observation

__all__ = ["RoomSettings", "generate_game", "generate_games"]

MANIFEST = "manifest.json"
_DRAWS_VERSION = 1
"""Raised when the same settings and seed would give other games, so that stored sets aren't mixed up."""
_MOST_DRAWS = 100


def _walkthrough(data: dict[str, Any], max_steps: int) -> list[str]:
    """The expert's winning commands; empty if it does not win, or the game is won without a command."""
    state = load_game(data).new_state()
    expert = Expert()
    expert.reset(state.feedback)
    commands: list[str] = []
    while not state.won and len(commands) < max_steps:
        commands.append(expert.act(Observation(state.feedback, state.admissible())))
        state.step(commands[-1])
    return commands if state.won else []


def generate_game(settings: RoomSettings, seed: int, split: str) -> dict[str, Any]:
    """Makes one game, the same in every process for the same arguments.

    Args:
        settings: Size and difficulty.
        seed: Any integer >= 0.
        split: Name of the split; it decides the scenes and takes part in the seed.

    Returns:
        The JSON object of a ``.tw-pddl`` file, ``solvable`` and ``walkthrough`` (the expert's) included.

    Raises:
        ConfigFault: The settings allow no game, or none the expert wins within ``max_steps``.
    """
    for draw in range(_MOST_DRAWS):
        data = game_data(draw_room(generator(seed, "alfworld-game", split, draw), settings, split))
        if walkthrough := _walkthrough(data, settings.max_steps):
            return {**data, "split": split, "solvable": True, "walkthrough": walkthrough}
    raise ConfigFault(
        f"no game the expert wins within max_steps={settings.max_steps} in {_MOST_DRAWS} draws: "
        "allow more steps or fewer receptacles"
    )


def _set_key(settings: RoomSettings, count: int, seed: int, split: str) -> dict[str, Any]:
    return {
        "draws_version": _DRAWS_VERSION,
        "alfworld": version("alfworld"),
        "settings": json.loads(json.dumps(asdict(settings))),
        "count": count,
        "seed": seed,
        "split": split,
    }


def _stored_games(folder: Path, key: dict[str, Any]) -> tuple[Game, ...]:
    """Games of a folder that was written before.

    Raises:
        DataFault: The manifest is of another set, or a game file is missing.
    """
    manifest = read_json(folder / MANIFEST)
    games = [Game(**entry) for entry in manifest.get("games", ())]
    games = [Game(g.game_id, g.env, g.split, g.family, str(folder / g.spec), g.max_steps) for g in games]
    missing = next((g.spec for g in games if not Path(g.spec).is_file()), None)
    if manifest.get("key") != key or len(games) != key["count"] or missing:
        raise DataFault(
            f"{folder} holds another or an incomplete set of games ({missing=}): delete it and try again"
        )
    return tuple(games)


def _write_games(folder: Path, settings: RoomSettings, key: dict[str, Any]) -> None:
    entries = []
    for i in range(key["count"]):
        data = generate_game(settings, derive_seed(key["seed"], "game", i), key["split"])
        name = f"{i:05d}-{data['task_type']}.tw-pddl"
        (folder / name).write_text(json.dumps(data))
        entries.append(
            asdict(
                Game(content_id(data), "alfworld", key["split"], data["task_type"], name, settings.max_steps)
            )
        )
    if len({entry["game_id"] for entry in entries}) != len(entries):
        raise ConfigFault(
            f"two of {key['count']} games came out equal with seed {key['seed']}: use another seed"
        )
    (folder / MANIFEST).write_text(json.dumps({"key": key, "games": entries}, indent=1))


def generate_games(
    settings: RoomSettings, count: int, seed: int, split: str, folder: Path
) -> tuple[Game, ...]:
    """Makes a set of games below ``folder``, or finds it there when it was made before.

    The set gets a folder of its own, named by split and a hash of everything that decides its content, so
    that sets never mix. It appears whole or not at all: it is written beside and renamed.

    Args:
        settings: Size and difficulty.
        count: Number of games, at least 1.
        seed: Any integer >= 0; game ``i`` depends on it and ``i`` only, not on ``count``.
        split: Split the games belong to (see :func:`generate_game`).
        folder: Where sets of games are kept; made if absent.

    Raises:
        ConfigFault: The settings allow no game, or ``count`` or ``seed`` is out of range.
        DataFault: The folder can't be written or was damaged.
    """
    if count < 1 or seed < 0:
        raise ConfigFault(f"count={count}, seed={seed}: ask for at least 1 game and a seed of 0 or more")
    for task_type in settings.task_types:
        candidate_scenes(split, task_type, settings.receptacles)
    key = _set_key(settings, count, seed, split)
    digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=8).hexdigest()
    final = folder / f"{split}-{digest}"
    if not final.is_dir():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=folder))
        except OSError as error:
            raise DataFault(f"can't write games to {folder}: {error}. Choose another folder") from error
        try:
            _write_games(partial, settings, key)
            _publish(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _stored_games(final, key)


def _publish(partial: Path, final: Path) -> None:
    """Renames the finished folder; if another process was faster, its equal set stays."""
    partial.chmod(0o755)  # mkdtemp makes folders only the owner can read
    try:
        os.rename(partial, final)
    except OSError:
        if not (final / MANIFEST).is_file():
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Generates solvable ALFWorld games as .tw-pddl files; returns the exit code."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.envs.alfworld.generate",
        description="Generates ALFWorld games that the expert wins, as .tw-pddl files.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder; the set gets a folder of its own in it"
    )
    parser.add_argument("--count", type=int, default=100, help="number of games (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the set (default: 0)")
    parser.add_argument(
        "--split", default="train", help="split; names with 'unseen' use the unseen scenes only"
    )
    parser.add_argument(
        "--receptacles", type=int, help="pieces of furniture in a room (default: the whole scene)"
    )
    parser.add_argument(
        "--objects", type=float, help="mean objects on a receptacle (default: as official games)"
    )
    parser.add_argument(
        "--max-steps", type=int, default=50, help="step limit the expert must keep (default: 50)"
    )
    parser.add_argument(
        "--task-types", nargs="+", default=TASK_TYPES, metavar="TYPE", help=", ".join(TASK_TYPES)
    )
    parser.add_argument("--own-locations", action="store_true", help="no two receptacles share a location")
    options = parser.parse_args(arguments)
    try:
        settings = RoomSettings(
            receptacles=options.receptacles,
            objects_per_receptacle=options.objects,
            max_steps=options.max_steps,
            task_types=tuple(options.task_types),
            shared_locations=not options.own_locations,
        )
        games = generate_games(settings, options.count, options.seed, options.split, options.out)
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"games={len(games)} folder={Path(games[0].spec).parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
