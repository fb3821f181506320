"""Every sampler and pruner at work on a sweep whose runs are made-up curves; only training is left out."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from envrl.analysis.records import load_records
from envrl.analysis.summary import summarise
from envrl.errors import ConfigFault
from envrl.experiments.sweep_file import StorageSettings
from envrl.experiments.sweep_methods import PairedGames, sampler
from envrl.experiments.sweep_report import best_first
from envrl.experiments.sweep_search import PLACE, attempts, open_search, put_back_orphans
from envrl.experiments.sweep_space import Choices, Parameter, Range, Space
from sweep_stub import RANK, SP, method, stub_settings, work

GRID = Space({SP: Parameter(Choices((0.01, 0.1, 0.3))), RANK: Parameter(Choices((4, 8)))})


def states(study: optuna.Study) -> list[str]:
    return [a.last.state.name for a in attempts(study)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tpe", {"n_startup_trials": 3}),
        ("random", {}),
        ("qmc", {}),
        ("gp", {"n_startup_trials": 3}),
        ("cmaes", {"n_startup_trials": 2}),
    ],
)
def test_a_sampler_finds_a_good_weight_and_goes_on_with_new_ones(
    kind: str, options: dict[str, int], tmp_path: Path
) -> None:
    if kind == "cmaes":
        pytest.importorskip("cmaes", reason="the package cmaes is optional")
    space = Space(
        {SP: Parameter(Range(0.001, 1.0, log=True)), RANK: Parameter(Range(4, 8, step=4, whole=True))}
    )
    chosen = {"space": space, "sampler": method(kind, **options)}
    work(stub_settings(trials=7, **chosen), tmp_path)
    search = work(stub_settings(trials=12, **chosen), tmp_path)
    assert states(search.study) == ["COMPLETE"] * 12
    assert len({a.last.params[SP] for a in attempts(search.study)}) >= 11
    assert search.study.best_value > 0.7


def test_the_same_seed_gives_the_same_trials_also_after_a_stop(tmp_path: Path) -> None:
    whole = work(stub_settings(trials=8), tmp_path / "whole").study
    work(stub_settings(trials=3), tmp_path / "parts")
    parts = work(stub_settings(trials=8), tmp_path / "parts").study
    assert [t.params for t in parts.trials] == [t.params for t in whole.trials]


def test_a_grid_is_tried_once_each_and_ends_by_itself(tmp_path: Path) -> None:
    grid = {"space": GRID, "sampler": method("grid")}
    work(stub_settings(trials=4, **grid), tmp_path)
    study = work(stub_settings(trials=50, **grid), tmp_path).study
    tried = {(t.params[SP], t.params[RANK]) for t in study.trials}
    assert len(study.trials) == len(tried) == 6


def test_the_last_trial_of_a_grid_comes_back_after_a_kill(tmp_path: Path) -> None:
    grid = stub_settings(space=GRID, sampler=method("grid"), trials=50)
    storage = StorageSettings(f"journal:{tmp_path / 'journal'}")
    search = open_search(grid, storage, tmp_path)
    # As a worker leaves it that was killed between drawing the trial and naming its place.
    search.study.sampler = sampler(grid, 0)
    search.study.ask()
    study = work(grid, tmp_path, storage).study
    assert states(study) == ["COMPLETE"] * 6
    done = [(t.params[SP], t.params[RANK]) for t in study.trials if t.state == TrialState.COMPLETE]
    assert len(set(done)) == 6


def test_two_objectives_give_a_front(tmp_path: Path) -> None:
    settings = stub_settings(objectives=("success", "seconds"), sampler=method("nsga2", population_size=4))
    search = work(settings, tmp_path)
    front = best_first(settings, search.study)
    best = max(t.values[0] for t in search.study.trials)
    assert front[0].last.values[0] == best
    assert {t.values[1] for t in search.study.trials} == {4.0}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("median", {"n_startup_trials": 1}),
        ("hyperband", {"reduction_factor": 2}),
        ("asha", {"reduction_factor": 2}),
        ("wilcoxon", {}),
    ],
)
def test_a_pruner_ends_bad_trials_and_lets_good_ones_finish(
    kind: str, options: dict[str, int], tmp_path: Path
) -> None:
    weights = (0.1, 0.001, 0.09, 0.0012, 0.11, 1.0)
    chosen = {
        "enqueue": tuple({SP: w, RANK: 8} for w in weights),
        "pruner": method(kind, **options),
        "sampler": method("random"),
    }
    work(stub_settings(trials=6, **chosen), tmp_path)
    study = work(stub_settings(trials=14, **chosen), tmp_path).study
    found = {a.last.params[SP]: a.last for a in attempts(study)[: len(weights)]}
    assert found[0.1].state == TrialState.COMPLETE
    assert found[0.0012].state == TrialState.PRUNED
    assert len(found[0.0012].intermediate_values) < 4
    assert study.best_params[SP] in (0.1, 0.09, 0.11)
    pruned = [a.number for a in attempts(study) if a.last.state == TrialState.PRUNED]
    records = {r.arm: r for r in load_records(tmp_path)}
    assert {n for n, r in records.items() if r.status == "pruned"} == {f"trial_{n:04d}" for n in pruned}
    assert "pruned after" in str(study.trials[pruned[0]].user_attrs["error"])
    missing = summarise(list(records.values()), "trial_0000").missing
    assert any(line.startswith(f"trial_{pruned[0]:04d}, seed 0: pruned after") for line in missing)


def test_a_trial_that_has_come_to_its_end_counts(tmp_path: Path) -> None:
    """A bad trial that is evaluated for the first time at its end has cost everything it can cost."""
    chosen = {
        "enqueue": tuple({SP: w, RANK: 8} for w in (0.1, 0.11, 0.09, 0.001)),
        "pruner": method("median", n_startup_trials=1, n_warmup_steps=7),
    }
    study = work(stub_settings(trials=4, **chosen), tmp_path).study
    assert states(study) == ["COMPLETE"] * 4
    assert study.trials[3].value == min(trial.value for trial in study.trials)


def paired(mine: dict[int, str], best: dict[int, str], last: int) -> bool:
    study = optuna.create_study(direction="maximize")
    attrs = {f"games_{step}": won for step, won in best.items()}
    study.add_trial(optuna.create_trial(value=0.9, user_attrs=attrs))
    trial = optuna.create_trial(
        state=TrialState.RUNNING,
        user_attrs={f"games_{step}": won for step, won in mine.items()},
        intermediate_values=dict.fromkeys(mine, 0.5) | {last: 0.5},
    )
    return PairedGames(optuna.pruners.WilcoxonPruner(p_threshold=0.05), 8).prune(study, trial)


def test_paired_games_compare_the_same_moment_game_by_game() -> None:
    young, trained = "1" * 4 + "0" * 16, "1" * 20
    assert paired({4: young}, {4: trained, 8: trained}, 4)
    # As good as the best one was at that moment, though worse than what became of it.
    assert not paired({4: young}, {4: young, 8: trained}, 4)
    # The same number of games, but others: no difference.
    assert not paired({4: "10" * 10}, {4: "01" * 10, 8: trained}, 4)
    # Four games lost and none won are too few for p < 0.05 in twenty; with the seed before they add up.
    assert not paired({8: "0" * 2 + "1" * 18}, {8: trained}, 8)
    assert paired({8: "0" * 4 + "1" * 16, 12: young}, {8: trained, 12: trained, 16: trained}, 12)
    # Never when the best trial has not been asked about the same games.
    assert not paired({4: young}, {8: trained}, 4)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigFault, match="needs the package cmaes, which is not installed"):
        sampler(stub_settings(sampler=method("cmaes")), 0)


def test_a_trial_of_another_place_is_left_alone_and_an_unplaced_one_comes_back(tmp_path: Path) -> None:
    settings = stub_settings()
    search = open_search(settings, StorageSettings(f"journal:{tmp_path / 'journal'}"), tmp_path)
    search.study.ask().set_user_attr(PLACE, "elsewhere:/x")
    search.study.ask()
    assert put_back_orphans(search) == 1
    assert put_back_orphans(search) == 0
    assert [t.state.name for t in search.study.trials] == ["RUNNING", "FAIL", "WAITING"]
