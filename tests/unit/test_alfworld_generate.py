"""Generated games: what the knobs do, what is always true of a room, and how sets are stored."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from alfworld.gen import constants

from envrl.envs.alfworld import generate
from envrl.envs.alfworld.engine import load_game
from envrl.envs.alfworld.furnish import RoomSettings, draw_room
from envrl.envs.alfworld.games import content_id, read_game
from envrl.envs.alfworld.generate import generate_game, generate_games, main
from envrl.envs.alfworld.problem import Room, Task, game_data, instruction
from envrl.envs.alfworld.rooms import TASK_TYPES, load_scene, room_type, scene_numbers
from envrl.errors import ConfigFault, DataFault
from envrl.seeding import generator

SMALL = RoomSettings(receptacles=8, max_steps=20)


@cache
def rooms(count: int = 400, settings: RoomSettings = SMALL, split: str = "train") -> tuple[Room, ...]:
    return tuple(draw_room(generator(0, "test-room", i), settings, split) for i in range(count))


def test_the_package_has_120_scenes_of_four_kinds() -> None:
    assert Counter(room_type(n) for n in scene_numbers()) == {
        "Kitchen": 30,
        "LivingRoom": 30,
        "Bedroom": 30,
        "Bathroom": 30,
    }
    with pytest.raises(DataFault, match="no scene 31"):
        load_scene(31)


def test_a_scene_is_read_as_its_layout_says() -> None:
    scene = load_scene(1)
    kinds = Counter(r.kind for r in scene.receptacles)
    # FloorPlan1-openable.json: 8 cabinets, 8 drawers, 3 worktops, 2 shelves, fridge, microwave, sink;
    # FloorPlan1-objects.json names machine, bin, burners and toaster beside them.
    assert kinds == {
        "Cabinet": 8,
        "Drawer": 8,
        "CounterTop": 3,
        "Shelf": 2,
        "Fridge": 1,
        "Microwave": 1,
        "SinkBasin": 1,
        "CoffeeMachine": 1,
        "GarbageCan": 1,
        "StoveBurner": 4,
        "Toaster": 1,
    }
    first = next(r for r in scene.receptacles if r.identifier == "Cabinet|+00.68|+00.50|-02.20")
    assert first.location == (0, -5, 2, 30)  # 0 m, -1.25 m in quarters, 180 degrees, horizon 30
    assert "Sliced" not in "".join(scene.object_types)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task(TASK_TYPES[0], "Mug", "CoffeeMachine", "", 0), "put a mug in coffeemachine"),
        (Task(TASK_TYPES[0], "Apple", "Fridge", "", 1), "put some apple on fridge"),
        (Task(TASK_TYPES[1], "CD", "", "DeskLamp", 0), "look at cd under the desklamp"),
        (Task(TASK_TYPES[2], "Mug", "Shelf", "", 1), "clean some mug and put it in shelf"),
        (Task(TASK_TYPES[5], "Pen", "Desk", "", 1), "find two pen and put them in desk"),
    ],
)
def test_instructions(task: Task, words: str) -> None:
    assert instruction(task) == words


def test_every_task_type_occurs_in_every_room_type_it_is_valid_for() -> None:
    met: dict[str, set[str]] = {task_type: set() for task_type in TASK_TYPES}
    for room in rooms():
        met[room.task.task_type].add(room_type(room.scene))
    assert met == {
        "pick_and_place_simple": {"Kitchen", "LivingRoom", "Bathroom", "Bedroom"},
        "pick_two_obj_and_place": {"Kitchen", "LivingRoom", "Bathroom", "Bedroom"},
        "look_at_obj_in_light": {"LivingRoom", "Bedroom"},
        "pick_clean_then_place_in_recep": {"Kitchen", "Bathroom"},
        "pick_heat_then_place_in_recep": {"Kitchen"},
        "pick_cool_then_place_in_recep": {"Kitchen"},
    }


def test_unseen_scenes_are_kept_for_unseen_splits() -> None:
    trained = {room.scene for room in rooms()}
    assert len(trained) > 60
    assert not trained & {10, 219, 308, 424}
    assert not {room.scene for room in rooms(split="valid_seen")} & {10, 219, 308, 424}
    unseen = {room.scene for room in rooms(100, RoomSettings(), "valid_unseen")}
    assert unseen == {10, 219, 308, 424}


def test_splits_draw_different_rooms() -> None:
    games = {split: content_id(generate_game(SMALL, 0, split)) for split in ("train", "valid_seen", "test")}
    assert len(set(games.values())) == 3


@pytest.mark.parametrize("count", [6, 8, 20])
def test_a_room_has_as_many_receptacles_as_asked_for(count: int) -> None:
    drawn = rooms(60, RoomSettings(receptacles=count))
    assert {len(room.receptacles) for room in drawn} == {count}


def test_a_full_room_has_all_of_its_scene() -> None:
    for room in rooms(30, RoomSettings()):
        assert room.receptacles == load_scene(room.scene).receptacles


def test_density_sets_the_number_of_objects() -> None:
    sparse = rooms(40, RoomSettings(receptacles=10, objects_per_receptacle=0.6))
    dense = rooms(40, RoomSettings(receptacles=10, objects_per_receptacle=2.0))
    assert max(len(room.objects) for room in sparse) <= 6
    # Some drawn types have no place in a small room and are left out.
    assert 14 < sum(len(room.objects) for room in dense) / 40 <= 20


def test_locations_are_shared_or_not() -> None:
    def most_at_one_location(settings: RoomSettings) -> int:
        return max(
            max(Counter(r.location for r in room.receptacles).values()) for room in rooms(40, settings)
        )

    assert most_at_one_location(RoomSettings(receptacles=20)) >= 2
    assert most_at_one_location(RoomSettings(receptacles=20, shared_locations=False)) == 1


def test_nothing_lies_where_it_may_not() -> None:
    for room in rooms():
        kinds = {r.identifier: r.kind for r in room.receptacles}
        for placed in room.objects:
            if placed.kind == "DeskLamp":
                assert room.task.task_type == "look_at_obj_in_light"
            else:
                assert placed.kind in constants.VAL_RECEPTACLE_OBJECTS[kinds[placed.receptacle]]


def test_targets_are_there_and_objects_to_be_placed_are_elsewhere() -> None:
    at_home = Counter()
    for room in rooms():
        task = room.task
        kinds = {r.identifier: r.kind for r in room.receptacles}
        places = [kinds[o.receptacle] for o in room.objects if o.kind == task.object_type]
        assert (2 if task.task_type == "pick_two_obj_and_place" else 1) <= len(places) <= 4
        at_home[task.task_type] += places.count(task.receptacle_type)
        if task.task_type == "look_at_obj_in_light":
            assert [o.kind for o in room.objects].count("DeskLamp") == 1
        else:
            assert task.receptacle_type in kinds.values()
    assert at_home["pick_and_place_simple"] == at_home["pick_two_obj_and_place"] == 0
    # These are not solved by lying in the right place: they have to be hot first.
    assert at_home["pick_heat_then_place_in_recep"] > 5


def test_names_are_unique_and_the_start_is_away_from_everything() -> None:
    for room in rooms(100):
        names = [o.identifier for o in room.objects] + [r.identifier for r in room.receptacles]
        assert len(set(names)) == len(names)
        assert room.start not in {r.location for r in room.receptacles}


def test_a_game_is_proven_and_not_won_at_the_start() -> None:
    for seed in range(6):
        data = generate_game(SMALL, seed, "train")
        assert data["solvable"] is True
        assert 1 <= len(data["walkthrough"]) <= 20
        state = load_game(data).new_state()
        assert not state.won
        for command in data["walkthrough"]:
            assert not state.won
            assert command in state.admissible()
            state.step(command)
        assert state.won


def test_the_text_names_the_room_and_the_task() -> None:
    room = next(r for r in rooms() if r.task.task_type == "pick_and_place_simple")
    text = load_game(game_data(room)).new_state().feedback
    listed = Counter(re.findall(r"\ba ([a-z]+) \d+", text))
    assert listed == Counter(r.kind.lower() for r in room.receptacles)
    assert text.endswith(f"Your task is to: {instruction(room.task)}.")


def test_task_types_are_drawn_from_the_ones_asked_for() -> None:
    some = ("pick_two_obj_and_place", "pick_heat_then_place_in_recep")
    drawn = Counter(room.task.task_type for room in rooms(100, RoomSettings(task_types=some)))
    assert set(drawn) == set(some)
    assert min(drawn.values()) > 30


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"receptacles": 3}, "receptacles=3 is too small"),
        ({"objects_per_receptacle": 0.0}, r"objects_per_receptacle=0\.0"),
        ({"objects_per_receptacle": 11.0}, r"objects_per_receptacle=11\.0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"task_types": ()}, "at least one task type"),
        ({"task_types": ("pick_and_place_simple",) * 2}, "each once"),
        ({"task_types": ("juggle",)}, "unknown task type 'juggle'"),
    ],
)
def test_impossible_settings_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigFault, match=message):
        RoomSettings(**values)


def test_rooms_larger_than_any_scene_and_games_too_short_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigFault, match="has 55 receptacles and a goal for"):
        generate_games(RoomSettings(receptacles=55), 1, 0, "train", tmp_path)
    with pytest.raises(ConfigFault, match="wins within max_steps=1 in 100 draws"):
        generate_games(RoomSettings(receptacles=5, max_steps=1), 1, 0, "train", tmp_path)
    with pytest.raises(ConfigFault, match="count=0"):
        generate_games(SMALL, 0, 0, "train", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_games_in_every_process(tmp_path: Path) -> None:
    here = generate_games(SMALL, 3, 5, "train", tmp_path / "here")
    for hash_seed in ("1", "2"):
        out = tmp_path / hash_seed
        options = ["--count", "3", "--seed", "5", "--receptacles", "8", "--max-steps", "20"]
        done = subprocess.run(
            [sys.executable, "-m", "envrl.envs.alfworld.generate", "--out", str(out), *options],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        folder = Path(here[0].spec).parent.name
        assert done.stdout.splitlines()[-1] == f"games=3 folder={out / folder}"
        for game in here:
            assert (out / folder / Path(game.spec).name).read_bytes() == Path(game.spec).read_bytes()


def test_a_set_is_described_as_its_files_are(tmp_path: Path) -> None:
    games = generate_games(SMALL, 3, 0, "train", tmp_path)
    assert [read_game(game.spec, "train", 20) for game in games] == list(games)
    assert generate_games(SMALL, 4, 0, "train", tmp_path)[:3] != games  # another folder,
    ids = [game.game_id for game in generate_games(SMALL, 4, 0, "train", tmp_path)]
    assert ids[:3] == [game.game_id for game in games]  # the same games


def test_a_stored_set_is_used_again(tmp_path: Path, monkeypatch) -> None:
    games = generate_games(SMALL, 2, 0, "train", tmp_path)

    def fail(*_: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(generate, "generate_game", fail)
    assert generate_games(SMALL, 2, 0, "train", tmp_path) == games
    for other in (
        (SMALL, 2, 1, "train"),
        (SMALL, 2, 0, "test"),
        (RoomSettings(receptacles=8), 2, 0, "train"),
    ):
        with pytest.raises(AssertionError, match="generated again"):
            generate_games(*other, tmp_path)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    real = generate.generate_game
    made = []

    def fail_at_the_third(*arguments) -> dict:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(real(*arguments))
        return made[-1]

    monkeypatch.setattr(generate, "generate_game", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        generate_games(SMALL, 3, 0, "train", tmp_path)
    assert len(made) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_set_is_refused(tmp_path: Path) -> None:
    games = generate_games(SMALL, 2, 0, "train", tmp_path)
    manifest = Path(games[0].spec).parent / "manifest.json"
    record = json.loads(manifest.read_text())
    Path(games[1].spec).unlink()
    with pytest.raises(DataFault, match="incomplete set of games"):
        generate_games(SMALL, 2, 0, "train", tmp_path)
    record["key"]["seed"] = 9
    manifest.write_text(json.dumps(record))
    with pytest.raises(DataFault, match="delete it and try again"):
        generate_games(SMALL, 2, 0, "train", tmp_path)


def test_a_folder_that_cant_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFault, match=r"can't write games to .*file"):
        generate_games(SMALL, 1, 0, "train", tmp_path / "file" / "games")


def test_the_command_tells_what_is_wrong(tmp_path: Path, capsys) -> None:
    assert main(["--out", str(tmp_path), "--receptacles", "2"]) == 1
    assert capsys.readouterr().err.startswith("error: receptacles=2 is too small")
    assert list(tmp_path.iterdir()) == []
