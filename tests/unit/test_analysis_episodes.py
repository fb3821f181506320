"""Kept episodes lose nothing: texts, tokens, probabilities, and the order of all of them."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from envrl.analysis.episodes import (
    Episode,
    episode_of,
    episodes_path,
    evaluated_iterations,
    read_episodes,
    write_episodes,
)
from envrl.errors import DataFault
from envrl.types import Finish, Generation, Observation, StopReason, Trajectory, Transition


def bytes_decode(ids: Sequence[int]) -> str:
    """A byte-level tokenizer: one token is one byte of UTF-8."""
    return bytes(ids).decode("utf-8", errors="replace")


def no_leading_space(ids: Sequence[int]) -> str:
    """A tokenizer that drops the space a text begins with, as SentencePiece ones do."""
    return bytes_decode(ids).removeprefix(" ")


def turn(prompt: str, answer: str, step: int = 0) -> Transition:
    given, ids = tuple(prompt.encode()), tuple(answer.encode())
    logprobs = tuple(-0.5 * (k + 1) for k in range(len(ids)))
    generation = Generation(given, b"\x01" * len(given), ids, logprobs, Finish.END, 0)
    seen, after = Observation(f"seen {step}", ("look", "go")), Observation(f"seen {step + 1}", ())
    return Transition(seen, generation, answer, True, step == 0, 0.25, after)


def episode(*turns: Transition, decode=bytes_decode) -> Episode:
    trajectory = Trajectory("g1", "pick", 7, turns, StopReason.STEP_LIMIT, False, 0.0)
    return episode_of(trajectory, decode, arm="grpo", seed=3, iteration=10)


def test_a_growing_conversation_keeps_each_text_once() -> None:
    made = episode(turn("task", "go", 0), turn("taskgo|then", "look", 1), turn("other", "x", 2))
    assert [t.prompt for t in made.turns] == ["task", "|then", "other"]
    assert [t.written for t in made.turns] == ["go", "look", "x"]
    assert made.turns[1].observation == "seen 1"
    assert made.turns[1].next_observation == "seen 2"
    assert made.turns[0].action_admissible
    assert not made.turns[1].action_admissible
    assert made.episode_return == pytest.approx(0.75)


def test_tokens_that_share_a_character_are_one_piece() -> None:
    pieces = episode(turn("", "aé!")).turns[0].pieces
    assert pieces == (("a", -0.5), ("é", -1.0 - 1.5), ("!", -2.0))
    assert episode(turn("", "aé!")).turns[0].logprob == pytest.approx(-5.0)


def test_an_answer_cut_within_a_character_shows_what_there_is() -> None:
    ids = tuple("é".encode()[:1])
    cut = Generation((), b"", ids, (-1.0,), Finish.LENGTH, 0)
    nothing = Observation("", ())
    made = episode(Transition(nothing, cut, None, False, False, 0.0, nothing))
    assert made.turns[0].pieces == (("\ufffd", -1.0),)


def test_spaces_survive_a_tokenizer_that_drops_the_first() -> None:
    pieces = episode(turn("", "go to"), decode=no_leading_space).turns[0].pieces
    assert "".join(text for text, _ in pieces) == "go to"
    assert len(pieces) == 5


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    made = [episode(turn("task", f"go {number}")) for number in range(3)]
    write_episodes(tmp_path, 0, made[:1])
    path = write_episodes(tmp_path, 20, made)
    before = path.read_bytes()
    assert write_episodes(tmp_path, 20, made).read_bytes() == before
    assert evaluated_iterations(tmp_path) == (0, 20)
    assert list(read_episodes(tmp_path)) == made
    assert len(list(read_episodes(tmp_path, "all"))) == 4
    assert list(read_episodes(tmp_path, 0)) == made[:1]


def test_infinite_logprobs_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        Episode.model_validate(
            episode(turn("a", "b")).model_dump() | {"task_score": math.inf},
        )


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"evaluation\.episodes"):
        list(read_episodes(tmp_path))
    path = write_episodes(tmp_path, 5, [episode(turn("a", "b"))] * 2)
    with pytest.raises(DataFault, match="no episodes of iteration 4; there are those of 5"):
        list(read_episodes(tmp_path, 4))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataFault, match=r"iteration_00005\.jsonl\.gz can't be read"):
        list(read_episodes(tmp_path))
    write_episodes(tmp_path, 5, [episode(turn("a", "b"))] * 2)
    whole = path.read_bytes()
    for place in range(12, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(DataFault, match="can't be read"):
            list(read_episodes(tmp_path))
    with gzip.open(episodes_path(tmp_path, 6), "wb") as handle:
        handle.write(b'{"arm": 1}\n')
    with pytest.raises(DataFault, match="at line 1"):
        list(read_episodes(tmp_path, 6))
