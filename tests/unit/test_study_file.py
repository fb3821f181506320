"""Study files: factors are crossed, arms may have seeds of their own, and nothing wins silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envrl.errors import ConfigFault
from envrl.experiments.study import plan_study
from envrl.experiments.study_file import StudySettings, crossed, load_study
from studies import write_yaml

ALGORITHMS = {"grpo": {}, "gigpo": {"loss.algorithm": "gigpo"}}
OBJECTIVES = {"none": None, "sp": {"loss.sp.weight": 0.1}, "id": {"loss": {"id": {"weight": 0.2}}}}


def loaded(folder: Path, **content: Any) -> StudySettings:
    return load_study(write_yaml(folder / "study.yaml", {"name": "s", "baseline": "grpo"} | content))


def test_every_combination_of_levels_is_an_arm(tmp_path: Path) -> None:
    study = loaded(tmp_path, factors={"algorithm": ALGORITHMS, "objective": OBJECTIVES})
    assert list(study.arms) == ["grpo", "grpo+sp", "grpo+id", "gigpo", "gigpo+sp", "gigpo+id"]
    configs = {run.arm: run.config for run in plan_study(study, tmp_path).runs}
    assert configs["gigpo+id"].loss.algorithm == "gigpo"
    assert configs["gigpo+id"].loss.id.weight == 0.2
    assert configs["gigpo+id"].loss.sp.weight == 0.0
    assert configs["grpo+sp"].loss.algorithm == "grpo"


def test_arms_may_stand_beside_factors(tmp_path: Path) -> None:
    study = loaded(tmp_path, arms={"slow": {"optim.lr": 1e-5}}, factors={"algorithm": ALGORITHMS})
    assert list(study.arms) == ["slow", "grpo", "gigpo"]
    with pytest.raises(ConfigFault, match="'grpo' is an arm and a combination of factors"):
        loaded(tmp_path, arms={"grpo": {}}, factors={"algorithm": ALGORITHMS})


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [
        ({"loss.sp.weight": 0.1}, {"loss": {"sp": {"weight": 0.3}}}, "loss.sp.weight"),
        ({"loss.objectives": []}, {"loss.objectives": [{"use": "echo"}]}, "loss.objectives"),
        ({"loss.sp": None}, {"loss.sp.weight": 0.1}, "loss.sp"),
    ],
)
def test_two_factors_can_not_change_one_key(first: Any, second: Any, key: str) -> None:
    with pytest.raises(ConfigFault, match=rf"'one' and 'two' both change {key}, "):
        crossed({"one": {"a": first}, "two": {"b": second}})


def test_keys_that_only_begin_alike_are_two_keys() -> None:
    arms = crossed({"one": {"a": {"rollout.games": 4}}, "two": {"b": {"rollout.games_seed": 1}}})
    assert arms == {"a+b": {"rollout": {"games": 4, "games_seed": 1}}}


def test_combinations_need_names_of_their_own() -> None:
    with pytest.raises(ConfigFault, match=r"called 'a\+b'"):
        crossed({"one": {"a": {}, "a+b": {}}, "two": {"b": {}, "none": {}}})
    with pytest.raises(ConfigFault, match="'one' has no levels"):
        crossed({"one": {}})


def test_single_arms_run_with_more_seeds(tmp_path: Path) -> None:
    study = loaded(tmp_path, arms=ALGORITHMS, seeds=[0, 1], more_seeds={"grpo": [3, 2], "gigpo": [3]})
    assert study.runs == (
        ("grpo", 0), ("gigpo", 0), ("grpo", 1), ("gigpo", 1), ("grpo", 2), ("grpo", 3), ("gigpo", 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ppo": [2]}, "more_seeds names 'ppo'"),
        ({"grpo": [1]}, "not among the seeds"),
        ({"grpo": [2, 2]}, "once each"),
        ({"grpo": [-1]}, "numbers >= 0"),
    ],
)
def test_impossible_seeds_are_refused(tmp_path: Path, more: dict[str, list[int]], said: str) -> None:
    with pytest.raises(ConfigFault, match=said):
        loaded(tmp_path, arms=ALGORITHMS, seeds=[0, 1], more_seeds=more)


def test_arms_of_its_own_replace_the_factors_of_an_extended_file(tmp_path: Path) -> None:
    parent = {
        "name": "p",
        "baseline": "grpo",
        "factors": {"algorithm": ALGORITHMS},
        "more_seeds": {"grpo": [5]},
    }
    write_yaml(tmp_path / "parent.yaml", parent)
    kept = loaded(tmp_path, extends="parent.yaml")
    assert (list(kept.arms), kept.more_seeds) == (["grpo", "gigpo"], {"grpo": (5,)})
    own = loaded(tmp_path, extends="parent.yaml", arms={"grpo": {}, "x": {}})
    assert (list(own.arms), own.more_seeds) == (["grpo", "x"], {})
