"""Bad input: a sentence that names the value and the remedy, an exit code, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from envrl.envs.alfworld import games
from envrl.envs.alfworld.furnish import RoomSettings
from envrl.envs.alfworld.generate import generate_game
from envrl.experiments import ablate, compare, deliver, evaluate, sweep, train
from studies import call, tiny, write_study, write_yaml
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")

Main = Callable[[Sequence[str]], int]
COMMANDS: dict[str, Main] = {"train": train.main, "evaluate": evaluate.main, "ablate": ablate.main}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, so that ``mlruns`` would show up in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(command: str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must refuse its input; returns what it says."""
    code = COMMANDS[command](arguments)
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1, "one sentence, not a traceback"
    return said.err


def left_behind(folder: Path) -> list[str]:
    """What a command wrote beside the files a test put there."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".yaml")


SETTINGS: list[tuple[dict[str, Any], list[str]]] = [
    ({"evaluation.games": 0}, ["evaluation.games is 0", "at least 1"]),
    ({"evaluation.every": 0}, ["evaluation.every is 0", "at least 1"]),
    ({"evaluation.episodes": -1}, ["evaluation.episodes is -1", "0"]),
    ({"loss.sp.length": -3}, ["length is -3", ">= 0"]),
    ({"loss.id.length": 99}, ["loss.id.length is 99", "3 iterations"]),
    ({"loss.sp.weight": -1.0}, ["weight is -1.0", ">= 0"]),
    ({"loss.sp.kind": "sine"}, ["loss.sp.kind", "sine", "cosine"]),
    ({"loss.dual_clip": 0.5}, ["loss.dual_clip is 0.5", "above 1"]),
    ({"loss.clip_low": 2.0}, ["loss.clip_low is 2.0", "0 to 1"]),
    ({"loss.kl_coefficient": -1.0}, ["loss.kl_coefficient is -1.0"]),
    ({"optim.lr": 7.0}, ["optim.lr is 7.0", "3e-4"]),
    ({"optim.lr": None}, ["optim.lr is empty", "leave the key out"]),
    ({"loss.sp": None}, ["loss.sp is empty", "leave the key out"]),
    ({"optim.beta2": 1.0}, ["optim.beta2 is 1.0", "[0, 1)"]),
    ({"train.iterations": 0}, ["train.iterations is 0", "at least 1"]),
    ({"train.iterations": "many"}, ["train.iterations", "many"]),
    ({"train.accelerator": "tpu"}, ["train.accelerator", "tpu", "cpu"]),
    ({"train.transcripts": -1}, ["train.transcripts is -1", "0"]),
    ({"env.train_games": None}, ["env.train_games is null", "number"]),
    ({"env.train_games": 1}, ["env.train_games is 1", "rollout.games=2"]),
    ({"env.receptacles": 2}, ["receptacles=2", "4 or more"]),
    ({"env.task_types": ["juggle"]}, ["juggle", "pick_and_place_simple"]),
    ({"env.task_typos": ["juggle"]}, ["task_typos"]),
    ({"sampling.max_context": 4}, ["sampling.max_context is 4", "larger"]),
    ({"rollout.layout": "steps", "loss.sp.weight": 0.1}, ["sp_rows=policy", "sp_rows=questions"]),
    ({"policy.load_in_4bit": True, "policy.lora.enabled": False}, ["lora.enabled=true"]),
    ({"policy.model": "./nowhere"}, ["'./nowhere'", "hub id"]),
    (
        {"policy.model": "no-such-owner/no-such-model"},
        ["no-such-owner/no-such-model", "can't be loaded", "config.json is not in the cache", "HF_HOME"],
    ),
    ({"seed": -1}, ["seed is -1"]),
]


@pytest.mark.parametrize(("changes", "words"), SETTINGS, ids=[",".join(c) for c, _ in SETTINGS])
def test_train_refuses_impossible_settings(
    changes: dict[str, Any], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yaml(here / "run.yaml", tiny(checkpoint(), changes))
    said = refused("train", "--config", "run.yaml", capsys=capsys)
    assert [word for word in words if word not in said] == []
    assert left_behind(here) == []


@pytest.mark.parametrize(("changes", "words"), SETTINGS[::4], ids=[",".join(c) for c, _ in SETTINGS[::4]])
def test_an_arm_with_impossible_settings_is_named(
    changes: dict[str, Any], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found while the study is planned, before the other arm has cost any time."""
    write_study(here, checkpoint(), arms={"grpo": {}, "odd": changes})
    said = refused("ablate", "--study", "study.yaml", capsys=capsys)
    assert said.startswith("error: arm 'odd': ")
    assert [word for word in words if word not in said] == []
    assert left_behind(here) == []


WEBSHOP = {"env": {"name": "webshop", "webshop": {"products": 200, "test_goals": 20}}}
STUDIES: list[tuple[dict[str, Any], list[str]]] = [
    ({"baseline": "ppo"}, ["baseline 'ppo'", "grpo, both"]),
    ({"arms": {}}, ["no arms"]),
    ({"arms": ["grpo"]}, ["'arms'", "quick.yaml"]),
    ({"arms": {"grpo": 3}}, ["'arms.grpo' is 3"]),
    ({"arms": {"a/b": {}}, "baseline": "a/b"}, ["'a/b'", "folder"]),
    ({"arms": {"grpo": {}, "odd": {"loss.sq.weight": 1}}}, ["arm 'odd'", "sq"]),
    ({"arms": {"grpo": {}, "odd": {"evaluation.games": 5}}}, ["evaluation.games=5", "6", "base"]),
    ({"arms": {"grpo": {}, "odd": {"env.max_steps": 11}}}, ["env.max_steps=11", "10", "base"]),
    (
        {"base": WEBSHOP, "arms": {"grpo": {}, "odd": {"env.webshop.products": 300}}},
        ["env.webshop.products=300", "200", "base"],
    ),
    ({"name": "../up"}, ["'../up'", "letters"]),
    ({"name": 7}, ["'name' is 7"]),
    ({"seeds": [0, 0]}, ["[0, 0]", "different"]),
    ({"seeds": "all"}, ["'seeds' is 'all'"]),
    ({"seeds": [-1]}, ["[-1]", ">= 0"]),
    ({"base": {"seed": 3}}, ["base: seed is 3", "`seeds` of the study"]),
    ({"arms": {"grpo": {}, "odd": {"seed": 3}}}, ["arm 'odd': seed is 3", "more_seeds"]),
    ({"jobs": 0}, ["jobs is 0", "at least 1"]),
    ({"jobs": "two"}, ["'jobs' is 'two'"]),
    ({"arm": {}}, ["unknown key 'arm'", "arms"]),
]


@pytest.mark.parametrize(("changes", "words"), STUDIES, ids=[str(c) for c, _ in STUDIES])
def test_a_broken_study_file_is_refused(
    changes: dict[str, Any], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(here, checkpoint(), **changes)
    said = refused("ablate", "--study", "study.yaml", capsys=capsys)
    assert [word for word in words if word not in said] == []
    assert left_behind(here) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["'study.yaml' can't be read", "No such file", "quick.yaml"]),
        ("name: [", ["'study.yaml' is not YAML"]),
        ("just words", ["holds no mapping"]),
        ("name: x\narms: {a: {}}\n", ["'baseline' is missing"]),
        ("extends: study.yaml\nname: x\n", ["'study.yaml' extends itself", "circle"]),
        ("extends: [a, b]\n", ["'extends' is ['a', 'b']", "one study file"]),
        ("extends: nowhere.yaml\n", ["nowhere.yaml' can't be read", "No such file"]),
    ],
)
def test_a_file_that_is_no_study_is_refused(
    text: str | None, words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (here / "study.yaml").write_text(text)
    said = refused("ablate", "--study", "study.yaml", capsys=capsys)
    assert [word for word in words if word not in said] == []
    assert left_behind(here) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--arms", "grpo,ppo"], ["unknown arm 'ppo'", "grpo, both"]),
        (["--seeds", "0,x"], ["--seeds 0,x", "whole numbers"]),
        (["--jobs", "0"], ["jobs is 0"]),
        (["--name", "a b"], ["'a b'", "letters"]),
        (["--set", "train.iteration=3"], ["iteration"]),
        (["--set", "train.iterations"], ["KEY=VALUE"]),
    ],
)
def test_ablate_refuses_wrong_options(
    options: list[str], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(here, checkpoint())
    said = refused("ablate", "--study", "study.yaml", *options, capsys=capsys)
    assert [word for word in words if word not in said] == []
    assert left_behind(here) == []


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("train", ["--lossy.sp.weight=1"], ["lossy"]),
        ("train", ["--loss.sp.weigth=1"], ["weigth"]),
        ("train", ["--config", "absent.yaml"], ["absent.yaml"]),
        ("train", ["--name", "a/b"], ["'a/b'", "letters"]),
        ("evaluate", ["--games", "0"], ["evaluation.games is 0"]),
        ("evaluate", ["--run", "absent"], ["'absent' is no folder of a trained run", "config.yaml"]),
        ("evaluate", ["--split", "test", "--games", "6"], ["test"]),
    ],
)
def test_commands_refuse_wrong_options(
    command: str, options: list[str], words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(command, *options, capsys=capsys)
    assert [word for word in words if word not in said] == []
    assert left_behind(here) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "ablate"])
def test_official_games_need_their_folder(
    command: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    official = tiny(checkpoint(), {"env.games": "official"})
    write_yaml(here / "run.yaml", official)
    write_study(here, checkpoint(), base=official)
    options = ("--study", "study.yaml") if command == "ablate" else ("--config", "run.yaml")
    assert "ALFWORLD_DATA is not set" in refused(command, *options, capsys=capsys)
    monkeypatch.setenv("ALFWORLD_DATA", str(here / "nothing"))
    assert "not a folder" in refused(command, *options, capsys=capsys)
    assert left_behind(here) == []


def official_game(folder: Path, content: str) -> None:
    """Puts one game file where ``alfworld-download`` would."""
    for split in ("train", "valid_seen"):
        trial = folder / "json_2.1.1" / split / "pick_and_place_simple-Mug-None-Desk-301" / "trial_T1"
        trial.mkdir(parents=True)
        (trial / "traj_data.json").write_text("{}")
        (trial / "game.tw-pddl").write_text(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["game.tw-pddl as JSON", "fetch the file again"]),
        (json.dumps({"solvable": True}), ["no text field 'pddl_domain'", "ALFWorld 0.4"]),
    ],
)
def test_a_broken_game_file_is_named(
    content: str,
    words: list[str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = tmp_path_factory.mktemp("data")
    official_game(data, content)
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    write_yaml(here / "run.yaml", tiny(checkpoint(), {"env.games": "official"}))
    for command in ("train", "evaluate"):
        said = refused(command, "--config", "run.yaml", capsys=capsys)
        assert [word for word in words if word not in said] == []
    assert left_behind(here) == []


def test_a_game_of_an_unknown_grammar_is_refused(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """It loads, so it would otherwise be found out while playing, as a fault of every episode."""
    data = tmp_path_factory.mktemp("data")
    content = generate_game(RoomSettings(receptacles=6, max_steps=20), 0, "valid_seen")
    assert "move {o} to {r}" in content["grammar"]
    content["grammar"] = content["grammar"].replace("move {o} to {r}", "drop {o} at {r}")
    official_game(data, json.dumps(content))
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    monkeypatch.setattr(games, "OFFICIAL_COUNTS", {"train": 1, "valid_seen": 1})
    write_yaml(here / "run.yaml", tiny(checkpoint(), {"env.games": "official"}))
    for command in ("train", "evaluate"):
        said = refused(command, "--config", "run.yaml", capsys=capsys)
        assert "game.tw-pddl" in said
        assert "'drop {o} at {r}'" in said
        assert "known versions" in said
    assert left_behind(here) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, ["config.json", "save_pretrained"]),
        ({"config.json": "{", "model.safetensors": ""}, ["can't be loaded"]),
        ({"config.json": '{"model_type": "qwen2"}'}, ["no weights", "save_pretrained"]),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    content: dict[str, str],
    words: list[str],
    here: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = tmp_path_factory.mktemp("model")
    for name, text in content.items():
        (model / name).write_text(text)
    write_yaml(here / "run.yaml", tiny(model))
    write_study(here, model)
    for command, option in (("train", "--config=run.yaml"), ("ablate", "--study=study.yaml")):
        said = refused(command, option, capsys=capsys)
        assert [word for word in [str(model), *words] if word not in said] == []
    assert left_behind(here) == []


def test_adapters_that_fit_no_layer_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yaml(here / "run.yaml", tiny(checkpoint(), {"policy.lora.targets": "knee_proj"}))
    said = refused("evaluate", "--config", "run.yaml", capsys=capsys)
    assert "knee_proj" in said
    assert "all-linear" in said


@pytest.mark.parametrize("option", ["load_in_4bit", "load_in_8bit"])
def test_quantisation_without_support_is_refused(
    option: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes.functional as bnb

    def unsupported(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for this device\nstack of C++ frames")

    for name in ("quantize_4bit", "int8_vectorwise_quant"):
        monkeypatch.setattr(bnb, name, unsupported)
    quantised = tiny(checkpoint(), {f"policy.{option}": True})
    write_yaml(here / "run.yaml", quantised)
    write_study(here, checkpoint(), base=quantised)
    for command, file in (
        ("train", "--config=run.yaml"),
        ("evaluate", "--config=run.yaml"),
        ("ablate", "--study=study.yaml"),
    ):
        said = refused(command, file, capsys=capsys)
        assert f"policy.{option}=false" in said
        assert "no kernel for this device" in said
    assert left_behind(here) == []


def test_an_eight_bit_optimiser_without_support_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes.optim

    def unsupported(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(bitsandbytes.optim, "AdamW8bit", unsupported)
    write_yaml(here / "run.yaml", tiny(checkpoint(), {"optim.eight_bit": True}))
    said = refused("train", "--config", "run.yaml", capsys=capsys)
    assert "optim.eight_bit=false" in said
    assert left_behind(here) == []


def test_a_gpu_that_is_not_there_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    write_yaml(here / "run.yaml", tiny(checkpoint(), {"train.accelerator": "gpu"}))
    assert "train.accelerator is gpu" in refused("train", "--config", "run.yaml", capsys=capsys)
    assert left_behind(here) == []


@pytest.mark.parametrize("command", ["train", "ablate"])
def test_a_root_that_cannot_be_written_is_refused(
    command: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where the folder should be: it stops the superuser too, which permissions don't."""
    (here / "taken.yaml").write_text("")
    write_yaml(here / "run.yaml", tiny(checkpoint()))
    write_study(here, checkpoint())
    option = "--study=study.yaml" if command == "ablate" else "--config=run.yaml"
    said = refused_after_some_output(command, option, "--root", "taken.yaml", capsys=capsys)
    assert "taken.yaml can't be written" in said
    assert "choose another folder" in said
    assert left_behind(here) == []


def refused_after_some_output(command: str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert COMMANDS[command](arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_real_processes_print_no_traceback(tmp_path: Path) -> None:
    write_study(tmp_path, checkpoint(), baseline="ppo")
    done = call("ablate", "--study", tmp_path / "study.yaml", "--root", tmp_path / "mlruns")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: baseline 'ppo' is not an arm; choose one of grpo, both\n"
    done = call("train", "--loss.sp.length=-1", "--root", tmp_path / "mlruns")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: The schedule's length is -1")
    assert "Traceback" not in done.stderr
    assert left_behind(tmp_path) == []


def test_a_finished_run_is_not_continued_under_other_settings(
    finished: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*") if p.is_file()}
    content = yaml.safe_load(finished.file.read_text())
    content["base"]["optim"] = {"lr": 0.002}
    file = write_yaml(tmp_path / "study.yaml", content)
    said = refused("ablate", "--study", str(file), "--root", str(finished.root), capsys=capsys)
    assert "optim.lr: was 0.0003, is 0.002" in said
    assert "--name" in said
    assert {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("main", "options", "misspelt"),
    [
        (ablate.main, ["--arm", "grpo"], "--arm"),
        (compare.main, ["a", "b", "--arm", "grpo"], "--arm"),
        (sweep.main, ["--study", "sweep.yaml", "--trial", "3"], "--trial"),
        (deliver.main, ["--ur", "x"], "--ur"),
    ],
)
def test_a_misspelt_option_is_not_taken_for_the_one_it_begins_like(
    main: Callable[[Sequence[str]], int],
    options: list[str],
    misspelt: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        main(options)
    assert left.value.code == 2
    assert f"unrecognized arguments: {misspelt}" in capsys.readouterr().err
    assert left_behind(here) == []
