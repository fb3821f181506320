"""The native engine against the reference, command by command."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from envrl.envs.alfworld import compare
from envrl.envs.alfworld.compare import RandomPlayer, compare_game
from envrl.envs.alfworld.engine import AlfworldEnv, GameState
from envrl.envs.alfworld.furnish import RoomSettings
from envrl.envs.alfworld.generate import generate_games
from envrl.envs.alfworld.rooms import TASK_TYPES
from envrl.envs.alfworld.textworld import TextWorldEnv
from envrl.seeding import generator

REAL_PER_TASK = 7
REAL_STEPS = 40
GENERATED_STEPS = 35


def real_games(per_task: int) -> list[Path]:
    """Real games of every task type, evenly picked from the seen validation split and the train split."""
    root = os.environ.get("ALFWORLD_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("set ALFWORLD_DATA to a folder of real games (alfworld-download) to compare on them")
    chosen: list[Path] = []
    for task in TASK_TYPES:
        found = sorted(Path(root).glob(f"json_2.1.1/*/{task}-*/*/game.tw-pddl"))
        if not found:
            pytest.skip(
                f"ALFWORLD_DATA={root} has no games of {task}; fetch all of them with alfworld-download"
            )
        chosen += found[:: max(1, len(found) // per_task)][:per_task]
    return chosen


def generated_games(folder: Path, count: int, settings: RoomSettings) -> list[Path]:
    return [Path(game.spec) for game in generate_games(settings, count, 11, "train", folder)]


def report(paths: list[Path], steps: int) -> int:
    """Compares all games; fails with every difference; returns the number of compared commands."""
    results = [compare_game(path, steps, seed=7) for path in paths]
    differences = [str(d) for result in results for d in result.differences]
    assert not differences, "\n".join(differences)
    return sum(result.steps for result in results)


def test_a_small_generated_game_plays_alike(tmp_path: Path) -> None:
    settings = RoomSettings(receptacles=8, max_steps=20, task_types=("pick_heat_then_place_in_recep",))
    assert report(generated_games(tmp_path, 1, settings), 30) >= 30


def test_both_environments_give_the_same_results_up_to_the_win(tmp_path: Path) -> None:
    settings = RoomSettings(receptacles=6, max_steps=20, task_types=("pick_and_place_simple",))
    (game,) = generate_games(settings, 1, 12, "train", tmp_path)
    solution = json.loads(Path(game.spec).read_text())["walkthrough"]
    native, reference = AlfworldEnv(), TextWorldEnv()
    assert native.reset(game, 0) == reference.reset(game, 0)
    results = [(native.step(command), reference.step(command)) for command in solution]
    assert [mine for mine, _ in results] == [theirs for _, theirs in results]
    assert results[-1][0].terminated
    reference.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_real_games_play_alike() -> None:
    paths = real_games(REAL_PER_TASK)
    assert len(paths) >= 40
    assert report(paths, REAL_STEPS) >= 1700


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_generated_games_play_alike(tmp_path: Path) -> None:
    small = RoomSettings(receptacles=8, max_steps=20)
    paths = [
        path
        for i, task in enumerate(TASK_TYPES)
        for name, settings in (("small", small), ("full", RoomSettings()))
        for path in generated_games(tmp_path / f"{i}{name}", 1, replace(settings, task_types=(task,)))
    ]
    assert len(paths) == 12
    assert report(paths, GENERATED_STEPS) >= 420


def test_a_difference_is_found_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = RoomSettings(receptacles=6, max_steps=20, task_types=("pick_and_place_simple",))
    (path,) = generated_games(tmp_path, 1, settings)
    honest = GameState.step
    monkeypatch.setattr(GameState, "step", lambda self, command: _with_typo(self, honest(self, command)))
    assert compare.main([str(path), "--steps", "5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "feedback differs" in lines[0]
    assert str(path) in lines[0]
    assert lines[1].startswith("  native:")
    assert lines[2].startswith("  reference:")
    assert lines[-1].startswith("games=1 steps=2 differences=2")


def _with_typo(state: GameState, answer: str) -> str:
    state.feedback = answer + "!"
    return state.feedback


def test_paths_without_games_are_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "envrl.envs.alfworld.compare", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: no .tw-pddl file")
    assert "Traceback" not in done.stderr


def test_random_play_prefers_rare_actions_and_mixes_in_nonsense() -> None:
    admissible = ["clean mug 1 with sinkbasin 1", *(f"go to drawer {i}" for i in range(30)), "look"]
    player = RandomPlayer(generator(0, "test"))
    played = [player.act(admissible) for _ in range(400)]
    assert played.count(admissible[0]) > 150
    assert sum(1 for command in played if command not in admissible) > 20
    again = RandomPlayer(generator(0, "test"))
    assert [again.act(admissible) for _ in range(400)] == played
