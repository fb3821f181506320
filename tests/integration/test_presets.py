"""The presets of the published and of the clean protocol: held against the table, and run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.plain import as_plain
from envrl.experiments.run import build, execute_run
from envrl.experiments.run_place import RunPlace
from envrl.experiments.study_file import StudySettings, load_study
from envrl.tracking.store import open_store
from studies import write_yaml
from support import chat_checkpoint

FOLDER = Path(__file__).parents[2] / "experiments"
PRESETS = sorted(p.stem for p in FOLDER.glob("*_*_*b_*.yaml"))
COLUMNS = ("alfworld_1.5b", "webshop_1.5b", "alfworld_7b", "webshop_7b")


@cache
def study(name: str) -> StudySettings:
    return load_study(FOLDER / f"{name}.yaml")


def configs(name: str) -> dict[str, RunConfig]:
    return {arm: config_from(study(name).base, changes) for arm, changes in study(name).arms.items()}


def table() -> dict[str, tuple[Any, ...]]:
    """Settings of the index's table by name, a value for each column."""
    text = (FOLDER / "PAPER_INDEX.md").read_text(encoding="utf-8")
    section = text[text.index("## Presets") : text.index("## Embedded scale")]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {r[0].strip("`"): tuple(map(yaml.safe_load, r[1:5])) for r in rows if len(r) == 6}


def value_of(config: RunConfig, name: str) -> Any:
    found: Any = as_plain(config)
    for part in name.split("."):
        found = found[part]
    return found


def test_there_is_a_preset_for_everything() -> None:
    expected = {f"{p}_{c}_{a}" for p in ("paper", "clean") for c in COLUMNS for a in ("grpo", "gigpo")}
    assert set(PRESETS) == expected
    assert all(study(name).name == name for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_the_index_says(name: str) -> None:
    protocol, column, algorithm = re.fullmatch(r"(\w+?)_(\w+_[\d.]+b)_(\w+)", name).groups()  # type: ignore[union-attr]
    place = COLUMNS.index(column)
    settings, made = table(), configs(name)
    assert len(settings) > 30
    for config in made.values():
        for setting, values in settings.items():
            expected = values[place]
            if (setting, protocol) == ("evaluation.games", "clean"):
                expected = 500 if "webshop" in column else 140
            assert value_of(config, setting) == expected, setting
        webshop = "webshop" in column
        assert config.env.name == column.split("_")[0]
        assert config.env.webshop.order == ("workers" if webshop and protocol == "paper" else "fixed")
        assert config.loss.algorithm == algorithm
        assert config.loss.scale_by_std is not (webshop and algorithm == "gigpo")
    weight = 0.1 if "7b" in column else 0.2
    weights = {arm: (c.loss.sp.weight, c.loss.id.weight) for arm, c in made.items()}
    assert weights[algorithm] == (0.0, 0.0)
    assert weights[f"{algorithm}+envrl"] == (weight, weight)
    assert made[f"{algorithm}+envrl"].loss.sp.kind == "cosine"
    assert study(name).baseline == algorithm
    assert len(study(name).seeds) == (3 if protocol == "paper" else 5)
    shuffled = [arm for arm, config in made.items() if config.auxiliary.shuffle_targets]
    assert shuffled == ([f"{algorithm}+envrl-shuffled"] if protocol == "clean" else [])


SMALL: Mapping[str, Any] = {
    "env": {"games": "generated", "max_steps": 3},
    "rollout": {"games": 2, "episodes_per_game": 2},
    "sampling": {"max_new_tokens": 24},
    "batch": {"updates": 2, "micro_batches": 1},
    "policy.lora": {"rank": 2, "alpha": 2},
    "train": {"iterations": 2, "precision": "32-true", "transcripts": 1, "threads": 1},
    "evaluation": {"games": 2, "every": 2, "dynamics": 3},
}
"""What a test can wait for; everything else is the preset's."""


def small(name: str) -> RunConfig:
    """The preset's arm with EnvRL's losses, with a small chat model in place of the hub's."""
    arm = study(name).baseline + "+envrl"
    if "alfworld" in name:
        games = {"env.train_games": 4, "env.receptacles": 5}
    else:
        games = {"env.webshop.catalogue": "small", "env.webshop.products": 250}
    model = {"policy.model": str(chat_checkpoint()), "policy.dtype": "float32"}
    return config_from(study(name).base, study(name).arms[arm], SMALL, games, model)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_with_a_small_chat_model(name: str, tmp_path: Path) -> None:
    config, store = small(name), open_store(tmp_path)
    record = execute_run(config, RunPlace(tmp_path / name, name, "envrl", store))
    assert record.status == "finished"
    assert [e.iteration for e in record.evaluations] == [0, 2]
    assert len(record.training_success) == 2
    assert set(record.evaluations[-1].dynamics) >= {"dynamics/sp_ce", "dynamics/id_exact_match"}
    written = next((tmp_path / name).rglob("config.yaml")).read_text()
    assert yaml.safe_load(written)["prompt"]["form"] == "reasoned"


@pytest.mark.parametrize("name", ["paper_alfworld_1.5b_grpo", "paper_webshop_7b_gigpo"])
def test_a_presets_prompts_are_chats_that_ask_for_thoughts_and_an_action(name: str) -> None:
    parts = build(small(name))
    with parts.pool:
        groups = parts.source.collect(0, 0).groups
    tokenizer = parts.policy.chat.tokenizer
    steps = groups[0].trajectories[0].transitions
    first, later = (tokenizer.decode(list(s.generation.prompt_ids)) for s in (steps[0], steps[-1]))
    for text in (first, later):
        assert text.startswith("<|im_start|>system\n")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert "inside <think> </think> tags" in text
        assert "Admissible actions now: ['" in text
        assert "Your task is to: " in text
    assert "Steps taken so far" not in first
    assert "Steps taken so far: 2. The last 2 observations" in later


def test_a_file_that_extends_another_changes_what_it_names(tmp_path: Path) -> None:
    parent = {"name": "a", "baseline": "x", "seeds": [3], "base": {"optim": {"lr": 0.1}}, "arms": {"x": None}}
    write_yaml(tmp_path / "a.yaml", parent)
    child = {"extends": "a.yaml", "name": "b", "base": {"optim.weight_decay": 0.5}}
    found = load_study(write_yaml(tmp_path / "b.yaml", child))
    assert (found.name, found.baseline, found.seeds) == ("b", "x", (3,))
    assert found.base == {"optim": {"lr": 0.1, "weight_decay": 0.5}}
