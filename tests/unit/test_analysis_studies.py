"""Two studies compared: what is paired, what is not, and what is said of the settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_analysis_page import checked
from test_analysis_report import STUDY, run

from envrl.analysis.comparison import difference_interval, per_game_p_value
from envrl.analysis.records import Evaluation, GameOutcome, RunRecord, write_record
from envrl.analysis.studies import Side, compare_studies, matches_document
from envrl.analysis.studies_page import comparison_page
from envrl.analysis.summary import summarise
from envrl.errors import DataFault
from envrl.experiments import compare

FIRST = Side("one", tuple(STUDY))


def other_panel(record: RunRecord) -> RunRecord:
    """The same run on games of other names."""

    def renamed(outcome: GameOutcome) -> GameOutcome:
        return outcome.model_copy(update={"game_id": f"{outcome.game_id}2"})

    evaluations = tuple(
        Evaluation(iteration=e.iteration, outcomes=tuple(map(renamed, e.outcomes)))
        for e in record.evaluations
    )
    return record.model_copy(update={"evaluations": evaluations, "panel_hash": "9"})


def test_two_arms_of_one_study_compare_as_in_its_report() -> None:
    (match,) = compare_studies(FIRST, FIRST, [("grpo", "grpo+sp")])
    reported = summarise(STUDY, "grpo").comparisons["grpo+sp"]
    assert match.difference.value == reported.difference.value == 0.375
    assert match.difference == reported.difference
    assert match.p_value == reported.p_value
    assert (match.paired, match.seeds) == ((0, 1), ((0, 1), (0, 1)))
    assert match.finals[1].value == 0.875
    assert match.settings == {"loss.lambda_sp": ("0.0", "0.2")}


def test_arms_of_the_same_name_are_compared_by_default() -> None:
    again = Side(
        "two", (run("grpo", 0, "a", "ab", "abc"), run("grpo", 1, "a", "ab", "abcd"), run("new", 0, "a"))
    )
    (match,) = compare_studies(FIRST, again)
    assert (match.first, match.second, match.difference.value) == ("grpo", "grpo", 0.375)
    assert match.settings == {}


def test_without_a_common_seed_games_alone_are_paired() -> None:
    later = Side("two", tuple(run("grpo", 7 + n, "a", "ab", won) for n, won in enumerate(["abcd", "abd"])))
    (match,) = compare_studies(FIRST, later)
    assert (match.paired, match.same_games) == ((), True)
    assert match.difference.value == pytest.approx(0.375)
    # Per game, over the seeds of each: a 0, b 1/2, c 1/2, d 1/2. All three up: 2 of 8 sign flips.
    assert match.p_value == pytest.approx(0.25)
    assert match.difference.low <= 0.375 <= match.difference.high


def test_on_different_panels_nothing_is_paired() -> None:
    elsewhere = Side("two", tuple(other_panel(record) for record in STUDY))
    (match,) = compare_studies(FIRST, elsewhere, [("grpo", "grpo")])
    assert (match.paired, match.same_games, match.p_value) == ((), False, None)
    assert match.difference.value == 0.0
    assert match.difference.low < 0.0 < match.difference.high
    assert matches_document(FIRST, elsewhere, [match])["arms"][0]["p"] is None


def test_an_interval_over_the_same_games_is_narrower() -> None:
    rng = np.random.default_rng(0)
    easy = (rng.random(400) < 0.5).astype(np.float64)
    arm, base = np.tile(easy, (3, 1)), np.tile(easy, (3, 1))
    base[:, :20] = 0.0
    wide, narrow = (
        difference_interval(arm, base, np.random.default_rng(1), same_games=same) for same in (False, True)
    )
    assert wide.value == narrow.value == pytest.approx(easy[:20].mean() * 20 / 400)
    # Standard errors: of two independent rates of about one half over 400 games, and of 20 games in 400.
    assert 0.10 < wide.high - wide.low < 0.17
    assert 0.01 < narrow.high - narrow.low < 0.04
    assert per_game_p_value(arm, base, np.random.default_rng(1)) < 0.01


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="can't be compared"):
        difference_interval(np.ones((1, 3)), np.ones((1, 2)), np.random.default_rng(0), same_games=True)


def test_the_page_is_whole(tmp_path: Path) -> None:
    hostile = Side("<script>x</script>", tuple(STUDY))
    matches = compare_studies(FIRST, hostile)
    found = checked(comparison_page(FIRST, hostile, matches))
    assert found.tags.count("svg") == 1
    assert "script" not in found.tags


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    for record in STUDY:
        write_record(tmp_path / "studies" / "quick", record)
    return tmp_path


def test_the_command_prints_and_writes(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = stored / "out"
    arguments = ["quick", "quick", "--root", str(stored), "--arms", "grpo:grpo+sp,worse", "--out", str(out)]
    assert compare.main(arguments) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("grpo : grpo+sp "))
    assert row.split()[3:8] == ["2,", "2", "50.0", "87.5", "+37.5"]
    assert "grpo : grpo+sp differs in loss.lambda_sp: 0.0 | 0.2" in said
    assert "worse differs in no setting" in said
    written = json.loads((out / "comparison.json").read_text())
    assert [arm["difference"] for arm in written["arms"]] == [0.375, 0.0]
    checked((out / "comparison.html").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quick", "slow"], "'slow' is no study"),
        (["quick", "quick", "--arms", "grpo:"], "--arms grpo:: give names"),
        (
            ["quick", "quick", "--arms", "ppo"],
            "'ppo' has no finished run in quick (1); finished: grpo, grpo+sp",
        ),
        (["quick", "quick", "--arms", "broken"], "'broken' has no finished run"),
    ],
)
def test_what_can_not_be_compared_is_refused(
    stored: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([*arguments, "--root", str(stored)]) != 0
    assert said in " ".join(capsys.readouterr().err.split())


def test_studies_without_a_common_arm_are_refused() -> None:
    with pytest.raises(DataFault, match="no finished arm of the same name"):
        compare_studies(FIRST, Side("two", (run("other", 0, "a"),)))
