"""The fuzzer's borders without the fuzzer: what is valid is accepted, what is broken ends in a sentence."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from envrl.errors import EnvrlError
from fuzz import __main__ as campaign
from fuzz.mutation import mutated
from fuzz.targets import TARGETS

MUTATIONS = 40
NOTHING_TO_REFUSE = {"alfworld_actions", "webshop_actions", "model_output", "option"}
"""An action is never refused: a wrong one does nothing in the game. Almost any text is a YAML value."""


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted_and_mutations_end_in_a_sentence(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    run = target.make(tmp_path)
    for number, seed in enumerate(target.seeds()):
        run(seed)
        rng = random.Random(number)
        said = []
        for _ in range(MUTATIONS):
            try:
                run(mutated(seed, 1 << 16, rng, target.words))
            except EnvrlError as error:
                said.append(str(error))
        assert all(len(sentence) > 10 for sentence in said)
        assert said or name in NOTHING_TO_REFUSE


def test_mutations_keep_brackets_and_follow_the_seed() -> None:
    text = b"(and (or a b) (not c))"
    found = {mutated(text, 100, random.Random(n), (b"x",)) for n in range(200)}
    assert len(found) > 50
    assert sum(m.count(b"(") == m.count(b")") for m in found) > len(found) / 2
    assert mutated(text, 5, random.Random(0)) == mutated(text, 5, random.Random(0))
    assert all(len(mutated(text, 5, random.Random(n))) <= 5 for n in range(50))


def test_the_last_line_counts_and_the_exit_code_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crashing = ["option"]

    def one(name: str, seconds: int, crashes: Path) -> tuple[int, str]:
        assert seconds >= 1
        if name in crashing:
            (crashes / f"{name}-1.input").write_bytes(b"x")
            (crashes / f"{name}-1.txt").write_text("traceback")
            (crashes / f"{name}-timeout-2").write_bytes(b"y")
        return 10, ""

    monkeypatch.setattr(campaign, "fuzz", one)
    options = ["--seconds", "60", "--crashes", str(tmp_path / "kept")]
    monkeypatch.setattr("sys.argv", ["fuzz", *options])
    assert campaign.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"inputs={10 * len(TARGETS)} crashes=2"
    crashing.clear()
    assert campaign.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"inputs={10 * len(TARGETS)} crashes=0"
    assert list((tmp_path / "kept").iterdir()) == [], "crashes of an earlier time are gone"


def test_a_fuzzer_that_dies_is_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    inputs, ended = campaign.fuzz("option", 1, tmp_path)
    assert (inputs, ended) == (0, ", ended with code 1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["option-died.input", "option-died.txt"]
