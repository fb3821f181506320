"""Wording of prompts, the history window, and what is read from an answer."""

import pytest

from envrl.errors import ConfigFault
from envrl.prompts.dynamics import inverse_dynamics_question, state_prediction_question
from envrl.prompts.parse import ParsedAction, parse_action
from envrl.prompts.render import PastStep, follow_up, opening_message, step_message, task_of
from envrl.prompts.settings import Domain, PromptSettings
from envrl.types import FollowUp, Observation

START = Observation(
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou see a desk 1.\n\nYour task is to: put a mug in desk 1.",
    ("go to desk 1", "help", "look"),
)
NOW = Observation("On the desk 1, you see nothing.", ("look", "help"))
PAST = [
    PastStep(START.text, "go to desk 1"),
    PastStep("You arrive at desk 1.", "look"),
    PastStep("You look.", "wait"),
]


def test_the_task_is_what_follows_its_mark() -> None:
    assert task_of(START.text) == "put a mug in desk 1."
    assert task_of("You see a desk 1.") == ""


def test_compact_prompts() -> None:
    opening = "You see a desk 1.\n\nYour task is to: put a mug in desk 1."
    compact = PromptSettings()
    assert opening_message(compact, START).content == opening
    assert follow_up(compact, NOW) == FollowUp("On the desk 1, you see nothing.", "")
    listing = PromptSettings(show_admissible=True)
    assert opening_message(listing, START).content == opening + "\n'go to desk 1', 'look'"
    assert follow_up(listing, NOW).appendix == "\n'look'"
    assert step_message(compact, START, (), START).content == opening
    assert step_message(compact, START, PAST, NOW).content == (
        f"{opening}\nYou arrive at desk 1.\n> look\nYou look.\n> wait\nOn the desk 1, you see nothing."
    )
    assert step_message(compact, START, PAST[:1], NOW).content == (
        f"{opening}\n> go to desk 1\nOn the desk 1, you see nothing."
    )


@pytest.mark.parametrize("past", [0, 1, 2, 3])
@pytest.mark.parametrize("history", [0, 1, 2, 3, 4, 9])
def test_the_window_holds_the_last_steps_whatever_its_length(past: int, history: int) -> None:
    text = step_message(PromptSettings(history=history), START, PAST[:past], NOW).content
    shown = [a for a in ("go to desk 1", "look", "wait") if f"> {a}" in text]
    assert shown == ["go to desk 1", "look", "wait"][:past][max(0, past - history) :]


def test_reasoned_prompts_count_observations_from_the_start() -> None:
    settings = PromptSettings(form="reasoned", show_admissible=True)
    text = step_message(settings, START, PAST, NOW).content
    assert "Your task is to: put a mug in desk 1." in text
    assert "Steps taken so far: 3. The last 2 observations and actions:" in text
    assert "[Observation 2: 'You arrive at desk 1.', Action 2: 'look']" in text
    assert "[Observation 3: 'You look.', Action 3: 'wait']" in text
    assert "Action 1:" not in text
    assert "Admissible actions now: ['look']." in text
    assert "Steps taken" not in step_message(settings, START, (), START).content
    nothing = step_message(PromptSettings(form="reasoned", history=0), START, PAST, NOW).content
    assert "Steps taken so far: 3.\n" in nothing


@pytest.mark.parametrize(
    ("domain", "listed"),
    [
        ("alfworld", "['go to desk 1'\n 'open {x}']"),
        ("webshop", "['go to desk 1',\n'open {x}',]"),
    ],
)
def test_actions_are_listed_a_line_each_as_published(domain: Domain, listed: str) -> None:
    observation = Observation("You see a desk.", ("help", "go to desk 1", "open {x}"))
    settings = PromptSettings(form="reasoned", show_admissible=True, domain=domain)
    for text in (
        opening_message(settings, observation).content,
        follow_up(settings, observation).appendix,
        step_message(settings, START, PAST, observation).content,
    ):
        assert f"Admissible actions now: {listed}." in text
    compact = PromptSettings(show_admissible=True, domain=domain)
    assert follow_up(compact, observation).appendix == "\n'go to desk 1', 'open {x}'"


def test_both_questions_hold_everything_but_their_answer() -> None:
    for settings in (PromptSettings(), PromptSettings(form="reasoned")):
        question = state_prediction_question(settings, START.text, "look", NOW.text)
        assert question.target == "On the desk 1, you see nothing."
        assert "look" in question.message.content
        assert "you see nothing" not in question.message.content
        question = inverse_dynamics_question(settings, START.text, "look", NOW.text)
        assert question.target == "look"
        assert "look" not in question.message.content
        assert "you see nothing" in question.message.content
        assert "Welcome" not in question.message.content


def test_a_shop_states_the_task_once_and_forgets_history_that_is_too_long() -> None:
    start = Observation("'Search'\n\nYour task is to: buy tea", ("search[<your query>]",))
    page = Observation("'Back to Search' [SEP] 'Tea'", ("click[tea]",))
    settings = PromptSettings(form="reasoned", domain="webshop")
    text = step_message(settings, start, [PastStep(start.text, "search[tea]")], page).content
    assert text.startswith("You shop on a website described in text. Your task is to: buy tea\n")
    assert "[Observation 1: ''Search'', Action 1: 'search[tea]']\n" in text
    assert text.count("buy tea") == 1
    long = step_message(settings, start, [PastStep("x" * 13_000, "search[tea]")], page).content
    assert "xxx" not in long
    assert "Steps taken" not in long
    assert "Current observation: 'Back to Search' [SEP] 'Tea'\n" in long
    house = PromptSettings(form="reasoned")
    assert "xxx" in step_message(house, START, [PastStep("x" * 13_000, "look")], NOW).content


def test_a_short_tail_is_sent_where_the_published_projection_is_short() -> None:
    assert parse_action("x" * 40 + "click[buy now]", "reasoned", tail_characters=20) == ParsedAction(
        "xxxxxxclick[buy now]", False
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>hm</think><action>Go To desk 1</action>", ParsedAction("go to desk 1", True)),
        ("<think>a</think><action> a </action><action>b</action>", ParsedAction("a", True)),
        ("<action>look</action>", ParsedAction("look", False)),
        ("<think>拿</think><action>look</action>", ParsedAction("look", False)),
        ("<think>x</think><action></action>", ParsedAction(None, False)),
        ("</think> so <think><action>look</action>", ParsedAction("look", True)),
        ("<think>x</think></action><action>look</action>", ParsedAction("look", True)),
        (
            "x" * 40 + "go to the desk number twenty-two",
            ParsedAction("to the desk number twenty-two", False),
        ),
        ("", ParsedAction(None, False)),
    ],
)
def test_reasoned_answers(text: str, expected: ParsedAction) -> None:
    assert parse_action(text, "reasoned") == expected


def test_compact_answers() -> None:
    assert parse_action(" go to desk 1 ", "compact") == ParsedAction("go to desk 1", True)
    assert parse_action("go\nlook", "compact") == ParsedAction("go", False)
    assert parse_action(" \n", "compact") == ParsedAction(None, False)
    assert parse_action("x" * 201, "compact") == ParsedAction("x" * 200, False)


def test_a_negative_history_is_refused() -> None:
    with pytest.raises(ConfigFault, match="-1"):
        PromptSettings(history=-1)
