"""How long a study takes: parts of a run added up, runs handed out to jobs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from envrl.analysis.records import RunRecord, write_record
from envrl.experiments import estimate
from envrl.experiments.config import config_from
from envrl.experiments.estimate import Estimate, Timing, describe_time, time_left
from envrl.experiments.plain import as_plain
from envrl.experiments.study import Study, plan_study
from envrl.experiments.study_file import StudySettings
from envrl.experiments.workers import PlannedRun


def study(root: Path) -> Study:
    base = {"train": {"iterations": 20, "diagnose_every": 10}, "evaluation": {"every": 8}}
    arms = {"a": {}, "b": {"loss.sp.weight": 0.1}}
    return plan_study(StudySettings("s", arms, "a", seeds=(0, 1), jobs=2, base=base), root)


def said(made: Study, measure: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=200, record=True)
    describe_time(made, measure, console)
    return console.export_text().splitlines()


def finish(made: Study, arm: str, seed: int, seconds: float) -> None:
    run = next(r for r in made.runs if (r.arm, r.config.seed) == (arm, seed))
    record = RunRecord(
        arm=arm, seed=seed, status="finished", panel_hash="0", seconds=seconds, config=as_plain(run.config)
    )
    write_record(made.folder, record)


def test_a_run_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    config = study(tmp_path).runs[0].config
    # Iterations 0 and 10 of 20 are measured closely; evaluated after 0, 8, 16 and 20.
    assert Timing(3.0, 2.0, 5.0, 10.0).run_seconds(config) == 3.0 + 18 * 2.0 + 2 * 5.0 + 4 * 10.0
    never = config_from({"train": {"iterations": 5, "diagnose_every": 0}, "evaluation": {"every": 5}})
    assert Timing(0.0, 2.0, 5.0, 10.0).run_seconds(never) == 5 * 2.0 + 2 * 10.0


def test_runs_go_to_the_job_that_is_free_first() -> None:
    config = config_from({})
    runs = [PlannedRun(arm, config) for arm in ("long", "short", "short", "short")]
    estimates = {"long": Estimate(50.0, ""), "short": Estimate(20.0, "")}
    assert time_left(runs, estimates, 1) == 110.0
    assert time_left(runs, estimates, 2) == 60.0
    assert time_left(runs, estimates, 9) == 50.0


def test_finished_runs_tell_the_time_of_the_others(tmp_path: Path) -> None:
    made = study(tmp_path)
    assert said(made) == [
        "no run is finished to tell the time from; --estimate times 3 iterations of each arm"
    ]
    finish(made, "a", 0, 100.0)
    assert said(made) == [
        "  b: 1:40 a run (mean of the other arms)",
        "  a: 1:40 a run (mean of its 1 finished)",
        "3 runs to do, 2 at a time: about 3:20, if every job has a core of its own",
    ]
    finish(made, "b", 0, 40.0)
    finish(made, "b", 1, 60.0)
    assert said(made)[-1].startswith("1 runs to do, 2 at a time: about 1:40")
    finish(made, "a", 1, 100.0)
    assert said(made) == ["every run is finished"]


def test_only_arms_without_a_finished_run_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path)
    finish(made, "a", 0, 100.0)
    asked = []

    def fake(config):
        asked.append(config.loss.sp.weight)
        return Timing(0.0, 1.0, 1.0, 0.0)

    monkeypatch.setattr(estimate, "timed", fake)
    assert "  b: 0:20 a run (from 3 iterations)" in said(made, measure=True)
    assert asked == [0.1]
