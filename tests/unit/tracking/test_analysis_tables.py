"""Success rates read back from real MLflow runs, and the notebook that draws them."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from envrl.analysis.tables import StudyRun, family_tables_from_mlflow, latest_study, table_from_mlflow
from envrl.errors import DataFault
from envrl.tracking import runs
from envrl.tracking.store import Store, client
from notebook_runs import executed

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "success_rate_curves.ipynb"

Curves = Mapping[tuple[str, int], Sequence[float]]
"""Arm and seed → success at iterations 0, 5, 10, …"""


def log_study(store: Store, name: str, curves: Curves, experiment: str = "quick") -> str:
    """Logs a study as the runner does and returns its parent run."""
    parent = runs.start_study(store, experiment, name, {"env": "alfworld"})
    for (arm, seed), values in curves.items():
        tags = {"arm": arm, "seed": str(seed)}
        with runs.run_context(store, experiment, f"{arm}/seed_{seed}", parent, tags) as run_id:
            for number, value in enumerate(values):
                metrics = {"eval/success_rate": value, "eval/success_rate/heat": value / 2}
                runs.log_metrics(store, run_id, metrics, iteration=5 * number)
    runs.finish_study(store, parent)
    return parent


def test_table_has_one_row_for_each_evaluation(store: Store) -> None:
    parent = log_study(store, "one", {("grpo", 10): [0.25, 0.5], ("grpo", 2): [0.3], ("a", 0): [0.1]})
    table = table_from_mlflow(store, "quick", parent)
    assert [tuple(row) for row in table.itertuples(index=False)] == [
        ("a", 0, 0, 0.1),
        ("grpo", 2, 0, 0.3),
        ("grpo", 10, 0, 0.25),
        ("grpo", 10, 5, 0.5),
    ]


def test_families_have_tables_of_their_own(store: Store) -> None:
    log_study(store, "one", {("grpo", 0): [0.25, 0.5]})
    families = family_tables_from_mlflow(store, "quick")
    assert list(families) == ["heat"]
    assert families["heat"]["success_rate"].tolist() == [0.125, 0.25]


def test_studies_of_one_experiment_are_told_apart(store: Store) -> None:
    first = log_study(store, "one", {("grpo", 0): [0.25]})
    second = log_study(store, "two", {("grpo", 0): [0.75]})
    assert table_from_mlflow(store, "quick", first)["success_rate"].tolist() == [0.25]
    assert table_from_mlflow(store, "quick", second)["success_rate"].tolist() == [0.75]
    assert sorted(table_from_mlflow(store, "quick")["success_rate"]) == [0.25, 0.75]
    assert latest_study(store) == StudyRun("quick", second, "two")


def test_latest_study_of_one_experiment(store: Store) -> None:
    wanted = log_study(store, "mine", {("grpo", 0): [0.25]}, experiment="mine")
    log_study(store, "newer", {("grpo", 0): [0.25]}, experiment="other")
    assert latest_study(store, "mine") == StudyRun("mine", wanted, "mine")
    assert latest_study(store).name == "newer"


def test_point_logged_twice_counts_as_logged_last(store: Store) -> None:
    parent = log_study(store, "one", {("grpo", 0): [0.25, 0.5]})
    child = runs.find_run(store, "quick", "grpo/seed_0", parent)
    assert child is not None
    runs.log_metrics(store, child, {"eval/success_rate": 0.75}, iteration=5)
    assert table_from_mlflow(store, "quick", parent)["success_rate"].tolist() == [0.25, 0.75]


def test_more_runs_than_fit_on_a_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    parent = log_study(store, "one", {("grpo", seed): [0.25] for seed in range(4)})
    whole = mlflow.MlflowClient.search_runs

    def two_at_a_time(self: object, *arguments: object, **named: object) -> object:
        return whole(self, *arguments, **{**named, "max_results": 2})

    monkeypatch.setattr(mlflow.MlflowClient, "search_runs", two_at_a_time)
    assert table_from_mlflow(store, "quick", parent)["seed"].tolist() == [0, 1, 2, 3]
    assert runs.find_run(store, "quick", "one") == parent


def test_what_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(DataFault, match="there is no study in sqlite:"):
        latest_study(store)
    log_study(store, "one", {("grpo", 0): [0.25]})
    with pytest.raises(DataFault, match=r"no MLflow experiment 'quik' .*there are: Default, quick"):
        table_from_mlflow(store, "quik")
    with pytest.raises(DataFault, match="has logged eval/task_score"):
        table_from_mlflow(store, "quick", metric="eval/task_score")
    with pytest.raises(DataFault, match="no study in the experiment 'quik'"):
        latest_study(store, "quik")


def test_deleted_runs_are_left_out(store: Store) -> None:
    parent = log_study(store, "one", {("grpo", 0): [0.25], ("grpo", 1): [0.75]})
    child = runs.find_run(store, "quick", "grpo/seed_1", parent)
    assert child is not None
    client(store).delete_run(child)
    assert table_from_mlflow(store, "quick", parent)["seed"].tolist() == [0]


def execute(
    root: Path, monkeypatch: pytest.MonkeyPatch, experiment: str | None = None
) -> list[nbformat.NotebookNode]:
    """Runs the notebook on the store in ``root``; returns the outputs of the code cells."""
    monkeypatch.setenv("ENVRL_MLRUNS", str(root))
    if experiment is not None:
        monkeypatch.setenv("ENVRL_EXPERIMENT", experiment)
    else:
        monkeypatch.delenv("ENVRL_EXPERIMENT", raising=False)
    return executed(NOTEBOOK)


def test_notebook_draws_the_store_it_is_given(
    store: Store, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = {("grpo", 0): [0.2, 0.375], ("grpo", 1): [0.2, 0.5], ("grpo+sp", 0): [0.2, 0.625]}
    log_study(store, "drawn on the spot", curves)
    outputs = execute(store_root, monkeypatch)
    assert [output for output in outputs if output.output_type == "stream"] == []
    shown = "\n".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert "drawn on the spot" in shown
    for number in ("0.375", "0.5", "0.625"):
        assert number in shown
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert [base64.b64decode(picture)[:4] for picture in pictures] == [b"\x89PNG"] * 2


@pytest.mark.slow
def test_notebook_says_what_to_do_on_an_empty_store(
    store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CellExecutionError, match="run `make ablate` first or name another store"):
        execute(store_root, monkeypatch)
