"""TextWorld itself plays generated games, and the expert's walkthrough wins there too."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from envrl.envs.alfworld.furnish import RoomSettings
from envrl.envs.alfworld.generate import generate_games
from envrl.envs.alfworld.rooms import TASK_TYPES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_textworld_is_won_by_the_walkthrough(task_type: str, tmp_path: Path) -> None:
    textworld = pytest.importorskip("textworld")
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs import PddlEnv

    settings = replace(RoomSettings(receptacles=8, max_steps=20), task_types=(task_type,))
    (game,) = generate_games(settings, 1, 0, "train", tmp_path)
    env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))
    env.load(game.spec)
    state = env.reset()
    for command in json.loads(Path(game.spec).read_text())["walkthrough"]:
        assert not state["won"]
        assert command in state["admissible_commands"]
        state, _, _ = env.step(command)
    assert state["won"]
