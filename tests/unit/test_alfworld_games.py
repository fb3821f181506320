"""Game files as records: ids by content, the official splits' rules, human goals."""

import json
import os
from pathlib import Path

import pytest

from envrl.envs.alfworld import games
from envrl.envs.alfworld.annotations import human_goals, with_human_goals
from envrl.envs.alfworld.games import content_id, data_root, find_game_files, load_split, read_game
from envrl.errors import DataFault

GRAMMAR = 'grammar :: """{"task": [{"rhs": "Your task is to: put a mug in desk."}]}"""'
TYPE = "pick_and_place_simple"


def game_json(problem: str = "p", **other: object) -> dict:
    return {"pddl_domain": "d", "grammar": GRAMMAR, "pddl_problem": problem, "solvable": True, **other}


def add_trial(root: Path, name: str, data: dict | None, task_type: str = TYPE) -> Path:
    """One trial as the official download lays it out."""
    trial = root / "json_2.1.1" / "valid_seen" / name / "trial_1"
    trial.mkdir(parents=True)
    anns = [{"task_desc": "Put the mug on the desk."}, {"task_desc": 'place a "mug" [here]'}]
    (trial / "traj_data.json").write_text(
        json.dumps({"task_type": task_type, "turk_annotations": {"anns": anns}})
    )
    if data is not None:
        (trial / "game.tw-pddl").write_text(json.dumps(data))
    return trial / "game.tw-pddl"


def test_id_is_the_one_worked_out_by_hand() -> None:
    # printf '["d", "g", "p"]' | b2sum -l 128
    assert (
        content_id({"pddl_domain": "d", "grammar": "g", "pddl_problem": "p"})
        == "3df34f03d25f9dadfa0992b570074bb2"
    )


def test_id_depends_on_the_defining_content_only(tmp_path: Path) -> None:
    path = tmp_path / "any name.json"
    path.write_text(json.dumps(game_json(walkthrough=["look"], solvable=False), indent=3))
    assert content_id(path) == content_id(game_json())
    ids = {content_id(game_json() | {field: "x"}) for field in ("pddl_domain", "grammar", "pddl_problem")}
    assert len(ids | {content_id(game_json())}) == 4


@pytest.mark.parametrize("field", ["pddl_domain", "grammar", "pddl_problem"])
def test_a_file_without_a_defining_field_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "g.tw-pddl"
    path.write_text(json.dumps(game_json() | {field: None}))
    with pytest.raises(DataFault, match=rf"g\.tw-pddl has no text field '{field}'"):
        read_game(path, "train")


@pytest.mark.parametrize("content", [None, "", "[1]", "{", "\x00"])
def test_a_broken_or_missing_file_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "g.tw-pddl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataFault, match=r"g\.tw-pddl"):
        read_game(path, "train")


def test_the_family_comes_from_the_file_the_trajectory_or_the_folder(tmp_path: Path) -> None:
    beside = add_trial(tmp_path, "x", game_json(), "look_at_obj_in_light")
    assert read_game(beside, "s").family == "look_at_obj_in_light"
    beside.write_text(json.dumps(game_json(task_type="pick_two_obj_and_place")))
    assert read_game(beside, "s").family == "pick_two_obj_and_place"
    folder = tmp_path / "pick_heat_then_place_in_recep-Egg-None-Fridge-1" / "trial_2"
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_text(json.dumps(game_json()))
    assert read_game(folder / "game.tw-pddl", "s").family == "pick_heat_then_place_in_recep"


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.tw-pddl"
    path.write_text(json.dumps(game_json(task_type="juggle")))
    with pytest.raises(DataFault, match="task type 'juggle'"):
        read_game(path, "s")


def test_the_official_exclusions(tmp_path: Path) -> None:
    kept = add_trial(tmp_path, "pick-Mug", game_json())
    add_trial(tmp_path, "pick_and_place_with_movable_recep-Pen", game_json("a"))
    add_trial(tmp_path, "pick-AppleSliced-Desk", game_json("b"))
    add_trial(tmp_path, "pick-Unsolvable", game_json("c") | {"solvable": False})
    unproven = game_json("d")
    del unproven["solvable"]
    add_trial(tmp_path, "pick-Unproven", unproven)
    add_trial(tmp_path, "pick-Missing", None)
    (only,) = load_split(tmp_path, "valid_seen", 30, complete=False)
    assert (only.spec, only.split, only.family, only.max_steps) == (str(kept), "valid_seen", TYPE, 30)


def test_words_in_the_path_above_the_split_exclude_nothing(tmp_path: Path) -> None:
    add_trial(tmp_path / "Sliced movable", "pick-Mug", game_json())
    assert len(load_split(tmp_path / "Sliced movable", "valid_seen", complete=False)) == 1


def test_a_split_is_sorted_by_id_and_found_from_either_folder(tmp_path: Path) -> None:
    for i in range(12):
        add_trial(tmp_path, f"pick-{i}", game_json(str(i)))
    found = load_split(tmp_path, "valid_seen", complete=False)
    assert len(found) == 12
    assert [g.game_id for g in found] == sorted(g.game_id for g in found)
    assert load_split(tmp_path / "json_2.1.1", "valid_seen", complete=False) == found


def test_an_incomplete_split_is_refused_unless_allowed(tmp_path: Path, monkeypatch) -> None:
    add_trial(tmp_path, "pick-1", game_json("1"))
    with pytest.raises(DataFault, match="has 1 playable games, not 140"):
        load_split(tmp_path, "valid_seen")
    monkeypatch.setitem(games.OFFICIAL_COUNTS, "valid_seen", 1)
    assert len(load_split(tmp_path, "valid_seen")) == 1


def test_an_absent_unknown_or_empty_split_is_refused(tmp_path: Path) -> None:
    add_trial(tmp_path, "pick-1", None)
    with pytest.raises(DataFault, match="'valid_unseen' is absent"):
        load_split(tmp_path, "valid_unseen")
    with pytest.raises(DataFault, match="unknown split 'test'"):
        load_split(tmp_path, "test")
    with pytest.raises(DataFault, match="has 0 playable games"):
        load_split(tmp_path, "valid_seen", complete=False)


def test_a_doubled_game_is_refused(tmp_path: Path) -> None:
    add_trial(tmp_path, "pick-1", game_json())
    add_trial(tmp_path, "pick-2", game_json())
    with pytest.raises(DataFault, match="the same game twice"):
        load_split(tmp_path, "valid_seen", complete=False)


def test_game_files_are_found_once_and_in_order(tmp_path: Path) -> None:
    first = add_trial(tmp_path, "a", game_json())
    second = add_trial(tmp_path, "b", game_json())
    assert find_game_files([second, tmp_path, str(first)]) == (first, second)
    with pytest.raises(DataFault, match="nowhere does not exist"):
        find_game_files([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataFault, match=r"no \.tw-pddl file in .*empty"):
        find_game_files([tmp_path / "empty"])


def test_data_root_names_the_variable(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataFault, match=r"ALFWORLD_DATA names .*gone"):
        data_root()
    monkeypatch.delenv("ALFWORLD_DATA")
    with pytest.raises(DataFault, match="ALFWORLD_DATA is not set"):
        data_root()


def test_human_goals_change_the_task_line_and_the_id_only(tmp_path: Path) -> None:
    add_trial(tmp_path, "pick-1", game_json())
    original = load_split(tmp_path, "valid_seen", complete=False)
    assert human_goals(original[0]) == ("Put the mug on the desk", 'place a "mug" [here]')
    words = set()
    for seed in range(8):
        (game,) = with_human_goals(original, tmp_path / "human", seed)
        data = json.loads(Path(game.spec).read_text())
        words.add(data["grammar"])
        assert game.game_id == content_id(game.spec) != original[0].game_id
        assert (game.family, game.split) == (TYPE, "valid_seen")
        assert {k: v for k, v in data.items() if k not in ("grammar", "task_type")} == {
            k: v for k, v in game_json().items() if k != "grammar"
        }
    assert words == {
        GRAMMAR.replace("put a mug in desk", "Put the mug on the desk"),
        GRAMMAR.replace("put a mug in desk", "place a mug here"),
    }


def test_a_game_without_human_goals_is_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{TYPE}-x" / "game.tw-pddl"
    path.parent.mkdir()
    path.write_text(json.dumps(game_json()))
    with pytest.raises(DataFault, match=r"traj_data\.json"):
        human_goals(read_game(path, "s"))
    path.with_name("traj_data.json").write_text("{}")
    with pytest.raises(DataFault, match="tells no human goals"):
        human_goals(read_game(path, "s", 50))


def official_root() -> Path:
    root = Path(os.environ.get("ALFWORLD_DATA", ""))
    if not (root / "json_2.1.1" / "valid_seen").is_dir():
        pytest.skip("needs the official games in ALFWORLD_DATA")
    return root


def test_official_valid_seen() -> None:
    found = load_split(official_root(), "valid_seen")
    families = [g.family for g in found]
    assert {name: families.count(name) for name in set(families)} == {
        "pick_and_place_simple": 35,
        "look_at_obj_in_light": 13,
        "pick_clean_then_place_in_recep": 27,
        "pick_heat_then_place_in_recep": 16,
        "pick_cool_then_place_in_recep": 25,
        "pick_two_obj_and_place": 24,
    }
