"""Notebooks: committed without outputs, define nothing, and show a study that was made on the spot."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import nbformat
import optuna
import pytest
from nbclient.exceptions import CellExecutionError
from test_analysis_page import HOSTILE, episode
from test_analysis_report import STUDY

from envrl.analysis.episodes import write_episodes
from envrl.analysis.frames import (
    arm_frame,
    baseline_of,
    dynamics_frame,
    environment_of,
    episode_frame,
    latest_study_folder,
    runs_with_episodes,
)
from envrl.analysis.published import PUBLISHED, published_frame
from envrl.analysis.records import RunRecord, record_path, write_record
from envrl.analysis.summary import summarise
from envrl.analysis.sweeps import latest_sweep_folder, open_sweep, sweep_figures, trials_frame
from envrl.errors import DataFault
from notebook_runs import executed, pictures, texts

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def known(record: RunRecord) -> RunRecord:
    """A record whose evaluations have asked about the environment."""
    evaluations = tuple(
        e.model_copy(update={"dynamics": {"dynamics/sp_ce": 1.0 - e.success_rate, "dynamics/id_ce": 0.5}})
        for e in record.evaluations
    )
    config = record.config | {"env": {"name": "alfworld"}}
    return record.model_copy(update={"evaluations": evaluations, "config": config})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A study with records, episodes and the file that names its baseline."""
    folder = tmp_path / "studies" / "made"
    for record in STUDY:
        write_record(folder, known(record))
    (folder / "study.json").write_text(json.dumps({"study": {"baseline": "grpo"}}))
    run = record_path(folder, "grpo", 0).parent
    write_episodes(run, 0, [episode(False, game="g1"), episode(False, game="g2")])
    write_episodes(run, 10, [episode(True, game="g1"), episode(False, HOSTILE, bad=3, game="g2")])
    return tmp_path


def test_there_are_five() -> None:
    assert NAMES == [
        "ablation_table.ipynb", "dynamics_probe.ipynb", "episode_reader.ipynb", "success_rate_curves.ipynb",
        "sweep_analysis.ipynb",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_without_outputs_and_define_nothing(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == notebook.cells[-1].cell_type == "markdown"
    assert "You will learn" in notebook.cells[0].source
    assert "Use your own data" in notebook.cells[-1].source
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
            source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
            assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, definitions)]


def test_the_notebook_of_the_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVRL_MLRUNS", str(root))
    monkeypatch.delenv("ENVRL_STUDY", raising=False)
    outputs = executed(FOLDER / "ablation_table.ipynb")
    assert [o for o in outputs if o.output_type == "stream"] == []
    shown = texts(outputs)
    for word in ("made", "87.5", "37.5", "broken: no finished run", "loss.lambda_sp", "77.4"):
        assert word in shown
    assert "67.0" not in shown  # published for another environment
    assert pictures(outputs) == 1


def test_the_notebook_of_what_is_known(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVRL_MLRUNS", str(root))
    monkeypatch.setenv("ENVRL_STUDY", "made")
    outputs = executed(FOLDER / "dynamics_probe.ipynb")
    assert [o for o in outputs if o.output_type == "stream"] == []
    # A cross-entropy of 1 minus success: the correlation is exactly -1.
    assert "-1.0" in texts(outputs)
    assert pictures(outputs) == 1


def test_the_notebook_that_reads_episodes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVRL_MLRUNS", str(root))
    monkeypatch.setenv("ENVRL_STUDY", "made")
    outputs = executed(FOLDER / "episode_reader.ipynb")
    assert [o for o in outputs if o.output_type == "stream"] == []
    html = "".join(str(o.get("data", {}).get("text/html", "")) for o in outputs)
    assert "&lt;script&gt;alert(1)" in html
    assert "<script>alert" not in html
    assert "not admissible" in html


def test_a_notebook_without_runs_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVRL_MLRUNS", str(tmp_path))
    with pytest.raises(CellExecutionError, match="run `make ablate` first"):
        executed(FOLDER / "ablation_table.ipynb")


def test_the_newest_study_is_found(root: Path) -> None:
    other = root / "studies" / "older"
    path = write_record(other, STUDY[0])
    os.utime(path, (1, 1))
    assert latest_study_folder(root).name == "made"
    assert latest_study_folder(root, "older") == other
    single = write_record(root / "studies" / "single", STUDY[0])
    os.utime(single, (2**32, 2**32))
    assert latest_study_folder(root).name == "made"  # not the newer run of `train`
    with pytest.raises(DataFault, match="there is no study 'x' with a run"):
        latest_study_folder(root, "x")
    with pytest.raises(DataFault, match=r"study\.json can't be read"):
        baseline_of(other)


def test_tables_have_the_numbers_of_the_summary() -> None:
    frame = arm_frame(summarise(STUDY, "grpo"))
    assert frame.loc["grpo+sp", ["final", "difference", "p"]].tolist() == [87.5, 37.5, 0.25]
    assert frame.loc["grpo+sp", "reached_at"] == 5
    assert frame.loc["grpo", ["difference", "p"]].isna().all()
    assert frame["reached_at"].isna().tolist() == [False, False, True]
    known_frame = dynamics_frame([known(STUDY[0])])
    assert known_frame["metric"].tolist() == ["id_ce", "sp_ce"] * 3
    with pytest.raises(DataFault, match=r"evaluation\.dynamics above 0"):
        dynamics_frame(STUDY)
    with pytest.raises(DataFault, match=r"env\.name"):
        environment_of(STUDY)


def test_episodes_as_a_table(root: Path) -> None:
    (run,) = runs_with_episodes(root / "studies" / "made")
    assert run.name == "seed_0"
    row = episode_frame([episode(True, bad=2)]).iloc[0]
    assert (row["turns"], row["inadmissible"], row["unparsed"]) == (
        3,
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
    )
    assert row["logprob"] == pytest.approx(-0.75)
    with pytest.raises(DataFault, match=r"evaluation\.episodes above 0"):
        runs_with_episodes(root)


def test_published_numbers_are_percent_and_named_once() -> None:
    assert len({(r.env, r.model, r.method) for r in PUBLISHED}) == len(PUBLISHED)
    assert all(0 < r.success < 100 and "arXiv" in r.source for r in PUBLISHED)
    paper = published_frame("webshop")
    assert paper.loc[paper["method"] == "GRPO + SP + ID", "success"].tolist() == [67.0]


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """A sweep of eight trials, one of them pruned, as the command leaves it."""
    folder = tmp_path / "studies" / "swept"
    folder.mkdir(parents=True)
    content = {"sweep": {"name": "swept", "objectives": ["success"]}}
    (folder / "sweep.json").write_text(json.dumps(content))
    made = optuna.create_study(
        study_name="swept",
        storage=f"sqlite:///{folder / 'optuna.db'}",
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
    )

    def trial(trial: optuna.Trial) -> float:
        weight = trial.suggest_float("loss.sp.weight", 0.01, 0.5, log=True)
        trial.suggest_categorical("loss.sp.kind", ["cosine", "constant"])
        if trial.number == 3:
            raise optuna.TrialPruned
        return round(weight, 3)

    made.optimize(trial, n_trials=8)
    return tmp_path


def test_the_notebook_of_a_sweep(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVRL_MLRUNS", str(swept))
    monkeypatch.delenv("ENVRL_STUDY", raising=False)
    monkeypatch.delenv("ENVRL_STORAGE", raising=False)
    outputs = executed(FOLDER / "sweep_analysis.ipynb")
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert printed.split("\n")[:5] == ["history", "slice", "parallel_coordinate", "importances", "timeline"]
    assert "no trial is finished yet" in printed
    assert pictures(outputs) == 5
    assert "swept: 8 trials, objectives success" in texts(outputs)


def test_trials_are_a_table_with_the_best_first(swept: Path) -> None:
    sweep = open_sweep(latest_sweep_folder(swept))
    frame = trials_frame(sweep)
    assert frame["success"].dropna().is_monotonic_decreasing
    assert frame.loc[frame["trial"] == 3, "state"].tolist() == ["pruned"]
    assert (frame["success"].dropna() == frame["loss.sp.weight"].round(3)[: len(frame) - 1]).all()


def test_figures_are_those_that_the_trials_are_enough_for() -> None:
    empty = optuna.create_study()
    assert list(sweep_figures(empty, ["success"])) == ["timeline"]
    two = optuna.create_study(directions=["maximize", "minimize"])
    two.optimize(lambda t: (t.suggest_float("x", 0, 1), 1.0), n_trials=3)
    assert list(sweep_figures(two, ["success", "seconds"])) == ["pareto_front", "timeline"]


def test_sweeps_that_can_not_be_read_are_named(swept: Path) -> None:
    with pytest.raises(DataFault, match="there is no sweep 'x'"):
        latest_sweep_folder(swept, "x")
    with pytest.raises(DataFault, match=r"sweep\.json can't be read"):
        open_sweep(swept)
    folder = swept / "studies" / "swept"
    with pytest.raises(DataFault, match="has no sweep 'swept'"):
        open_sweep(folder, f"sqlite:///{swept / 'other.db'}")
    with pytest.raises(DataFault, match=r"can't be opened \(ArgumentError\)"):
        open_sweep(folder, "nonsense")
    with pytest.raises(DataFault, match=r"the journal .* is missing"):
        open_sweep(folder, f"journal:{swept / 'none'}")
    (folder / "optuna.db").unlink()
    with pytest.raises(DataFault, match="give the --storage"):
        open_sweep(folder)
