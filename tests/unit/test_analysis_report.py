"""A drawn study of three arms, small enough to compute by hand, from records to report."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from envrl.analysis.curves import (
    curves_from_summary,
    curves_from_table,
    family_curves_from_summary,
    plot_family_curves,
)
from envrl.analysis.records import Evaluation, GameOutcome, RunRecord, load_records, write_record
from envrl.analysis.report import print_summary, results_document, write_report
from envrl.analysis.summary import differing_config, summarise
from envrl.analysis.tables import table_from_records
from envrl.errors import DataFault

FAMILIES = {"a": "heat", "b": "heat", "c": "heat", "d": "cool"}


def evaluation(iteration: int, won: str) -> Evaluation:
    """``won`` names the games won, e.g. ``"ad"``; the order of games differs between iterations."""
    games = sorted(FAMILIES, reverse=iteration % 2 == 0)
    return Evaluation(
        iteration=iteration,
        outcomes=tuple(
            GameOutcome(
                game_id=game,
                family=FAMILIES[game],
                won=game in won,
                steps=10 if game in won else 30,
                task_score=1.0 if game in won else 0.5,
            )
            for game in games
        ),
    )


def run(arm: str, seed: int, *won: str, status: str = "finished", **changes: object) -> RunRecord:
    fields: dict[str, object] = {
        "arm": arm,
        "seed": seed,
        "status": status,
        "panel_hash": "0f1e",
        "evaluations": tuple(evaluation(5 * number, games) for number, games in enumerate(won)),
        "seconds": 60.0 + 20.0 * seed,
        "config": {
            "seed": seed,
            "policy": {"model": "tiny"},
            "loss": {"lambda_sp": 0.2 if "sp" in arm else 0.0},
        },
    }
    return RunRecord(**{**fields, **changes})  # type: ignore[arg-type]


STUDY = [
    run("grpo", 0, "a", "a", "ab"),
    run("grpo", 1, "a", "ab", "ad"),
    run("grpo+sp", 0, "a", "abd", "abcd"),
    run("grpo+sp", 1, "a", "ab", "abd"),
    run("worse", 0, "a", "a", "a"),
    run("worse", 1, "a", "", status="running"),
    run("broken", 0, status="failed", error="EnvFault: no\nanswer | at all"),
]


def test_results_have_the_promised_shape_and_numbers() -> None:
    document = json.loads(json.dumps(results_document(summarise(STUDY, "grpo")), allow_nan=False))
    assert list(document)[:2] == ["panel", "arms"]
    assert document["panel"] == "0f1e"
    assert list(document["arms"]) == ["grpo", "grpo+sp", "worse"]
    for arm in document["arms"].values():
        assert list(arm)[:7] == [
            "seeds", "initial", "final", "ci95", "curve", "per_family", "iterations_to_baseline",
        ]  # fmt: skip
    grpo, sp, worse = document["arms"].values()
    assert (grpo["seeds"], grpo["initial"], grpo["final"]) == (2, 0.25, 0.5)
    assert grpo["curve"] == [0.25, 0.375, 0.5]
    assert grpo["curve_iterations"] == [0, 5, 10]
    assert grpo["per_family"] == {"cool": 0.5, "heat": 0.5}
    assert grpo["iterations_to_baseline"] == 10
    assert (sp["curve"], sp["iterations_to_baseline"]) == ([0.25, 0.625, 0.875], 5)
    assert sp["per_family"] == {"cool": 1.0, "heat": pytest.approx(5 / 6)}
    assert sp["ci95"][0] <= 0.875 <= sp["ci95"][1]
    assert (worse["seeds"], worse["final"], worse["iterations_to_baseline"]) == (1, 0.25, None)
    assert worse["curve"] == [0.25, 0.25, 0.25]


def test_other_numbers_of_an_arm() -> None:
    arm = results_document(summarise(STUDY, "grpo"))["arms"]["grpo+sp"]
    assert arm["gain"] == 0.625
    assert arm["gain_ci95"][0] <= 0.625 <= arm["gain_ci95"][1]
    # Rates 1/4, 5/8 and 7/8 at iterations 0, 5 and 10.
    assert arm["area"] == pytest.approx((0.25 + 2 * 0.625 + 0.875) / 4)
    assert arm["area_ci95"][0] <= arm["area"] <= arm["area_ci95"][1]
    assert arm["final_interquartile_mean"] == 0.875
    assert arm["final_macro"] == pytest.approx((1 + 5 / 6) / 2)
    assert arm["final_episode_length"] == (7 * 10 + 30) / 8
    assert arm["final_task_score"] == 7.5 / 8
    assert arm["seconds"] == 70.0


def test_comparison_pairs_games_and_the_seeds_both_have() -> None:
    comparisons = results_document(summarise(STUDY, "grpo"))["comparisons"]
    # Differences per game over two seeds: a 0, b 0.5, c 0.5, d 0.5. All three up: p = 2 / 8.
    assert comparisons["grpo+sp"]["difference"] == pytest.approx(0.375)
    assert comparisons["grpo+sp"]["p"] == pytest.approx(0.25)
    assert comparisons["grpo+sp"]["seed_differences"] == [0.5, 0.25]
    # Final rates 1 and 3/4 against 1/2 and 1/2.
    assert comparisons["grpo+sp"]["probability_of_improvement"] == 1.0
    assert (comparisons["worse"]["seeds"], comparisons["worse"]["difference"]) == ([0], -0.25)
    assert "grpo" not in comparisons


def test_what_is_missing_is_said() -> None:
    assert summarise(STUDY, "grpo").missing == (
        "worse, seed 1: not finished, 2 evaluations so far",
        "broken, seed 0: failed (EnvFault: no answer | at all)",
        "broken: no finished run",
    )
    other_seed = [run("grpo", 0, "a", "ab"), run("grpo+sp", 5, "a", "ab", "ab")]
    summary = summarise(other_seed, "grpo")
    assert summary.missing == (
        "grpo: ends at iteration 5, other arms at 10",
        "grpo+sp: no seed in common with grpo, so no paired comparison",
    )
    assert summary.comparisons == {}


def test_baseline_without_a_finished_run() -> None:
    records = [run("grpo", 0, "a", status="running"), run("grpo+sp", 0, "a", "ab")]
    document = results_document(summarise(records, "grpo"))
    assert list(document["arms"]) == ["grpo+sp"]
    assert document["arms"]["grpo+sp"]["iterations_to_baseline"] is None
    assert document["comparisons"] == {}


def test_only_iterations_that_all_seeds_share_are_averaged() -> None:
    long, short = run("grpo", 0, "a", "ab", "abc"), run("grpo", 1, "a", "ab")
    arm = results_document(summarise([long, short], "grpo"))["arms"]["grpo"]
    assert (arm["curve_iterations"], arm["curve"]) == ([0, 5], [0.25, 0.5])


def test_order_of_games_in_an_evaluation_does_not_matter() -> None:
    turned = [
        record.model_copy(
            update={
                "evaluations": tuple(
                    e.model_copy(update={"outcomes": e.outcomes[::-1]}) if record.arm == "grpo+sp" else e
                    for e in record.evaluations
                )
            }
        )
        for record in STUDY
    ]
    assert results_document(summarise(turned, "grpo")) == results_document(summarise(STUDY, "grpo"))


def test_same_records_give_the_same_report(tmp_path: Path) -> None:
    first = write_report(tmp_path / "one", STUDY, "grpo", title="study")
    second = write_report(tmp_path / "two", STUDY, "grpo", title="study")
    assert first.results.read_bytes() == second.results.read_bytes()
    assert first.report.read_bytes() == second.report.read_bytes()


@pytest.mark.parametrize(
    ("records", "baseline", "reason"),
    [
        (STUDY, "gigpo", "the baseline 'gigpo' is none of the study's arms: grpo, grpo\\+sp, worse, broken"),
        ([run("grpo", 0, "a", status="running")], "grpo", "no run of the study is finished"),
        ([run("grpo", 0, "a"), run("grpo", 1, "a", panel_hash="9")], "grpo", r"different panels \(0f1e, 9\)"),
        ([run("grpo", 0)], "grpo", "'grpo' share no evaluated iteration"),
        (
            [run("grpo", 0, evaluations=(Evaluation(iteration=0, outcomes=()),))],
            "grpo",
            "not those of the panel",
        ),
    ],
)
def test_studies_that_cannot_be_reported(records: list[RunRecord], baseline: str, reason: str) -> None:
    with pytest.raises(DataFault, match=reason):
        summarise(records, baseline)


def test_evaluation_on_other_games_is_refused() -> None:
    odd = evaluation(0, "a")
    outcomes = (*odd.outcomes[:3], odd.outcomes[3].model_copy(update={"game_id": "z"}))
    records = [run("grpo", 0, "a"), run("grpo", 1, evaluations=(Evaluation(iteration=0, outcomes=outcomes),))]
    with pytest.raises(DataFault, match="'grpo', seed 1, iteration 0: the evaluated games"):
        summarise(records, "grpo")


def test_differing_settings_leave_out_seeds_and_what_is_equal() -> None:
    assert differing_config(STUDY[:4]) == {"loss.lambda_sp": {"grpo": "0.0", "grpo+sp": "0.2"}}
    extra = run("grpo+sp", 0, "a", config={"loss": {"lambda_sp": 0.0, "sp": {"shuffle": True}}})
    assert differing_config([run("grpo", 0, "a", config={"loss": {"lambda_sp": 0.0}}), extra]) == {
        "loss.sp.shuffle": {"grpo": "–", "grpo+sp": "True"}
    }


def test_report_on_disk(tmp_path: Path) -> None:
    for record in STUDY:
        write_record(tmp_path, record)
    paths = write_report(tmp_path, load_records(tmp_path), "grpo", title="quick")
    assert json.loads(paths.results.read_text())["arms"]["grpo"]["final"] == 0.5
    text = paths.report.read_text()
    for image in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (tmp_path / image).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"!\[", text)) == 3
    assert re.search(r"^\| grpo\+sp \| 2 \| 25\.0 \| \*\*87\.5\*\* \| \[", text, re.MULTILINE)
    assert re.search(
        r"^\| grpo\+sp \| 2 \| \+37\.5 \| \[.*\] \| 0\.250 \| 0\.500 \| \+50\.0, \+25\.0 \| "
        r"100\.0 \[100\.0, 100\.0\] \| 5 \|$",
        text,
        re.MULTILINE,
    )
    assert re.search(r"^\| worse \| 1 \| -25\.0 .* \| never \|$", text, re.MULTILINE)
    assert "| `loss.lambda_sp` | 0.0 | 0.2 | 0.0 |" in text
    assert "- broken, seed 0: failed (EnvFault: no answer \\| at all)" in text
    assert "fewer than five seeds" in text
    assert "one seed has an interval over games alone" in text


def test_the_report_shows_what_the_policies_know_where_all_seeds_measured_it(tmp_path: Path) -> None:
    def measured(record: RunRecord, *values: float) -> RunRecord:
        known = zip(record.evaluations, values, strict=True)
        changed = tuple(e.model_copy(update={"dynamics": {"dynamics/sp_ce": v}}) for e, v in known)
        return record.model_copy(update={"evaluations": changed})

    records = [
        measured(run("grpo", 0, "a", "ab"), 1.0, 0.75),
        measured(run("grpo", 1, "a", "ab"), 1.0, 0.5),
        measured(run("grpo+sp", 0, "a", "ab"), 1.0, 0.25),
        run("grpo+sp", 1, "a", "ab"),
    ]
    summary = summarise(records, "grpo")
    assert [dict(arm.dynamics) for arm in summary.arms] == [{"dynamics/sp_ce": (1.0, 0.625)}, {}]
    assert results_document(summary)["arms"]["grpo"]["dynamics"] == {
        "dynamics/sp_ce": {"initial": 1.0, "final": 0.625}
    }
    text = write_report(tmp_path, records, "grpo").report.read_text()
    assert "| grpo | 1.000 → 0.625 |\n| grpo+sp | – |" in text
    assert "`sp_ce`: cross-entropy of the next observation's tokens (nats/token)." in text
    assert "know of the environment" not in write_report(tmp_path, STUDY, "grpo").report.read_text()


def test_tables_of_the_report_are_whole(tmp_path: Path) -> None:
    text = write_report(tmp_path, STUDY, "grpo").report.read_text()
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(widths) == 1, table


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFault, match="can't be written"):
        write_report(tmp_path / "file" / "study", STUDY, "grpo")


def test_console_table_shows_every_arm_in_eighty_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(summarise(STUDY, "grpo"), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith("grpo+sp"))
    assert row.split()[:4] == ["grpo+sp", "2", "25.0", "87.5"]
    assert row.split()[5:] == ["+37.5", "0.250", "5", "70"]
    assert "missing: broken, seed 0: failed (EnvFault: no answer | at all)" in text


def test_table_and_curves_from_records() -> None:
    table = table_from_records(STUDY[:2])
    assert table.to_dict("list") == {
        "arm": ["grpo"] * 6,
        "seed": [0, 0, 0, 1, 1, 1],
        "iteration": [0, 5, 10, 0, 5, 10],
        "success_rate": [0.25, 0.25, 0.5, 0.25, 0.5, 0.5],
    }
    (curve,) = curves_from_table(table)
    assert (curve.arm, curve.seeds) == ("grpo", 2)
    assert [(p.iteration, p.success.value) for p in curve.points] == [(0, 0.25), (5, 0.375), (10, 0.5)]
    # Two seeds at 0.25 and 0.5: a resample is either twice the one, twice the other, or both.
    assert (curve.points[1].success.low, curve.points[1].success.high) == (0.25, 0.5)
    assert (curve.points[2].success.low, curve.points[2].success.high) == (0.5, 0.5)


def test_curve_leaves_out_iterations_a_seed_has_not_reached() -> None:
    (curve,) = curves_from_table(table_from_records([run("grpo", 0, "a", "ab"), run("grpo", 1, "a")]))
    assert [point.iteration for point in curve.points] == [0]


def test_table_that_mixes_studies_is_refused() -> None:
    with pytest.raises(DataFault, match="'grpo' has a seed twice"):
        curves_from_table(table_from_records([STUDY[0], STUDY[0]]))


def test_summary_curves_are_those_of_the_arms() -> None:
    summary = summarise(STUDY, "grpo")
    assert [curve.arm for curve in curves_from_summary(summary)] == ["grpo", "grpo+sp", "worse"]
    families = family_curves_from_summary(summary)
    assert list(families) == ["cool", "heat"]
    assert [point.success.value for point in families["cool"][1].points] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("family", ["cost $\\frac$", "price $_$", "a^b_c"])
def test_task_types_with_signs_of_formulas_are_drawn_as_they_are(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "a", family)
    study = [run(arm, seed, "a", "ab") for arm in ("grpo$_$", "grpo^") for seed in (0, 1)]
    paths = write_report(tmp_path, study, "grpo$_$", title=f"{family} study")
    assert paths.family_curves.stat().st_size > 0
    figure = plot_family_curves(family_curves_from_summary(summarise(study, baseline="grpo$_$")), family)
    shown = [axes.get_title() for axes in figure.axes]
    assert family in shown
    assert not any(axes.title.get_parse_math() for axes in figure.axes)
