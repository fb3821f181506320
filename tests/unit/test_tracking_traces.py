"""Transcripts show every turn, mark what went wrong, and change no character."""

import pytest

from envrl.tracking.traces import transcript, transcripts
from envrl.types import Finish, Generation, Observation, StopReason, Trajectory, Transition


def turn(
    action: str | None,
    answer: str,
    *,
    valid: bool = True,
    admissible: bool = True,
    reward: float = 0.0,
    finish: Finish = Finish.END,
    seen: str = "You are in a room.",
) -> Transition:
    generation = Generation((1, 2), b"\x01\x01", (7, 8), (-0.5, -1.5), finish, 0)
    return Transition(
        Observation(seen, ("look",)), generation, action, valid, admissible, reward, Observation(answer, ())
    )


def episode(*turns: Transition, fault: str | None = None, won: bool = False) -> Trajectory:
    stop = StopReason.ENV_FAULT if fault else StopReason.WON if won else StopReason.STEP_LIMIT
    return Trajectory("abc123", "pick_and_place_simple", 42, tuple(turns), stop, won, float(won), fault)


MIXED = episode(
    turn("go to shelf 1", "You arrive at shelf 1."),
    turn("eat shelf 1", "Nothing happens.", admissible=False),
    turn(None, "Nothing happens.", valid=False, admissible=False, finish=Finish.LENGTH),
    turn("take apple 1 from shelf 1", "You pick up the apple 1.", reward=10.0),
    won=True,
)


def test_heading_counts_what_happened() -> None:
    lines = transcript(MIXED).splitlines()
    assert lines[0] == "## pick_and_place_simple · game abc123 · seed 42"
    assert lines[2] == (
        "won · ended by won · 4 turns · return 10 · task score 1 · 1 format-invalid · 1 inadmissible"
    )


def test_turns_are_marked() -> None:
    marks = [line for line in transcript(MIXED).splitlines() if line.startswith("**Turn")]
    assert marks == [
        "**Turn 1** · mean log-probability -1.00",
        "**Turn 2** · INADMISSIBLE · mean log-probability -1.00",
        "**Turn 3** · FORMAT-INVALID · cut at the token limit · mean log-probability -1.00",
        "**Turn 4** · reward 10 · mean log-probability -1.00",
    ]


def test_start_actions_and_answers_are_shown_in_order() -> None:
    text = transcript(MIXED)
    places = [
        text.index(part)
        for part in (
            "You are in a room.", "> go to shelf 1", "You arrive at shelf 1.", "> eat shelf 1",
            "(no action could be parsed)", "> take apple 1 from shelf 1", "You pick up the apple 1.",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert text.count("You are in a room.") == 1


def test_written_tokens_are_shown_when_they_can_be_decoded() -> None:
    text = transcript(MIXED, decode=lambda ids: "<think>" + " ".join(map(str, ids)) + "</think>")
    assert text.count("<think>7 8</think>") == 4


@pytest.mark.parametrize(
    "odd", ["a | b * _c_ <b>&amp;</b>\n# no heading", "```\ncode\n````", " two  spaces ", "häßlich ✓"]
)
def test_no_character_is_changed(odd: str) -> None:
    text = transcript(episode(turn("look", odd, seen=odd)))
    assert text.count(odd) == 2


def test_backticks_do_not_break_out_of_their_fence() -> None:
    text = transcript(episode(turn("look", "````\nescaped?")))
    assert "`````text\n````\nescaped?\n`````" in text


def test_fault_is_shown() -> None:
    text = transcript(episode(fault="TimeoutError: no answer in 5 s"))
    assert "ended by env_fault · 0 turns" in text
    assert text.rstrip().endswith("```text\nTimeoutError: no answer in 5 s\n```")


def test_several_episodes_in_one_document() -> None:
    text = transcripts([MIXED, MIXED], "Iteration 3")
    assert text.startswith("# Iteration 3\n")
    assert text.count("## pick_and_place_simple") == 2
