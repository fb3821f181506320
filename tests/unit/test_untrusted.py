"""Input from strangers: what is hostile ends in a sentence, quickly, and executes nothing."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from envrl.analysis import episodes, predictions
from envrl.envs.alfworld.engine import load_game
from envrl.envs.alfworld.games import read_game
from envrl.envs.alfworld.grammar import parse_expression, parse_symbols
from envrl.envs.webshop import files, goals
from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.reading import read_wish
from envrl.errors import ConfigFault, DataFault, PolicyFault
from envrl.experiments import train
from envrl.experiments.config import config_from
from envrl.experiments.console import guarded
from envrl.experiments.own_games import own_environment
from envrl.experiments.plain import nested, read_yaml
from envrl.experiments.resume import completed_iterations, read_checkpoint
from envrl.experiments.study_file import load_study, require_folder_name
from envrl.policy.settings import PolicySettings
from envrl.prompts.parse import parse_action
from envrl.tracking import journal as journals
from envrl.tracking.journal import Journal, Owner, journal_path
from envrl.training.objectives.registry import load_objective
from envrl.training.settings import ObjectiveSettings
from envrl.types import Game
from envrl.untrusted import parse_json, printable, read_bytes, shown, unpack
from fuzz.results import torch_archive
from fuzz.targets import TARGETS
from support import checkpoint
from unit.alfworld_tiny import tiny_game
from unit.webshop_data import raw_product, write_shop

BRIEF = 5.0
"""Bound, in seconds on a busy machine, of what took minutes or for ever."""


# Files


def test_a_device_a_pipe_and_a_large_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="/dev/zero is no regular file"):
        read_bytes(Path("/dev/zero"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DataFault, match="pipe is no regular file"):
        read_bytes(pipe)
    path = tmp_path / "large"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(DataFault, match="more than 4 bytes"):
        read_bytes(path, 4)


def test_a_name_with_a_nul_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="null"):
        read_bytes(tmp_path / "a\0b")
    with pytest.raises(DataFault, match="can't be read"):
        load_game("a\0b")
    (tmp_path / "study.yaml").write_text('extends: "a\\0b"')
    with pytest.raises(ConfigFault, match="null byte"):
        load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize("text", ["[" * 100_000, '"\\ud800"', b"\xff", b'"\xed\xa0\x80"', "9" * 5000])
def test_json_beyond_reason_is_no_json(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_what_is_packed_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(b"0" * 2_000_000)
    assert len(unpack(bomb, 2_000_000)) == 2_000_000
    with pytest.raises(ValueError, match="more than 1999999 bytes"):
        unpack(bomb, 1_999_999)
    monkeypatch.setattr(predictions, "_LARGEST", 1000)
    path = tmp_path / "predictions.json.gz"
    for content in (bomb, bomb[:50], gzip.compress(b"{}")[:-9] + b"12345678"):
        path.write_bytes(content)
        with pytest.raises(DataFault, match=r"predictions\.json\.gz can't be read"):
            predictions.read_predictions(path)
    monkeypatch.setattr(episodes, "_LARGEST_FILE", 1_000_000)
    kept = episodes.episodes_path(tmp_path, 0)
    kept.parent.mkdir()
    kept.write_bytes(bomb)
    with pytest.raises(DataFault, match="more than 1000000 bytes"):
        list(episodes.read_episodes(tmp_path))


def test_a_value_is_shown_however_deep_or_long_it_is() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a list that can't be shown"
    assert shown(10**5000) == "a int that can't be shown"
    assert shown("x" * 100) == "'" + "x" * 79


# Configurations

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
HOSTILE_YAML = {
    "a bomb of aliases": BOMB,
    "an alias within itself": "a: &a [*a]",
    "a deep one": "a: " + "[" * 3000,
    "too deep for settings": "a: " + "{b: " * 30 + "1" + "}" * 30,
    "a month 13": "a: 2001-13-01",
    "a number without digits": "a: 0x_",
    "an empty number": "a: !!int ''",
    "no timestamp": "a: !!timestamp x",
    "an object": "a: !!python/object/apply:os.system [exit 3]",
    "a name": "a: !!python/name:os.system",
    "more digits than Python reads": "a: " + "9" * 5000,
    "a list as a key": "? [1]\n: 2",
    "a deep list of dashes": "- " * 30_000,
}


@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_hostile_yaml_is_refused_by_every_reader(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(HOSTILE_YAML[kind])
    begun = time.monotonic()
    with pytest.raises(yaml.YAMLError):
        read_yaml(HOSTILE_YAML[kind])
    with pytest.raises(ConfigFault, match=r"study\.yaml"):
        load_study(path)
    assert time.monotonic() - begun < BRIEF
    assert train.main(["--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_aliases_within_reason_are_written_out() -> None:
    assert read_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }


def test_a_key_of_a_thousand_parts_is_refused() -> None:
    with pytest.raises(ConfigFault, match="2000 parts"):
        nested({"a." * 1999 + "a": 1})
    with pytest.raises(ConfigFault, match="2000 parts"):
        config_from({"a." * 1999 + "a": 1})


@settings(max_examples=300)
@given(st.text(max_size=12) | st.text("./\\~ \n\0ab", max_size=6))
def test_a_name_that_is_accepted_stays_in_its_folder(name: str) -> None:
    try:
        require_folder_name(name)
    except ConfigFault:
        return
    folder = Path("/studies")
    assert Path(os.path.normpath(folder / name)).parent == folder


@pytest.mark.parametrize("module", ["antigravity", "os", "http.server"])
def test_a_module_of_pythons_own_is_no_environment_and_no_objective(module: str) -> None:
    with pytest.raises(ConfigFault, match="Python's own"):
        own_environment(f"{module}:system")
    with pytest.raises(ConfigFault, match="Python's own"):
        load_objective(ObjectiveSettings(use=f"{module}:system"))


# Terminals


@given(st.text())
def test_nothing_in_a_message_moves_the_cursor(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


def test_an_error_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise DataFault("game '\x1b[2J\r\nok' is broken")

    assert guarded(fail) == 2
    assert capsys.readouterr().err == "error: game '\\x1b[2J\\r\\nok' is broken\n"


# Games


def refused_game(**changes: str) -> str:
    begun = time.monotonic()
    with pytest.raises(DataFault) as caught:
        load_game(tiny_game() | changes)
    assert time.monotonic() - begun < BRIEF
    return str(caught.value)


def test_a_goal_of_countless_alternatives_is_refused() -> None:
    choice = "(or (isHot Mug_bar_a) (isCool Mug_bar_a))"
    problem = tiny_game(goal=f"(and {choice * 40})")["pddl_problem"]
    assert "more than 1000 alternatives" in refused_game(pddl_problem=problem)


def test_a_goal_that_multiplies_all_objects_is_refused() -> None:
    # Eleven variables over six objects are 362 million answers.
    variables = " ".join(f"?v{n} - object" for n in range(11))
    literals = "".join(f"(pickupable ?v{n})" for n in range(11))
    problem = tiny_game(goal=f"(exists ({variables}) (and {literals}))")["pddl_problem"]
    assert "11 of them unrelated" in refused_game(pddl_problem=problem)


def test_parentheses_without_end_are_refused() -> None:
    assert "malformed" in refused_game(
        pddl_problem=tiny_game(goal="(and " * 5000 + ")" * 5000)["pddl_problem"]
    )


@pytest.mark.parametrize("text", ["-" * 400, "(" * 400, "a\0", "o" + ".name" * 4000, "not " * 100 + "o"])
def test_an_expression_never_ends_the_process(text: str) -> None:
    with pytest.raises(DataFault, match="grammar expression"):
        parse_expression(text)


def test_a_text_is_split_in_linear_time() -> None:
    begun = time.monotonic()
    assert parse_symbols("{" + " " * 200_000) == ()
    assert parse_symbols("{o" + " " * 200_000) == ()
    assert len(parse_symbols("{o.name  }")) == 1
    assert time.monotonic() - begun < BRIEF


def test_half_a_character_is_no_game(tmp_path: Path) -> None:
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps(tiny_game(task="heat a \ud800") | {"task_type": "pick_and_place_simple"}))
    with pytest.raises(DataFault, match=r"game\.tw-pddl"):
        read_game(path, "test")
    with pytest.raises(DataFault, match="is not JSON"):
        load_game(path)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(max_size=60) | st.sampled_from(["go to countertop 1", "take mug 1 from countertop 1"]))
)
def test_alfworld_takes_any_command(tmp_path_factory: pytest.TempPathFactory, commands: list[str]) -> None:
    from envrl.envs.alfworld.engine import AlfworldEnv

    path = tmp_path_factory.getbasetemp() / "any.tw-pddl"
    path.write_text(json.dumps(tiny_game()))
    env = AlfworldEnv()
    env.reset(Game("g", "alfworld", "test", "f", str(path), 1000), 0)
    for command in commands:
        result = env.step(command)
        assert result.observation.text
        if result.terminated:
            break


# Shops


def shop(folder: Path, **changes: Any) -> Any:
    return load_catalog(*write_shop(folder, [raw_product(**changes)]), rng=random.Random(0))


def test_a_number_on_which_the_parser_dies_is_refused_before(tmp_path: Path) -> None:
    items, about = write_shop(tmp_path, [raw_product()])
    items.write_text('[{"asin": ' + "9" * 5000 + "}]")
    with pytest.raises(DataFault, match="more than 1000 digits"):
        next(files.read_products(items))
    # Over the border of two reads.
    items.write_text(" " * (files._READ_BYTES - 2000) + "[" + "9" * 3000 + "]")
    with pytest.raises(DataFault, match="more than 1000 digits"):
        next(files.read_products(items))
    about.write_text('{"a": ' + "9" * 5000 + "}")
    with pytest.raises(DataFault, match="more than 1000 digits"):
        next(files.read_entries(about))


def test_an_entry_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LARGEST_ENTRY", 3 * files._READ_BYTES)
    items, _ = write_shop(tmp_path, [raw_product(name="x" * files._READ_BYTES) for _ in range(9)])
    assert len(list(files.read_products(items))) == 9
    write_shop(tmp_path, [raw_product(name="x" * 4 * files._READ_BYTES)])
    with pytest.raises(DataFault, match="an entry of more than"):
        list(files.read_products(items))


@pytest.mark.parametrize("pricing", ["$" + "9" * 400, "$1$" + "9" * 400])
def test_an_infinite_price_is_refused(tmp_path: Path, pricing: str) -> None:
    with pytest.raises(DataFault, match="too large"):
        shop(tmp_path, pricing=pricing)


@pytest.mark.parametrize(
    "key", ["asin", "name", "images", "small_description", "pricing", "customization_options"]
)
def test_a_value_nested_without_end_is_refused(tmp_path: Path, key: str) -> None:
    items, about = write_shop(tmp_path, [raw_product()])
    entry = raw_product()
    entry[key] = "DEEP"
    items.write_text(json.dumps([entry]).replace('"DEEP"', "[" * 5000 + "]" * 5000))
    with pytest.raises(DataFault, match=f"{key}' holds"):
        load_catalog(items, about, rng=random.Random(0))


def test_options_with_countless_combinations_are_refused(tmp_path: Path) -> None:
    many = {f"group {n}": [{"value": f"v{i}"} for i in range(10)] for n in range(12)}
    with pytest.raises(DataFault, match="1000000000000 combinations"):
        goals.synthetic_goals(shop(tmp_path, customization_options=many), random.Random(0))


def test_a_price_that_is_no_number_is_no_limit() -> None:
    assert read_wish("find me oak, and price lower than 1.2.3 dollars").price_limit == float("inf")
    assert read_wish("find me oak, and price lower than 40.00 dollars").price_limit == 40.0


# What models write

_PUBLISHED = re.compile(r"<action>(.*?)</action>", re.DOTALL)


@given(
    st.lists(
        st.sampled_from(["<action>", "</action>", "<think>", "a", " ", "\n", "<ACTION>"])
        | st.text(max_size=3)
    )
)
def test_actions_are_found_as_by_the_published_expression(parts: list[str]) -> None:
    text = "".join(parts)
    found = _PUBLISHED.search(text.lower())
    expected = (found[1] if found else text.lower()[-30:]).strip() or None
    assert parse_action(text, "reasoned").action == expected


def test_a_start_tag_repeated_without_end_costs_no_time() -> None:
    begun = time.monotonic()
    parse_action("<action>" * 200_000, "reasoned")
    assert time.monotonic() - begun < BRIEF


@pytest.mark.parametrize("choice", [[10**400, 7], [-1, 7], [2**40, 7]])
def test_a_server_that_counts_beyond_reason_is_refused(tmp_path: Path, choice: list[int]) -> None:
    run = TARGETS["server_answer"].make(tmp_path)
    answer = {"choices": [{"token_ids": choice, "logprobs": {"token_logprobs": [-1.0, -1.0]}}]}
    with pytest.raises(PolicyFault, match="without token ids"):
        run(b"d" + json.dumps(answer).encode())
    answer["choices"][0] |= {"token_ids": [5, 7], "logprobs": {"token_logprobs": [-(10**400), -1]}}
    with pytest.raises(PolicyFault, match="as a log-probability"):
        run(b"d" + json.dumps(answer).encode())


# Checkpoints and models


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "executed"))


def test_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    content = pickle.dumps({"state_dict": {}, "loops": Hostile(sign)}, protocol=2)
    pickle.loads(content)
    assert sign.read_text() == "executed", "the pickle does what it shall not do"
    sign.unlink()
    for stored in (torch_archive(content), content):
        (tmp_path / "last.ckpt").write_bytes(stored)
        with pytest.raises(DataFault, match="is broken"):
            read_checkpoint(tmp_path / "last.ckpt")
    assert not sign.exists()


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    seed = TARGETS["checkpoint"].seeds()[2][1:]
    path.write_bytes(seed)
    assert completed_iterations(read_checkpoint(path)) == 2
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(tmp_path / "new", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    (tmp_path / "new").replace(path)
    with pytest.raises(DataFault, match="is broken"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{"state_dict": [1]}, {"state_dict": {"w": 3}}, {"state_dict": {}, "loops": 1}]
)
def test_a_checkpoint_of_another_form_is_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / "last.ckpt").write_bytes(torch_archive(pickle.dumps(content, protocol=2)))
    with pytest.raises(DataFault, match="is broken"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_model_of_pickles_and_code_is_refused(tmp_path: Path) -> None:
    from envrl.policy.model import check_policy, load_policy
    from envrl.policy.reading import UNTRUSTED

    assert UNTRUSTED == {"use_safetensors": True, "trust_remote_code": False}
    sign = tmp_path / "sign"
    model = tmp_path / "model"
    model.mkdir()
    for path in checkpoint().iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(f"open({str(sign)!r}, 'w').close()\nclass C: pass\nclass M: pass\n")
    for load in (check_policy, load_policy):
        with pytest.raises(PolicyFault, match="can't be loaded"):
            load(PolicySettings(model=str(model)))
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(sign)))
    with pytest.raises(PolicyFault, match="no weights in safetensors format"):
        load_policy(PolicySettings(model=str(model)))
    assert not sign.exists()


# Journals of what MLflow has not taken yet


def left_journal(folder: Path, *lines: bytes) -> Path:
    path = journal_path(folder, "r")
    path.write_bytes(b"\n".join((b'{"uri": "u", "run_id": "r", "name": "n"}', *lines)) + b"\n")
    return path


def test_a_journal_that_is_a_link_or_a_pipe_is_refused_and_its_target_left_as_it_is(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a line without an end, which is cut off in a journal")
    for make in (lambda path: path.symlink_to(token), os.mkfifo):
        path = journal_path(tmp_path, "r")
        make(path)
        with pytest.raises(DataFault, match="make it a writable file, and no link"):
            Journal(path)
        path.unlink()
    assert token.read_text().startswith("a line")


def test_what_is_put_aside_is_written_through_no_link(tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    profile.write_text("mine\n")
    journal = Journal(left_journal(tmp_path, b'{"id": 1, "entry": {"kind": "$(touch sign)"}}'))
    (tmp_path / "mlflow_unsent_r.refused.jsonl").symlink_to(profile)
    with pytest.raises(DataFault, match=r"refused\.jsonl can't be written"):
        journal.refuse(journal.first()[1], "no")
    journal.close()
    assert profile.read_text() == "mine\n"


@pytest.mark.parametrize(
    "line",
    [
        *(b"[]", b"7", b'{"id": 1}', b'{"id": 1, "entry": []}', b'{"id": 1, "entry": {"kind": []}}'),
        *(b'{"id": 1e400, "entry": {"kind": "text"}}', b'{"done": "1"}', b'{"done": 1e400}', b"\xff", b""),
        b'{"id": 1, "entry": {"kind": "text", "text": "\\ud800"}}',
        b'{"id": 1, "entry": {"kind": "tags", "tags": ' + b"[" * 900 + b"]" * 900 + b"}}",
        b'{"id": 1, "entry": {"kind": "tags", "tags": ' + b"[" * 100_000 + b"}}",
        b'{"id": ' + b"9" * 5000 + b', "entry": {"kind": "text"}}',
    ],
)
def test_a_broken_line_of_a_journal_is_named(line: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"mlflow_unsent_r\.jsonl is broken"):
        Journal(left_journal(tmp_path, line))


@pytest.mark.parametrize("owner", [{"uri": 7}, {"name": ["n"]}, {"name": "n" * 5000}, {"more": "x"}])
def test_a_journal_of_an_impossible_owner_is_refused(owner: dict[str, Any], tmp_path: Path) -> None:
    path = left_journal(tmp_path)
    path.write_text(json.dumps({"uri": "u", "run_id": "r", "name": "n", **owner}) + "\n")
    with pytest.raises(DataFault, match=r"mlflow_unsent_r\.jsonl is broken"):
        Journal(path)
    path = left_journal(tmp_path)
    with pytest.raises(DataFault, match="it holds values of another run"):
        Journal(path, Owner("u", "another", "n"))


def test_a_journal_is_bounded_and_keeps_nothing_that_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_LARGEST_LINE", 100)
    monkeypatch.setattr(journals, "_LARGEST_FILE", 400)
    monkeypatch.setattr(journals, "_ROOM", 300)
    text = {"kind": "text", "text": "x" * 20, "name": "n"}
    journal = Journal(journal_path(tmp_path, "w"), Owner("u", "w", "n"))
    with pytest.raises(DataFault, match="a line has 100 at most"):
        journal.append({**text, "text": "x" * 100})
    for _ in range(3):
        journal.append(text)
    with pytest.raises(DataFault, match="and the file 300"):
        journal.append(text)
    journal.close()
    assert len(Journal(journal.path)) == 3
    line = json.dumps({"id": 1, "entry": text}).encode()
    for lines, said in (((b"x" * 200,), "a line has more than 100"), ((line,) * 8, "more than 400 bytes")):
        with pytest.raises(DataFault, match=said):
            Journal(left_journal(tmp_path, *lines))


def test_half_a_character_of_a_games_text_does_not_break_the_journal(tmp_path: Path) -> None:
    journal = Journal(journal_path(tmp_path, "r"), Owner("u", "r", "n"))
    journal.append({"kind": "text", "text": "a\ud800 😀", "name": "n"})
    journal.close()
    assert Journal(journal.path).first()[1]["text"] == "a? 😀"
