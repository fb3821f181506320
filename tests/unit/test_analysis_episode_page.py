"""The page of episodes: nothing lost, every text once, and nothing in it that a parser takes for markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from envrl.analysis.episode_page import PageRun, differing_settings, episode_page, inert_json, page_data
from envrl.analysis.episodes import Episode
from envrl.analysis.predictions import (
    Answer,
    Predictions,
    answer_key,
    predictions_path,
    read_predictions,
    write_predictions,
)
from envrl.errors import DataFault
from page_episodes import HOSTILE, episode, turn


def told(data: dict[str, Any], number: int = 0) -> list[dict[str, Any]]:
    """The turns of an episode, read off the page's data."""
    strings, lists = data["strings"], data["lists"]
    turns = []
    for prompt, seen, admissible, pieces, surprises, finish, action, flags, _, after, answers in data[
        "episodes"
    ][number][-1]:
        turns.append(
            {
                "prompt": "".join(strings[n] for n in lists[prompt]),
                "observation": strings[seen],
                "admissible": tuple(strings[n] for n in lists[admissible]),
                "pieces": [(strings[n], s) for n, s in zip(lists[pieces], surprises, strict=True)],
                "finish": strings[finish],
                "action": None if action < 0 else strings[action],
                "flags": flags,
                "next": strings[after],
                "answers": answers,
            }
        )
    return turns


def test_the_data_holds_what_the_episode_held() -> None:
    made = episode(turns=[turn(0, "open fridge 1"), turn(1, None, admissible=False)])
    first, second = told(page_data([PageRun("grpo/seed_0", "runs/grpo", [made])]))
    for shown, kept in zip((first, second), made.turns, strict=True):
        assert shown["prompt"] == kept.prompt
        assert shown["observation"] == kept.observation
        assert shown["admissible"] == kept.admissible
        assert shown["action"] == kept.action
        assert shown["finish"] == kept.finish.value
        assert shown["next"] == kept.next_observation
        assert shown["pieces"] == [(text, round(-1000 * value)) for text, value in kept.pieces]
        assert shown["answers"] == 0
    assert (first["flags"], second["flags"]) == (3, 0)


def test_texts_that_return_are_stored_once() -> None:
    one = page_data([PageRun("a", "a", [episode()])])
    many = page_data([PageRun("a", "a", [episode(game=f"g{n}") for n in range(50)])])
    assert len(many["strings"]) == len(one["strings"]) + 49
    assert many["lists"] == one["lists"]
    seen = one["strings"]
    assert len(set(seen)) == len(seen)
    # The prompts hold the observation: it is one text for both, and no other text repeats it.
    assert sum("You are in the middle of a room, step 0" in text for text in seen) == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_ends_the_element_it_stands_in(text: str) -> None:
    class Reader(HTMLParser):
        scripts = 0
        inside = False
        data = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.scripts += tag == "script"
            assert tag != "img"
            self.inside = ("id", "data") in attrs

        def handle_data(self, data: str) -> None:
            if self.inside:
                self.data += data

        def handle_endtag(self, tag: str) -> None:
            self.inside = False

    made = episode(game=text, turns=[turn(0, text, observation=text)], family=text, arm=text)
    run = PageRun(text, text, [made], {"key": text})
    page = episode_page([run])
    reader = Reader()
    reader.feed(page)
    assert reader.scripts == 2
    data = json.loads(reader.data)
    assert data == json.loads(json.dumps(page_data([run])))
    assert told(data)[0]["observation"] == text
    assert not re.search(r"[<>&]", inert_json({text: [text]}))


def test_the_page_asks_nobody_for_anything() -> None:
    page = episode_page([PageRun("a", "a", [episode()])])
    assert page == episode_page([PageRun("a", "a", [episode()])])
    assert "default-src 'none'" in page
    assert not re.search(r"(?:https?:)?//[a-z]", page.split("<script>")[0])
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,"]
    assert "innerHTML" not in page


def test_settings_that_differ_are_named_and_the_seed_is_not() -> None:
    runs = [
        PageRun("a", "a", [], {"seed": "0", "loss.sp.weight": "0.0", "same": "1"}),
        PageRun("b", "b", [], {"seed": "1", "loss.sp.weight": "0.2", "same": "1", "new": "x"}),
    ]
    assert differing_settings(runs) == [("loss.sp.weight", ["0.0", "0.2"]), ("new", ["–", "x"])]


def test_answers_stand_with_the_turn_they_are_about(tmp_path: Path) -> None:
    made: Episode = episode(turns=[turn(0), turn(1), turn(2)])
    answers = {
        answer_key(made.turns[:1], "sp"): Answer(text="it opens", cut=True),
        answer_key(made.turns[:1], "id"): Answer(text="open it", cut=False),
        answer_key(made.turns[:3], "id"): Answer(text="look", cut=False),
    }
    assert len(answers) == 3
    asked = Predictions(iteration=30, sp_form="conversation", trained=("sp",), answers=answers)
    path = predictions_path(tmp_path, "c" * 64, "f" * 64)
    assert read_predictions(path) is None
    write_predictions(path, asked)
    kept = read_predictions(path)
    assert kept == asked
    data = page_data([PageRun("a", "a", [made], predictions=kept)])
    first, second, third = (t["answers"] for t in told(data))
    assert [data["strings"][first[0]], first[1], data["strings"][first[2]], first[3]] == [
        *("it opens", 1),
        *("open it", 0),
    ]
    assert second == 0
    assert [third[0], data["strings"][third[2]]] == [-1, "look"]
    assert data["runs"][0]["asked"] == {"iteration": 30, "form": "conversation", "trained": ("sp",)}
    path.write_bytes(b"no gzip")
    with pytest.raises(DataFault, match="remove the file"):
        read_predictions(path)


def test_another_past_is_another_question() -> None:
    one, other = episode(turns=[turn(0), turn(1)]), episode(turns=[turn(0, "look"), turn(1)])
    assert answer_key(one.turns, "sp") != answer_key(other.turns, "sp")
    assert answer_key(one.turns, "sp") == answer_key(episode(turns=[turn(0), turn(1)]).turns, "sp")
