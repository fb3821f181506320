"""Official games with a goal in a person's words instead of the template's.

Each official trial comes with a few sentences people wrote for it. The game stays the same in everything
but the line that tells the task, so it is another game with another id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from envrl.envs.alfworld.games import content_id, read_json
from envrl.envs.storage import write_whole
from envrl.errors import DataFault
from envrl.seeding import generator
from envrl.types import Game

_TASK_LINE = re.compile(r"(Your task is to: )((?:[^\"\\]|\\.)*?)(\.?\")")
# The grammar would read these as its own signs.
_GRAMMAR_SIGNS = str.maketrans("", "", '#[]{}|\\"')


def human_goals(game: Game) -> tuple[str, ...]:
    """Goals people wrote for an official game, in the file's order, without the full stop at the end.

    Raises:
        DataFault: There is no ``traj_data.json`` beside the game, or it tells no goals.
    """
    path = Path(game.spec).with_name("traj_data.json")
    try:
        annotations = read_json(path)["turk_annotations"]["anns"]
        goals = tuple(" ".join(a["task_desc"].split()).rstrip(".") for a in annotations)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataFault(f"{path} tells no human goals ({error!r}): use an official trial") from error
    if not goals:
        raise DataFault(f"{path} has an empty list of human goals: leave this game out")
    return goals


def _rewritten(game: Game, goal: str, folder: Path) -> Game:
    data = read_json(Path(game.spec))
    content_id(data, game.spec)  # refuses a file that is no game
    words = json.dumps(goal.translate(_GRAMMAR_SIGNS))[1:-1]
    data["grammar"], replaced = _TASK_LINE.subn(lambda m: m[1] + words + m[3], data["grammar"], count=1)
    if replaced != 1:
        raise DataFault(
            f"the grammar of {game.spec} has no line 'Your task is to: ...': use an official game"
        )
    data["task_type"] = game.family
    game_id = content_id(data)
    path = folder / f"{game_id}.tw-pddl"
    write_whole(path, json.dumps(data))
    return replace(game, game_id=game_id, spec=str(path))


def with_human_goals(games: Iterable[Game], folder: Path, seed: int) -> tuple[Game, ...]:
    """Gives every game one of its human goals, drawn by seed and game, sorted by new id.

    Args:
        games: Official games.
        folder: Where the rewritten game files go; made if absent.
        seed: Seed of the draw.

    Raises:
        DataFault: A game has no human goals, or a file can't be read or written.
    """
    rewritten = []
    for game in games:
        goals = human_goals(game)
        choice = int(generator(seed, "human-goal", game.game_id).integers(len(goals)))
        rewritten.append(_rewritten(game, goals[choice], folder))
    return tuple(sorted(rewritten, key=lambda g: g.game_id))
