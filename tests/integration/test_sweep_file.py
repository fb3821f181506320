"""Sweep files: what is refused, and what is suggested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from envrl.errors import ConfigFault
from envrl.experiments.sweep_file import SweepSettings, load_sweep
from envrl.experiments.sweep_methods import PairedGames, pruner, sampler
from envrl.experiments.sweep_space import Choices, Parameter, Range, Space
from studies import write_yaml

ROOT = Path(__file__).resolve().parents[2]
SP = "loss.sp.weight"
ONE = {SP: {"low": 0.01, "high": 0.5, "log": True}}


def loaded(folder: Path, **changes: Any) -> SweepSettings:
    return load_sweep(write_yaml(folder / "sweep.yaml", {"name": "s", "space": ONE} | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spaces": {}}, "unknown key 'spaces'; known keys: name, space"),
        ({"space": {}}, "space is empty"),
        ({"space": {"loss.sp.weigth": {"low": 0, "high": 1}}}, "is loss.sp.weight"),
        ({"space": {"learning.lr": {"low": 0.1, "high": 1}}}, "is optim.lr meant?"),
        ({"space": {SP: {"low": 0.5, "high": 0.1}}}, "low is 0.5, above high, 0.1"),
        ({"space": {SP: {"low": 0.0, "high": 0.1, "log": True}}}, "has no logarithm"),
        ({"space": {SP: {"low": 0.1, "high": 1, "log": True, "step": 0.1}}}, "leave out log or step"),
        ({"space": {SP: {"low": 0.1}}}, "give low and high, or choices"),
        ({"space": {SP: {"low": "1e-4", "high": 1.0}}}, "'space.loss.sp.weight.low' is '1e-4'"),
        ({"space": {SP: {"low": 0.1, "high": 1, "lag": True}}}, "unknown key 'space.loss.sp.weight.lag'"),
        ({"space": {SP: {"choices": []}}}, "choices is empty"),
        ({"space": {SP: {"choices": [0.1], "low": 0.1}}}, "choices stand alone; leave out low"),
        ({"space": {SP: {"low": -1.0, "high": 0.1}}}, "give a finite number >= 0"),
        (
            {"space": {"loss.sp.kind": {"choices": ["cosine", "sine"]}}},
            "space.loss.sp.kind: 'sine' is refused",
        ),
        ({"space": {"policy.lora.rank": {"low": 2, "high": 8}}}, "needs int: true"),
        ({"space": {"env.receptacles": {"choices": [4, 6]}}}, "set it under `base:`"),
        ({"space": {"seed": {"choices": [4, 6]}}}, "set it under `base:`"),
        ({"space": {SP: {"low": 0, "high": 1, "when": {"loss.sp.kind": "cosine"}}}}, "not in the space"),
        (
            {"space": {SP: {"low": 0, "high": 1, "when": {"optim.lr": 2}}, "optim.lr": {"choices": [0.1]}}},
            "'optim.lr' is never 2",
        ),
        ({"sampler": {"kind": "annealing"}}, "'sampler.kind' is 'annealing'"),
        ({"sampler": {"kind": "grid"}}, "a grid needs choices"),
        ({"objectives": ["success", "seconds"]}, "for two, use kind: nsga2"),
        (
            {
                "objectives": ["success", "seconds"],
                "sampler": {"kind": "nsga2"},
                "pruner": {"kind": "median"},
            },
            "needs a single objective",
        ),
        ({"objectives": []}, "give success, seconds, or both"),
        (
            {"sampler": {"kind": "grid"}, "space": {SP: {"choices": [0.1]}}, "enqueue": [{SP: 0.1}]},
            "a grid tries every setting; leave out enqueue",
        ),
        ({"trials": 0}, "trials is 0"),
        ({"seeds": [1, 1]}, "give different numbers"),
        ({"enqueue": [{SP: 0.9}]}, "which the space does not hold"),
        ({"enqueue": [{"loss.id.weight": 0.2}]}, "enqueue[0]: 'loss.id.weight' is not in the space"),
        ({"enqueue": [{SP: 0.2}, {SP: 0.3}], "trials": 1}, "enqueue holds 2 settings"),
    ],
)
def test_what_is_impossible_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigFault) as fault:
        loaded(tmp_path, **changes)
    assert said in str(fault.value)
    assert "sweep.yaml" in str(fault.value)


def test_a_sweep_takes_the_base_of_a_study_and_not_its_arms(tmp_path: Path) -> None:
    study = {"name": "st", "arms": {"a": {}}, "baseline": "a", "seeds": [3], "base": {"train.threads": 1}}
    study |= {"factors": {"f": {"b": {}}}, "more_seeds": {"a": [5]}, "jobs": 2}
    write_yaml(tmp_path / "study.yaml", study)
    settings = loaded(tmp_path, extends="study.yaml", base={"optim.lr": 0.01})
    assert settings.seeds == (3,)
    assert settings.config({}, 5).optim.lr == 0.01
    assert settings.base["train"] == {"threads": 1}


def test_the_committed_sweep_loads() -> None:
    settings = load_sweep(ROOT / "experiments" / "sweep_aux_weights.yaml")
    assert settings.name == "sweep_aux_weights"
    assert settings.trials == 20
    assert settings.enqueue[0][SP] == settings.enqueue[0]["loss.id.weight"] == 0.2
    assert settings.config({}, 0).train.iterations == 30


SPACE = Space(
    {
        "switch": Parameter(Range(0.25, 0.75, step=0.25), {"kind": ("switch",)}),
        "kind": Parameter(Choices(("cosine", "switch"))),
        "weight": Parameter(Range(0.001, 1.0, log=True)),
        "rank": Parameter(Range(2, 8, step=2, whole=True)),
    }
)


def test_suggestions_follow_conditions_steps_and_logarithms() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [SPACE.suggest(study.ask()) for _ in range(200)]
    assert all(("switch" in values) == (values["kind"] == "switch") for values in drawn)
    assert {values["switch"] for values in drawn if "switch" in values} == {0.25, 0.5, 0.75}
    assert {values["rank"] for values in drawn} == {2, 4, 6, 8}
    assert all(isinstance(values["rank"], int) for values in drawn)
    # On a logarithmic scale a third of the draws lies in each decade.
    small = sum(float(values["weight"]) < 0.01 for values in drawn)  # type: ignore[arg-type]
    assert 45 <= small <= 90


def test_a_condition_is_met_by_any_of_its_values() -> None:
    space = Space(
        {"a": Parameter(Choices((1, 2, 3))), "b": Parameter(Range(0, 1), {"a": (2, 3)})},
    )
    given = {"a": 3, "b": 0.5}
    assert space.suggest(FixedTrial(given)) == given
    assert space.suggest(FixedTrial({"a": 1})) == {"a": 1}


def test_conditions_in_a_circle_are_refused() -> None:
    with pytest.raises(ConfigFault, match="depend on each other"):
        Space(
            {
                "a": Parameter(Choices((1, 2)), {"b": (1,)}),
                "b": Parameter(Choices((1, 2)), {"a": (1,)}),
            }
        )


def settings(**changes: Any) -> SweepSettings:
    space = Space({SP: Parameter(Choices((0.1, 0.2)))})
    return SweepSettings(**({"name": "s", "space": space} | changes))


def test_samplers_and_pruners_take_optunas_options() -> None:
    from envrl.experiments.sweep_file import Method

    for kind in ("tpe", "gp", "random", "grid", "nsga2", "qmc"):
        assert sampler(settings(sampler=Method(kind, {"seed": 3})), 0) is not None
    for kind in ("none", "median", "hyperband", "asha"):
        assert pruner(settings(pruner=Method(kind))) is not None
    assert isinstance(pruner(settings(pruner=Method("wilcoxon", {"p_threshold": 0.2}))), PairedGames)
    with pytest.raises(ConfigFault, match="median has no option 'patience'; it has n_startup_trials"):
        pruner(settings(pruner=Method("median", {"patience": 3})))
    with pytest.raises(ConfigFault, match=r"sampler\.seed is -1"):
        sampler(settings(sampler=Method("random", {"seed": -1})), 0)


def test_a_grid_ends_when_it_is_used_up() -> None:
    from envrl.experiments.sweep_file import Method

    assert settings(sampler=Method("grid"), trials=50).most_trials == 2
    assert settings(trials=50).most_trials == 50
