"""The commands as a user meets them: help, printed configurations, committed studies, what is shown."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from envrl.analysis.records import load_records
from envrl.experiments import ablate, evaluate, train
from envrl.experiments.config import RunConfig, config_from, run_config, run_parser
from envrl.experiments.console import clock, progress_line, say
from envrl.experiments.display import StudyDisplay
from envrl.experiments.resume import first_difference
from envrl.experiments.study_file import load_study
from envrl.experiments.workers import PlannedRun
from envrl.training.progress import Progress
from studies import TINY, tiny, write_study, write_yaml
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")

ROOT = Path(__file__).resolve().parents[2]
# Those of hub models can't be resolved without a network; test_presets.py looks at them.
# Sweeps are another kind of file; test_sweep.py looks at them.
STUDIES = sorted(
    p for p in (ROOT / "experiments").glob("*.yaml") if not ("b_" in p.stem or p.stem.startswith("sweep_"))
)

HELP = """
import sys
from envrl.experiments import {name}
try:
    {name}.main(["--help"])
finally:
    heavy = {{"torch", "lightning", "transformers", "peft", "mlflow", "pandas", "matplotlib", "scipy"}}
    print("HEAVY", sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize("name", ["train", "evaluate", "ablate"])
def test_help_loads_no_heavy_library(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(name=name)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("HEAVY []\n")
    assert done.stdout.startswith(f"usage: python -m envrl.experiments.{name}")


def test_every_field_is_explained_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    # One field at each depth; the words stand below the field in the source.
    assert "Root of every random choice of the run." in text
    assert "ALFWorld: pieces of furniture of generated rooms; null keeps all of a scene." in text
    assert "Scaling: the update is multiplied by alpha / rank." in text
    options = [part for part in text.split(" --")[1:] if part.split()[0].count(".") >= 1]
    bare = [part.split()[0] for part in options if " (type:" in part and len(part.split(" (type:")[0]) < 30]
    assert bare == [], "options without a word of explanation"


@pytest.mark.parametrize("command", [train, evaluate])
def test_an_option_is_not_taken_for_one_it_begins_like(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--env.receptacle", "7"]) != 0
    assert "--env.receptacle" in capsys.readouterr().err


def printed(command: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What ``--print_config`` prints."""
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        command.main([*arguments, "--print_config"])
    return capsys.readouterr().out


def parsed(arguments: list[str]) -> RunConfig:
    parser = run_parser("test", "")
    return run_config(parser, parser.parse_args(arguments))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--loss.sp.weight=0.3", "--loss.sp.kind=switch", "--env.task_types=[look_at_obj_in_light]"],
        ["--loss.dual_clip=null", "--env.receptacles=null", "--auxiliary.max_transitions=7", "--seed=5"],
    ],
)
def test_a_printed_configuration_is_taken_back(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = printed(train, options, capsys)
    file = write_yaml(tmp_path / "run.yaml", yaml.safe_load(first))
    (tmp_path / "same.yaml").write_text(first)
    assert printed(train, ["--config", str(tmp_path / "same.yaml")], capsys) == first
    content = yaml.safe_load(file.read_text())
    for name in ("name", "root"):
        content.pop(name, None)
    assert parsed(["--config", str(write_yaml(tmp_path / "plain.yaml", content))]) == parsed(options)


def test_what_an_arm_is_printed_as_trains_that_arm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, checkpoint(), seeds=[3, 4])
    arms = yaml.safe_load(printed(ablate, ["--study", str(study)], capsys))
    assert list(arms) == ["grpo", "both"]
    both = parsed(["--config", str(write_yaml(tmp_path / "both.yaml", arms["both"]))])
    assert both == config_from(tiny(checkpoint()), {"loss.sp.weight": 0.2, "loss.id.weight": 0.2, "seed": 3})


def test_nested_and_dotted_keys_mean_the_same() -> None:
    dotted = config_from({"loss.sp.weight": 0.1, "loss": {"id": {"weight": 0.2}}}, {"loss.sp.kind": "linear"})
    assert (dotted.loss.sp.weight, dotted.loss.sp.kind, dotted.loss.id.weight) == (0.1, "linear", 0.2)
    assert config_from({"loss": {"sp": {"weight": 0.1}}}, {"loss.sp.weight": 0.3}).loss.sp.weight == 0.3


def test_options_of_evaluate_override_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yaml(tmp_path / "config.yaml", tiny(checkpoint(), {"sampling.eval_temperature": 0.9}))
    shown = yaml.safe_load(printed(evaluate, ["--run", str(tmp_path), "--sampling.max_new_tokens=3"], capsys))
    assert shown["sampling"]["eval_temperature"] == 0.9
    assert shown["sampling"]["max_new_tokens"] == 3
    assert shown["evaluation"]["games"] == 6


@pytest.mark.parametrize("study", STUDIES, ids=[s.stem for s in STUDIES])
def test_committed_studies_resolve(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = load_study(study)
    assert content.name == study.stem
    assert ablate.main(["--study", str(study), "--root", str(tmp_path / "mlruns"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("to run" in line for line in lines) == len(content.runs)
    assert list(tmp_path.iterdir()) == []


def dotted(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@pytest.mark.parametrize(
    "study",
    [pytest.param(s, id=s.stem, marks=[] if s.stem == "quick" else [pytest.mark.slow]) for s in STUDIES],
)
def test_committed_studies_run(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every arm through the real command, on a handful of games, for one iteration if it names no number."""
    small = dotted(tiny(checkpoint(), {"train.iterations": 1, "train.diagnose_every": 1}))
    if study.stem.startswith("webshop"):
        small = {key: value for key, value in small.items() if not key.startswith("env.")}
        small |= {"env.train_games": 8, "env.max_steps": 2, "sampling.max_context": 2000}
    options = [f"--set={key}={json.dumps(value)}" for key, value in small.items()]
    root = str(tmp_path / "mlruns")
    assert ablate.main(["--study", str(study), "--root", root, "--seeds", "0", "--jobs", "1", *options]) == 0
    content = load_study(study)
    folder = tmp_path / "mlruns" / "studies" / study.stem
    assert {r.arm for r in load_records(folder)} == set(content.arms)
    results = json.loads((folder / "results.json").read_text())
    assert set(results["arms"]) == set(content.arms)
    assert results["baseline"] == content.baseline


def test_tiny_settings_are_settings() -> None:
    """A key that is no longer known would make the tests above run something large."""
    parser = run_parser("test", "")
    known = set(dotted(yaml.safe_load(parser.dump(parser.get_defaults(), skip_none=False))))
    assert set(dotted(TINY)) - known == set()


def test_times_and_shares_are_written_for_people() -> None:
    assert [clock(s) for s in (None, 0.4, 59.6, 61, 3600, 36_605)] == [
        "–", "0:00", "1:00", "1:01", "1:00:00", "10:10:05",
    ]  # fmt: skip
    line = progress_line("grpo seed 0", Progress(5, 30, 0.125, None, 61.0, 305.0))
    assert line == "grpo seed 0  iteration 5/30  training 12.5 %  panel –  1:01 gone, 5:05 left"


def test_lines_are_neither_wrapped_nor_read_as_markup() -> None:
    out = io.StringIO()
    say(Console(file=out, width=40), "x" * 60 + " [bold]arm[/bold] [Errno 2]")
    assert out.getvalue() == "x" * 60 + " [bold]arm[/bold] [Errno 2]\n"


def test_the_display_tells_iteration_success_and_time_left(tmp_path: Path) -> None:
    out = io.StringIO()
    runs = [PlannedRun(arm, config_from({"train.iterations": 12})) for arm in ("a", "longer")]
    display = StudyDisplay(tmp_path, runs, Console(file=out))

    def reached(arm: str, iteration: int, old: bool = False) -> str:
        path = tmp_path / "runs" / arm / "seed_0" / "progress.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(Progress(iteration, 12, 0.5, 0.25, 10.0, 20.0))))
        if old:
            os.utime(path, (time.time() - 100, time.time() - 100))
        out.seek(0)
        out.truncate()
        display.update()
        return out.getvalue()

    assert reached("a", 3, old=True) == "", "left over from a command before this one"
    assert reached("a", 4).startswith("a seed 0       iteration 4/12  training 50.0 %  panel 25.0 %")
    assert reached("a", 4) == ""
    assert reached("a", 5) == "", "not every iteration is worth a line"
    assert " left, 0:0" in reached("longer", 6)
    # One iteration was made here, in 2 seconds; 24 in all, 4 and 6 were there at first sight.
    display._started = time.perf_counter() - 2.0
    assert display._seconds_left() == pytest.approx(26.0, abs=1.0)


def test_the_first_difference_is_named() -> None:
    old = {"seed": 0, "loss": {"sp": {"weight": 0.1, "kind": "cosine"}}}
    new = {"seed": 0, "loss": {"sp": {"weight": 0.1, "kind": "linear"}}}
    assert first_difference(old, new) == "loss.sp.kind: was cosine, is linear"
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == "b: was None, is 2"
