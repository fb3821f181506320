"""The native engine: texts, lists, errors. The transcript below was recorded on TextWorld, not here."""

import json
import threading
from pathlib import Path

import pytest
from alfworld_tiny import GOAL, plus, tiny_game, without

from envrl.envs.alfworld.engine import AlfworldEnv, CompiledGame, clear_cache, load_game
from envrl.errors import DataFault, EnvFault
from envrl.types import Game

INTRO = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you "
    "see a countertop 1, a desk 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\n"
    "Your task is to: heat a mug."
)
RECORDED = (
    ("look", "You are in the middle of a room. Looking quickly around you, you see nothing."),
    ("inventory", "You are not carrying anything."),
    (
        "go to countertop 1",
        "You arrive at countertop 1. "
        "On the countertop 1, you see a apple 1, a knife 1, a mug 2, and a mug 1.",
    ),
    ("look", "You are facing the countertop 1, and sinkbasin 1. Next to it, you see nothing."),
    ("examine sinkbasin 1", "On the sinkbasin 1, you see nothing."),
    ("take mug 2 from countertop 1", "You pick up the mug 2 from the countertop 1."),
    ("look", "You are facing the countertop 1, and sinkbasin 1. Next to it, you see nothing."),
    ("inventory", "You are carrying: a mug 2."),
    ("examine mug 2", "There's nothing special about mug 2."),
    ("clean mug 2 with sinkbasin 1", "You clean the mug 2 using the sinkbasin 1."),
    ("examine mug 2", "This is a clean mug 2."),
    ("move mug 2 to sinkbasin 1", "You move the mug 2 to the sinkbasin 1."),
    ("look", "You are facing the countertop 1, and sinkbasin 1. Next to it, you see a mug 2."),
    ("go to sinkbasin 1", "Nothing happens."),
    ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
    (
        "go to countertop 1",
        "You arrive at countertop 1. On the countertop 1, you see a apple 1, a knife 1, and a mug 1.",
    ),
    ("take knife 1 from countertop 1", "You pick up the knife 1 from the countertop 1."),
    ("slice apple 1 with knife 1", "You sliced the apple 1 with the knife 1."),
    ("move knife 1 to countertop 1", "You move the knife 1 to the countertop 1."),
    ("take apple 1 from countertop 1", "You pick up the apple 1 from the countertop 1."),
    ("examine apple 1", "This is a sliced apple 1."),
    ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
    ("heat apple 1 with microwave 1", "You heat the apple 1 using the microwave 1."),
    ("examine apple 1", "This is a hot sliced apple 1."),
    ("open microwave 1", "You open the microwave 1. The microwave 1 is open. In it, you see nothing."),
    ("close microwave 1", "You close the microwave 1."),
    ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
    ("cool apple 1 with fridge 1", "You cool the apple 1 using the fridge 1."),
    ("examine apple 1", "This is a cool sliced apple 1."),
    ("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, you see a lettuce 1."),
    ("move apple 1 to fridge 1", "You move the apple 1 to the fridge 1."),
    ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a desklamp 1."),
    ("use desklamp 1", "You turn on the desklamp 1."),
    ("use desklamp 1", "You turn on the desklamp 1."),
    ("examine desklamp 1", "Nothing happens."),
    ("take desklamp 1 from desk 1", "Nothing happens."),
    (
        "go to countertop 1",
        "You arrive at countertop 1. On the countertop 1, you see a knife 1, and a mug 1.",
    ),
    ("take mug 2 from sinkbasin 1", "You pick up the mug 2 from the sinkbasin 1."),
    ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
    ("heat mug 2 with microwave 1", "You heat the mug 2 using the microwave 1."),
    ("examine mug 2", "This is a hot and clean mug 2."),
    (
        "go to fridge 1",
        "You arrive at fridge 1. The fridge 1 is open. In it, you see a apple 1, and a lettuce 1.",
    ),
    ("move mug 2 to fridge 1", "You move the mug 2 to the fridge 1."),
    ("close fridge 1", "You close the fridge 1."),
    ("look", "You are facing the fridge 1. Next to it, you see nothing."),
)
"""Commands and the reference's answers; the last three have the goal reached."""
OLD_PUT = {
    "move {o} to {r}": "put {o} in/on {r}",
    "You move the {o.name} to the {r.name}": "You put the {o.name} in/on the {r.name}",
}


def at(game: dict[str, str], *commands: str) -> tuple[str, ...]:
    """Admissible commands after some commands."""
    state = load_game(game).new_state()
    for command in commands:
        state.step(command)
    return state.admissible()


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_recorded_episode_is_repeated_word_for_word() -> None:
    state = load_game(tiny_game()).new_state()
    assert state.feedback == INTRO
    won = []
    for command, answer in RECORDED:
        assert state.step(command) == answer
        assert state.feedback == answer
        won.append(state.won)
    assert won == [False] * (len(RECORDED) - 3) + [True] * 3


def test_admissible_commands_are_sorted_and_complete() -> None:
    assert at(tiny_game()) == (
        *("go to countertop 1", "go to desk 1", "go to fridge 1", "go to microwave 1", "go to sinkbasin 1"),
        *("help", "inventory", "look"),
    )
    assert at(tiny_game(), "go to countertop 1") == (
        *("examine countertop 1", "examine sinkbasin 1"),
        *("go to desk 1", "go to fridge 1", "go to microwave 1", "help", "inventory", "look"),
        *("take apple 1 from countertop 1", "take knife 1 from countertop 1"),
        *("take mug 1 from countertop 1", "take mug 2 from countertop 1"),
    )
    assert at(tiny_game(), "go to countertop 1", "take mug 1 from countertop 1") == (
        *("clean mug 1 with sinkbasin 1", "examine countertop 1", "examine mug 1", "examine sinkbasin 1"),
        *("go to desk 1", "go to fridge 1", "go to microwave 1", "help", "inventory", "look"),
        *("move mug 1 to countertop 1", "move mug 1 to sinkbasin 1"),
    )


def test_only_a_closed_receptacle_opens_and_only_an_open_one_gives() -> None:
    closed = at(tiny_game(), "go to fridge 1")
    opened = at(tiny_game(), "go to fridge 1", "open fridge 1")
    assert set(closed) - set(opened) == {"open fridge 1"}
    assert set(opened) - set(closed) == {"close fridge 1", "take lettuce 1 from fridge 1"}


@pytest.mark.parametrize(
    "command", ["", "fly", "LOOK", "go to desk 2", "look 1", "go  to desk 1", "open fridge 1"]
)
def test_what_is_not_admissible_changes_nothing(command: str) -> None:
    state = load_game(tiny_game()).new_state()
    before = state.admissible()
    assert state.step(command) == "Nothing happens."
    assert (state.admissible(), state.won) == (before, False)


def test_white_space_around_a_command_does_not_matter() -> None:
    assert load_game(tiny_game()).new_state().step("  inventory\n") == "You are not carrying anything."


def test_heat_takes_the_cold_away_and_the_reverse() -> None:
    state = load_game(
        tiny_game(facts=plus("(isCool Apple_bar_1) (holds agent1 Apple_bar_1) (holdsAny agent1)"))
    ).new_state()
    answers = [
        state.step(c)
        for c in ("examine apple 1", "go to microwave 1", "heat apple 1 with microwave 1", "examine apple 1")
    ]
    assert answers[0] == "This is a cold apple 1."
    assert answers[3] == "This is a hot apple 1."


def test_the_task_sentence_may_hold_any_plain_text() -> None:
    assert (
        "Your task is to: it's \u00e9l\u00e9gant (really)."
        in load_game(tiny_game(task="it's \u00e9l\u00e9gant (really)")).new_state().feedback
    )


def test_the_grammar_is_read_not_assumed() -> None:
    game = tiny_game()
    game["grammar"] = game["grammar"].replace("You arrive at {r.name}.", "{r.name}, here you are.")
    assert (
        load_game(game).new_state().step("go to desk 1")
        == "desk 1, here you are. On the desk 1, you see a desklamp 1."
    )


def test_the_domain_is_read_not_assumed() -> None:
    game = tiny_game()
    game["pddl_domain"] = game["pddl_domain"].replace(
        "(pickupable ?o)\n            (atLocation", "(heatable ?o)\n            (atLocation"
    )
    taken = [c for c in at(game, "go to countertop 1") if c.startswith("take")]
    assert taken == ["take apple 1 from countertop 1", "take mug 2 from countertop 1"]


def test_the_older_grammar_puts_instead_of_moves() -> None:
    game = tiny_game()
    for new, old in OLD_PUT.items():
        game["grammar"] = game["grammar"].replace(new, old)
    assert load_game(game).rules.version == "2.1.1"
    state = load_game(game).new_state()
    for command in ("go to countertop 1", "take mug 1 from countertop 1"):
        state.step(command)
    assert "put mug 1 in/on sinkbasin 1" in state.admissible()
    assert state.step("put mug 1 in/on sinkbasin 1") == "You put the mug 1 in/on the sinkbasin 1."


@pytest.mark.parametrize(
    ("goal", "commands", "won"),
    [
        ("(and (exists (?o - object ?a - agent) (and (objectType ?o KnifeType) (holds ?a ?o))))", 2, True),
        ("(exists (?o - object) (and (objectType ?o MugType) (inReceptacle ?o CounterTop_bar_1)))", 0, True),
        ("(not (exists (?o - object) (inReceptacle ?o Desk_bar_1)))", 0, None),
        (
            "(exists (?l - location) (and (atLocation agent1 ?l) (receptacleAtLocation Desk_bar_1 ?l)))",
            0,
            False,
        ),
        ("(or (holdsAny agent1) (opened Fridge_bar_1))", 2, True),
        ("(not (holdsAny agent1))", 2, False),
    ],
)
def test_goals(goal: str, commands: int, won: bool | None) -> None:
    if won is None:
        with pytest.raises(DataFault, match="exists"):
            load_game(tiny_game(goal=goal))
        return
    state = load_game(tiny_game(goal=goal)).new_state()
    for command in ("go to countertop 1", "take knife 1 from countertop 1")[:commands]:
        state.step(command)
    assert state.won is won


def test_two_different_objects_are_asked_for() -> None:
    goal = """(exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 MugType)
        (inReceptacle ?o1 ?r) (receptacleType ?r SinkBasinType)
        (exists (?o2 - object) (and (not (= ?o1 ?o2)) (objectType ?o2 MugType) (inReceptacle ?o2 ?r))))))"""
    state = load_game(tiny_game(goal=goal)).new_state()
    won = []
    for mug in ("mug 1", "mug 2"):
        for command in ("go to countertop 1", f"take {mug} from countertop 1", f"move {mug} to sinkbasin 1"):
            state.step(command)
        won.append(state.won)
    assert won == [False, True]


def test_episodes_do_not_disturb_each_other() -> None:
    game = load_game(tiny_game())
    first, second = game.new_state(), game.new_state()
    first.step("go to countertop 1")
    first.step("take mug 1 from countertop 1")
    assert second.feedback == INTRO
    assert second.step("go to countertop 1").endswith("a mug 2, and a mug 1.")
    assert game.new_state().step("inventory") == "You are not carrying anything."


def test_threads_share_a_game() -> None:
    clear_cache()
    game = load_game(tiny_game())
    results: list[list[str]] = []

    def play() -> None:
        state = game.new_state()
        results.append([state.step(c) for c, _ in RECORDED])

    threads = [threading.Thread(target=play) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[answer for _, answer in RECORDED]] * 8


def test_equal_content_is_loaded_once(tmp_path: Path) -> None:
    clear_cache()
    one, two = (write(tmp_path / name, tiny_game()) for name in ("a.tw-pddl", "b.tw-pddl"))
    assert load_game(one) is load_game(str(two))
    assert load_game(write(one, tiny_game(task="another"))) is not load_game(two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pddl_problem": None}, "lacks the text 'pddl_problem'"),
        ({"pddl_domain": "(define (domain other) (:predicates (p)))"}, "'other' isn't ALFWorld's"),
        ({"pddl_domain": "no pddl"}, "balanced"),
        ({"pddl_problem": "(define (problem x) (:domain alfred))"}, "lacks its :objects"),
        ({"pddl_problem": "(define (problem x) (:domain alfred) (:goal))"}, "malformed"),
        ({"pddl_problem": "()"}, "malformed"),
        ({"grammar": "nothing"}, "PutObject"),
    ],
)
def test_broken_content_is_refused_with_its_name(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "game.tw-pddl", tiny_game() | change)
    with pytest.raises(DataFault, match=message) as caught:
        load_game(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("move {o} to {r}", "shove {o} to {r}", "known versions"),
        ("(isHot ?o)\n                (not (isCool ?o))", "(forall (?x - object) (isHot ?x))", "forall"),
        ("(:action ToggleObject", "(:action PickupFullReceptacleObject", "movable receptacles"),
        ('feedback :: "#look.feedback#";', "", "lacks its template or feedback"),
        ("condition", "condition: [", None),
    ],
)
def test_an_unknown_grammar_or_domain_is_refused(old: str, new: str, message: str | None) -> None:
    game = {key: text.replace(old, new) for key, text in tiny_game().items()}
    assert game != tiny_game()
    with pytest.raises(DataFault, match=message):
        load_game(game)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (without("(atLocation agent1 loc_bar_0)"), "exactly one"),
        (plus("(holds agent1 Ghost_bar_1)"), "ghost_bar_1"),
        (plus("(flies agent1)"), "flies"),
        (plus("(openable Mug_bar_a)"), "'object', expected a 'receptacle'"),
        (plus("(receptacleAtLocation Desk_bar_1 loc_bar_3)"), "'go to desk 1' could mean two"),
    ],
)
def test_impossible_facts_are_refused(facts: str, message: str) -> None:
    with pytest.raises(DataFault, match=message):
        load_game(tiny_game(facts=facts))


def test_a_missing_file_and_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"gone\.tw-pddl.*doesn't exist"):
        load_game(tmp_path / "gone.tw-pddl")
    with pytest.raises(DataFault, match="not JSON"):
        load_game(write(tmp_path / "text.tw-pddl", "Once upon a time"))
    with pytest.raises(DataFault, match="not an object"):
        load_game(write(tmp_path / "list.tw-pddl", []))
    with pytest.raises(DataFault, match="can't be read"):
        load_game(tmp_path)


def test_an_environment_reports_win_limit_and_misuse(tmp_path: Path) -> None:
    goal = "(exists (?o - object ?a - agent) (and (objectType ?o KnifeType) (holds ?a ?o)))"
    path = write(tmp_path / "game.tw-pddl", tiny_game(goal=goal))
    env = AlfworldEnv()
    with pytest.raises(EnvFault, match="reset"):
        env.step("look")
    env.reset(Game("id", "alfworld", "train", "pick", str(path), 2), seed=0)
    step = env.step("go to countertop 1")
    assert (step.reward, step.terminated, step.truncated) == (0.0, False, False)
    step = env.step("take knife 1 from countertop 1")
    assert (step.reward, step.terminated, step.truncated) == (1.0, True, False)
    assert dict(step.info) == {"won": True, "task_score": 1.0, "score": 1.0}
    with pytest.raises(EnvFault, match="reset"):
        env.step("look")


def test_a_compiled_game_is_what_load_returns() -> None:
    assert isinstance(load_game(tiny_game()), CompiledGame)
    assert GOAL in tiny_game()["pddl_problem"]
