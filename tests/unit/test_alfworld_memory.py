"""What the player reads out of texts, in the wording of both grammar versions."""

import pytest

from envrl.envs.alfworld.memory import Memory, TaskWords, parse_task
from envrl.errors import DataFault

INTRO = """-= Welcome to TextWorld, ALFRED! =-

You are in the middle of a room. Looking quickly around you, you see a cabinet 12, a cabinet 1, and a desk 1.

Your task is to: {}."""


def after(*texts: str) -> Memory:
    memory = Memory()
    for text in (INTRO.format("put some mug on desk"), *texts):
        memory.observe(text)
    return memory


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("put a saltshaker in cabinet", ("pick_and_place_simple", "saltshaker", "cabinet", "")),
        ("put some cd on safe", ("pick_and_place_simple", "cd", "safe", "")),
        ("look at pillow under the desklamp", ("look_at_obj_in_light", "pillow", "", "desklamp")),
        ("examine the cd with the desklamp", ("look_at_obj_in_light", "cd", "", "desklamp")),
        ("put a clean plate in fridge", ("pick_clean_then_place_in_recep", "plate", "fridge", "")),
        ("clean some mug and put it in shelf", ("pick_clean_then_place_in_recep", "mug", "shelf", "")),
        ("put a hot egg in garbagecan", ("pick_heat_then_place_in_recep", "egg", "garbagecan", "")),
        ("heat some cup and put it in cabinet", ("pick_heat_then_place_in_recep", "cup", "cabinet", "")),
        ("put a cool pan in stoveburner", ("pick_cool_then_place_in_recep", "pan", "stoveburner", "")),
        (
            "cool some tomato and put it in microwave",
            ("pick_cool_then_place_in_recep", "tomato", "microwave", ""),
        ),
        ("put two box in coffeetable", ("pick_two_obj_and_place", "box", "coffeetable", "")),
        ("find two pen and put them in desk", ("pick_two_obj_and_place", "pen", "desk", "")),
    ],
)
def test_every_template_is_understood(words: str, expected: tuple[str, str, str, str]) -> None:
    assert parse_task(INTRO.format(words)) == TaskWords(*expected)


@pytest.mark.parametrize("words", ["place the mug on the desk", "put a clean mug", "put a mug on desk"])
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(DataFault, match=f"'{words}' follows no template"):
        parse_task(INTRO.format(words))


def test_a_text_without_a_task_is_refused() -> None:
    with pytest.raises(DataFault, match="no task in the first observation"):
        parse_task("You are in the middle of a room.")


def test_furniture_is_read_in_order_and_once() -> None:
    again = "You are in the middle of a room. Looking quickly around you, you see a bed 1."
    assert after(again).receptacles == ("cabinet 12", "cabinet 1", "desk 1")


@pytest.mark.parametrize(
    "text",
    [
        "You arrive at desk 1. On the desk 1, you see a mug 2, and a cd 1.",
        "You arrive at loc 12. On the desk 1, you see a mug 2, a cd 1.",
        "On the desk 1, you see a mug 2, and a cd 1.",
        "You open the desk 1. The desk 1 is open. In it, you see a mug 2, and a cd 1.",
        "The desk 1 is open. In it, you see a mug 2, and a cd 1.",
    ],
)
def test_contents_are_read(text: str) -> None:
    assert after(text).contents == {"desk 1": ["mug 2", "cd 1"]}


def test_nothing_seen_is_known_to_be_empty() -> None:
    assert after("You arrive at desk 1. On the desk 1, you see nothing.").contents == {"desk 1": []}


def test_doors() -> None:
    closed = after("You arrive at cabinet 1. The cabinet 1 is closed.")
    assert (closed.closed, closed.contents) == ({"cabinet 1"}, {})
    closed.observe("You open the cabinet 1. The cabinet 1 is open. In it, you see a mug 1.")
    assert (closed.closed, closed.contents) == (set(), {"cabinet 1": ["mug 1"]})
    closed.observe("You close the cabinet 1.")
    assert (closed.closed, closed.contents) == ({"cabinet 1"}, {"cabinet 1": ["mug 1"]})


@pytest.mark.parametrize(
    "put", ["You move the mug 2 to the cabinet 1.", "You put the mug 2 in/on the cabinet 1."]
)
def test_an_object_is_carried_from_place_to_place(put: str) -> None:
    memory = after("On the desk 1, you see a mug 2, and a cd 1.", "You pick up the mug 2 from the desk 1.")
    assert (memory.holding, memory.contents) == ("mug 2", {"desk 1": ["cd 1"]})
    memory.observe(put)
    assert (memory.holding, memory.contents) == (None, {"desk 1": ["cd 1"], "cabinet 1": ["mug 2"]})
    assert memory.where("mug") == [("mug 2", "cabinet 1")]
    assert memory.where("cd") == [("cd 1", "desk 1")]


def test_heat_undoes_cold_and_the_reverse_but_not_cleanliness() -> None:
    memory = after("You clean the mug 1 using the sinkbasin 1.", "You heat the mug 1 using the microwave 1.")
    assert memory.changes == {("clean", "mug 1"), ("heat", "mug 1")}
    memory.observe("You cool the mug 1 using the fridge 1.")
    assert memory.changes == {("clean", "mug 1"), ("cool", "mug 1")}
    memory.observe("You heat the mug 1 using the microwave 1.")
    assert memory.changes == {("clean", "mug 1"), ("heat", "mug 1")}


def test_a_text_that_tells_nothing_changes_nothing() -> None:
    seen = after("On the desk 1, you see a mug 2.")
    for text in ("Nothing happens.", "", "You turn on the desklamp 1.", "You are carrying: a mug 2."):
        seen.observe(text)
    assert seen == after("On the desk 1, you see a mug 2.")
