"""The HTML report: whole, self-contained, and nothing from a game or a study file becomes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_analysis_report import STUDY, run

from envrl.analysis.episodes import Episode, Turn, episodes_path, write_episodes
from envrl.analysis.page import Tracking, page, write_page
from envrl.analysis.records import RunRecord, record_path
from envrl.analysis.summary import summarise
from envrl.types import Finish, StopReason

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\x07 {{ 7*7 }}"
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Checker(HTMLParser):
    """Collects tags and fails on ones that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def episode(won: bool, answer: str = "You see a mug.", bad: int = 0, game: str = "g") -> Episode:
    turns = tuple(
        Turn(
            prompt="p",
            observation="A room.",
            admissible=("look",),
            pieces=(("lo", -0.25), ("ok", -0.5)),
            finish=Finish.END,
            action="look" if number else None,
            format_valid=bool(number),
            action_admissible=number >= bad,
            reward=float(won and number == 2),
            next_observation=answer,
        )
        for number in range(3)
    )
    return Episode(
        arm="grpo", seed=0, iteration=10, game_id=game, family="heat", turns=turns, won=won,
        stop=StopReason.WON if won else StopReason.STEP_LIMIT, task_score=float(won),
    )  # fmt: skip


def made(folder: Path, records: list[RunRecord] = STUDY, title: str = "quick") -> str:
    return page(folder, summarise(records, "grpo"), records, title, Tracking("sqlite:////x/mlflow.db", "p1"))


def test_the_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    found = checked(made(tmp_path))
    assert found.tags.count("svg") == 3
    assert "script" not in found.tags
    assert [a for a in found.addresses if not a.startswith(("#", "http://127.0.0.1:5000/#/runs/"))] == []


def test_its_numbers_are_those_of_the_summary(tmp_path: Path) -> None:
    text = made(tmp_path)
    row = re.search(
        r"<tr><td>grpo\+sp</td><td>2</td><td>25\.0</td>\s*<td><b>87\.5</b>.*?</tr>", text, re.DOTALL
    )
    assert row is not None
    assert "+37.5 [" in row.group()
    assert "<td>0.250</td>" in row.group()
    assert "broken, seed 0: failed (EnvFault: no answer | at all)" in text
    assert "<code>loss.lambda_sp</code>" in text
    assert text == made(tmp_path)


def test_three_episodes_of_each_arm_are_shown(tmp_path: Path) -> None:
    told = [episode(False, game="lost"), episode(True, game="won1"), episode(True, game="won2")]
    told.append(episode(False, game="clumsy", bad=3))
    write_episodes(record_path(tmp_path, "grpo", 0).parent, 10, told)
    text = made(tmp_path)
    shown = re.findall(r"<details><summary>(.*?)</summary>", text, re.DOTALL)
    assert [re.sub(r"\s+", " ", s).split(" · ")[0] for s in shown] == [
        "won", "not won", "most inadmissible actions",
    ]  # fmt: skip
    assert [re.search("<code>(.*?)</code>", s).group(1) for s in shown] == ["won1", "lost", "clumsy"]  # type: ignore[union-attr]
    assert text.count("no finished run of this arm has kept any") == 2
    assert "no action could be parsed from:" in text


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    write_episodes(record_path(tmp_path, "grpo", 0).parent, 10, [episode(False, HOSTILE, game=HOSTILE)])
    failed = run("broken", 0, status="failed", error=HOSTILE)
    found = checked(made(tmp_path, [*STUDY[:2], failed], title=HOSTILE))
    assert {"script", "img"} & set(found.tags) == set()
    assert sum(HOSTILE.replace("\x07", "") in t.replace("\x07", "") for t in found.texts) >= 3


def test_a_broken_file_of_episodes_costs_only_the_examples(tmp_path: Path) -> None:
    path = episodes_path(record_path(tmp_path, "grpo", 0).parent, 10)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no gzip")
    text = made(tmp_path)
    assert "can&#39;t be read at line 1" in text
    assert "<b>87.5</b>" in text


@pytest.mark.parametrize(
    ("uri", "start"),
    [
        ("http://host:5000/", "http://host:5000/#/runs/"),
        ("sqlite:////x/mlflow.db", "http://127.0.0.1:5000/#/runs/"),
    ],
)
def test_runs_are_linked(tmp_path: Path, uri: str, start: str) -> None:
    records = [record.model_copy(update={"mlflow_run_id": f"{n}" * 32}) for n, record in enumerate(STUDY)]
    path = write_page(tmp_path / "report.html", summarise(records, "grpo"), records, "t", Tracking(uri, "p1"))
    found = checked(path.read_text())
    assert f"{start}p1" in found.addresses
    assert f"{start}{'0' * 32}" in found.addresses
