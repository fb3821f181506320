"""The expert: what it does with what it has read, that it knows nothing else, and how often it wins."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envrl.envs.alfworld.engine import AlfworldEnv, load_game
from envrl.envs.alfworld.expert import Expert, main, plausibility
from envrl.envs.alfworld.furnish import RoomSettings, draw_room
from envrl.envs.alfworld.generate import generate_games
from envrl.envs.alfworld.problem import PlacedObject, Room, Task, game_data
from envrl.envs.alfworld.rooms import TASK_TYPES, Receptacle
from envrl.envs.demonstrate import demonstrate
from envrl.errors import DataFault
from envrl.seeding import generator
from envrl.types import Game, Observation

INTRO = "You are in the middle of a room. Looking quickly around you, you see {}.\n\nYour task is to: {}."
SMALL = RoomSettings(receptacles=8, max_steps=20)


def play(data: dict, expert: Expert, max_steps: int = 50) -> tuple[list[str], bool]:
    """Commands of one episode, and whether it was won."""
    state = load_game(data).new_state()
    expert.reset(state.feedback)
    commands: list[str] = []
    while not state.won and len(commands) < max_steps:
        commands.append(expert.act(Observation(state.feedback, state.admissible())))
        state.step(commands[-1])
    return commands, state.won


def kitchen(task: Task, **where: str) -> dict:
    """A kitchen of five, each at its own place; ``where`` names the receptacle type of each object."""
    kinds = ("CounterTop", "Fridge", "Microwave", "SinkBasin", "Cabinet")
    names = {kind: f"{kind}|+00.00|+00.00|+{i:02d}.00" for i, kind in enumerate(kinds)}
    names["SinkBasin"] = "Sink|+00.00|+00.00|+03.00|SinkBasin"
    receptacles = tuple(Receptacle(names[kind], kind, (i, 0, 0, 30)) for i, kind in enumerate(kinds))
    objects = tuple(
        PlacedObject(f"{label.rstrip('12')}|{i:+06.2f}|+00.00|+00.00", label.rstrip("12"), names[kind])
        for i, (label, kind) in enumerate(where.items())
    )
    return game_data(Room(7, receptacles, objects, (-9, 0, 0, 30), task))


def test_plausibility_is_the_typical_load_spread_over_what_may_lie_there() -> None:
    # A toilet holds 1.9 objects of 12 types, candles among them; it holds no bread.
    assert plausibility("toilet", "candle") == pytest.approx(0.158333, abs=1e-6)
    assert plausibility("toilet", "bread") == pytest.approx(0.000158333, abs=1e-9)
    assert plausibility("desk", "desklamp") == pytest.approx(4.9)
    assert plausibility("bed", "desklamp") == pytest.approx(0.0039)
    assert plausibility("toaster", "mug") > 0
    assert plausibility("spaceship", "mug") > 0


@pytest.mark.parametrize(
    ("task", "where", "expected"),
    [
        (
            Task(TASK_TYPES[0], "Ladle", "Cabinet", "", 0),
            {"Ladle": "CounterTop"},
            "go to countertop 1|take ladle 1 from countertop 1|"
            "go to cabinet 1|open cabinet 1|move ladle 1 to cabinet 1",
        ),
        (
            Task(TASK_TYPES[2], "Ladle", "CounterTop", "", 0),
            {"Ladle": "CounterTop"},
            "go to countertop 1|take ladle 1 from countertop 1|go to sinkbasin 1|"
            "clean ladle 1 with sinkbasin 1|go to countertop 1|move ladle 1 to countertop 1",
        ),
        (
            Task(TASK_TYPES[3], "Mug", "Fridge", "", 0),
            {"Mug": "CounterTop"},
            "go to fridge 1|open fridge 1|go to countertop 1|take mug 1 from countertop 1|"
            "go to microwave 1|heat mug 1 with microwave 1|go to fridge 1|move mug 1 to fridge 1",
        ),
        (
            Task(TASK_TYPES[4], "Mug", "Cabinet", "", 0),
            {"Mug": "Fridge"},
            "go to fridge 1|open fridge 1|take mug 1 from fridge 1|cool mug 1 with fridge 1|"
            "go to cabinet 1|open cabinet 1|move mug 1 to cabinet 1",
        ),
        (
            Task(TASK_TYPES[5], "Ladle", "Cabinet", "", 0),
            {"Ladle1": "CounterTop", "Ladle2": "CounterTop"},
            "go to countertop 1|take ladle 2 from countertop 1|"
            "go to cabinet 1|open cabinet 1|move ladle 2 to cabinet 1|"
            "go to countertop 1|take ladle 1 from countertop 1|go to cabinet 1|move ladle 1 to cabinet 1",
        ),
        (
            Task(TASK_TYPES[1], "Ladle", "", "DeskLamp", 0),
            {"Ladle": "SinkBasin", "DeskLamp": "CounterTop"},
            "go to countertop 1|go to sinkbasin 1|take ladle 1 from sinkbasin 1|"
            "go to countertop 1|use desklamp 1",
        ),
    ],
)
def test_each_task_is_played_without_a_superfluous_command(task: Task, where: dict, expected: str) -> None:
    commands, won = play(kitchen(task, **where), Expert())
    assert won
    assert commands == expected.split("|")


def test_the_second_object_joins_the_first_in_the_same_receptacle() -> None:
    task = Task(TASK_TYPES[5], "Mug", "CounterTop", "", 0)
    data = kitchen(task, Mug1="CounterTop", Mug2="SinkBasin")
    commands, won = play(data, Expert())
    assert won
    # One lies where it belongs already, so only the other is carried.
    assert [c for c in commands if c.startswith(("take", "move"))] == [
        "take mug 1 from sinkbasin 1",
        "move mug 1 to countertop 1",
    ]


def test_two_half_filled_receptacles_are_not_visited_in_turns() -> None:
    expert = Expert()
    expert.reset(INTRO.format("a shelf 2, and a shelf 1", "put two pen in shelf"))
    go = ("go to shelf 1", "go to shelf 2")
    for text in ("On the shelf 1, you see a pen 1.", "On the shelf 2, you see a pen 2."):
        command = expert.act(Observation(text, go))
    # Shelf 2 is named first, so pen 1 moves, also once the player stands before shelf 1.
    assert command == "go to shelf 1"
    at_one = ("examine shelf 1", "go to shelf 2", "take pen 1 from shelf 1")
    assert expert.act(Observation("", at_one)) == "take pen 1 from shelf 1"


def test_it_searches_where_the_object_belongs_first_and_everywhere_at_last() -> None:
    expert = Expert()
    expert.reset(INTRO.format("a bed 1, a toilet 1, and a desk 1", "look at candle under the desklamp"))
    empty = "You arrive at {0}. On the {0}, you see nothing."
    every = tuple(f"go to {r}" for r in ("bed 1", "toilet 1", "desk 1"))
    first = expert.act(Observation("", every))
    second = expert.act(Observation(empty.format("toilet 1"), every))
    third = expert.act(Observation(empty.format("desk 1"), every))
    assert (first, second, third) == ("go to toilet 1", "go to desk 1", "go to bed 1")


def test_it_does_not_look_for_a_thing_where_the_thing_is_asked_to_be_put() -> None:
    expert = Expert()
    every = ("go to desk 1", "go to toilet 1")
    expert.reset(INTRO.format("a desk 1, and a toilet 1", "put a clean candle in toilet"))
    assert expert.act(Observation("", every)) == "go to toilet 1"
    expert.reset(INTRO.format("a desk 1, and a toilet 1", "put a candle in toilet"))
    assert expert.act(Observation("", every)) == "go to desk 1"


def test_a_place_that_refused_one_thing_may_take_another() -> None:
    expert = Expert()
    expert.reset(INTRO.format("a toilet 1, and a desk 1", "put a cloth in toilet"))
    at_toilet = ("examine toilet 1", "go to desk 1")
    assert expert.act(Observation("You pick up the cd 1 from the desk 1.", at_toilet)) == "go to desk 1"
    at_desk = ("examine desk 1", "go to toilet 1")
    expert.act(Observation("You move the cd 1 to the desk 1.", at_desk))
    assert expert.act(Observation("You pick up the cloth 1 from the desk 1.", at_desk)) == "go to toilet 1"


def test_it_opens_what_stands_at_hand_before_it_walks() -> None:
    expert = Expert()
    expert.reset(INTRO.format("a drawer 3, a drawer 2, and a drawer 1", "put a pen in bed"))
    at_two = ("go to drawer 1", "go to drawer 3", "examine drawer 2", "open drawer 2")
    assert (
        expert.act(Observation("You arrive at drawer 2. The drawer 2 is closed.", at_two)) == "open drawer 2"
    )


def test_its_command_is_admissible_whenever_there_is_one() -> None:
    expert = Expert()
    expert.reset(INTRO.format("a desk 1, and a bed 1", "put a pen in bed"))
    assert expert.act(Observation("", ("inventory", "help"))) == "help"
    assert expert.act(Observation("", ("inventory", "look"))) == "look"
    assert expert.act(Observation("", ())) == "look"


def test_a_wrong_thing_in_hand_is_put_away_first() -> None:
    expert = Expert()
    expert.reset(INTRO.format("a desk 1, and a bed 1", "put a pen in bed"))
    here = ("examine desk 1", "go to bed 1", "move cd 1 to desk 1", "look")
    assert expert.act(Observation("You pick up the cd 1 from the desk 1.", here)) == "move cd 1 to desk 1"


def test_it_knows_only_what_it_has_read() -> None:
    """Moving an object it has not seen yet, between places it has not looked into, changes no command."""
    checked = 0
    for i in range(20):
        room = draw_room(generator(1, "hidden", i), RoomSettings(receptacles=8), "train")
        commands, _ = play(game_data(room), Expert())
        visited = [r.identifier for r in room.receptacles]
        state = load_game(game_data(room)).new_state()
        texts = [state.feedback] + [state.step(c) for c in commands]
        hidden = [
            o for o in room.objects if not any(re.search(rf"\b{o.kind.lower()} \d", t) for t in texts[1:])
        ]
        unread = [v for v in visited if v not in {o.receptacle for o in room.objects}]
        moved = next((o for o in hidden if o.kind not in (room.task.object_type, "DeskLamp")), None)
        if moved is None or not unread:
            continue
        named = " ".join(texts[1:])
        target = next((u for u in unread if u.split("|")[0].lower() not in named), None)
        if target is None:
            continue
        others = tuple(replace(o, receptacle=target) if o is moved else o for o in room.objects)
        assert play(game_data(replace(room, objects=others)), Expert())[0] == commands
        checked += 1
    assert checked >= 5


def test_it_takes_over_an_episode_somebody_else_began() -> None:
    won = 0
    for i in range(12):
        state = load_game(game_data(draw_room(generator(2, "foreign", i), SMALL, "train"))).new_state()
        expert, rng = Expert(), generator(3, "foreign", i)
        expert.reset(state.feedback)
        for step in range(45):
            command = expert.act(Observation(state.feedback, state.admissible()))
            if step < 12:
                command = state.admissible()[int(rng.integers(len(state.admissible())))]
            state.step(command)
            if state.won:
                won += 1
                break
    assert won == 12


def test_without_a_generator_it_always_plays_the_same_and_with_one_it_varies() -> None:
    data = game_data(draw_room(generator(0, "vary", 3), RoomSettings(), "train"))
    assert play(data, Expert()) == play(data, Expert())
    varied = {tuple(play(data, Expert(np.random.default_rng(seed)))[0]) for seed in range(10)}
    assert len(varied) > 1
    assert play(data, Expert(np.random.default_rng(4))) == play(data, Expert(np.random.default_rng(4)))


def test_a_human_goal_is_refused() -> None:
    with pytest.raises(DataFault, match="follows no template"):
        Expert().reset(INTRO.format("a desk 1", "bring me the pen"))


def old_wording(data: dict) -> dict:
    """The same game in the words of grammar 2.1.1."""
    changes = {
        'template :: "move {o} to {r}"': 'template :: "put {o} in/on {r}"',
        "You move the {o.name} to the {r.name}.": "You put the {o.name} in/on the {r.name}.",
    }
    grammar = data["grammar"]
    for new, old in changes.items():
        assert new in grammar
        grammar = grammar.replace(new, old)
    return {**data, "grammar": grammar}


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_the_old_wording_is_played_too(task_type: str) -> None:
    settings = replace(SMALL, task_types=(task_type,))
    data = game_data(draw_room(generator(0, "old", 0), settings, "train"))
    new_commands, new_won = play(data, Expert())
    old_commands, old_won = play(old_wording(data), Expert())
    assert new_won
    assert old_won
    assert len(old_commands) == len(new_commands)
    if task_type != "look_at_obj_in_light":
        assert old_commands[-1].startswith("put ")
        assert " in/on " in old_commands[-1]


def test_a_demonstration_has_every_observation_and_stops_at_the_limit(tmp_path: Path) -> None:
    (game,) = generate_games(SMALL, 1, 0, "train", tmp_path)
    run = demonstrate(AlfworldEnv(), game, Expert())
    assert (run.won, run.task_score) == (True, 1.0)
    assert len(run.observations) == len(run.commands) + 1
    assert json.loads(Path(game.spec).read_text())["walkthrough"] == list(run.commands)
    assert "Your task is to:" in run.observations[0].text
    cut = demonstrate(AlfworldEnv(), replace(game, max_steps=2), Expert())
    assert (cut.won, cut.commands) == (False, run.commands[:2])


def test_the_command_line(tmp_path: Path, capsys) -> None:
    games = generate_games(SMALL, 3, 1, "train", tmp_path)
    steps = sum(len(json.loads(Path(g.spec).read_text())["walkthrough"]) for g in games)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"games=3 won=3 mean_steps={steps / 3:.2f}"
    assert main([games[0].spec, "--max-steps", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "games=1 won=0 mean_steps=1.00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "no .tw-pddl file"),
        ([".", "--max-steps", "0"], "max-steps"),
    ],
)
def test_the_command_line_tells_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def _wins(games: tuple[Game, ...]) -> int:
    env, expert = AlfworldEnv(), Expert()
    return sum(demonstrate(env, game, expert).won for game in games)


@pytest.mark.slow
def test_it_wins_at_least_99_of_100_generated_full_rooms() -> None:
    rooms = [draw_room(generator(11, "full", i), RoomSettings(), "train") for i in range(200)]
    assert sum(play(game_data(room), Expert())[1] for room in rooms) >= 198


@pytest.mark.slow
def test_it_wins_at_least_95_of_100_official_games() -> None:
    from envrl.envs.alfworld.games import data_root, load_split

    try:
        games = load_split(data_root(), "valid_seen")
    except DataFault as fault:
        pytest.skip(str(fault))
    assert _wins(games) >= 133
