"""Run records: written whole or not at all, read back equal, refused with a reason when broken."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from envrl.analysis.records import (
    Evaluation,
    GameOutcome,
    RunRecord,
    load_records,
    record_path,
    write_record,
    write_text_atomic,
)
from envrl.errors import DataFault


def outcome(game: str, won: bool) -> GameOutcome:
    return GameOutcome(game_id=game, family="heat", won=won, steps=7, task_score=0.5)


def record(arm: str = "grpo", seed: int = 0, **changes: object) -> RunRecord:
    fields: dict[str, object] = {
        "arm": arm,
        "seed": seed,
        "status": "running",
        "panel_hash": "abc",
        "evaluations": (Evaluation(iteration=0, outcomes=(outcome("a", True), outcome("b", False))),),
        "training_success": (0.25, 0.5),
        "seconds": 12.5,
        "mlflow_run_id": "f00",
        "config": {"loss": {"lambda_sp": 0.2, "schedule": None}},
    }
    return RunRecord(**{**fields, **changes})  # type: ignore[arg-type]


def test_written_record_is_read_back_equal(tmp_path: Path) -> None:
    path = write_record(tmp_path, record())
    assert path == tmp_path / "runs" / "grpo" / "seed_0" / "record.json"
    assert load_records(tmp_path) == [record()]
    assert json.loads(path.read_text())["evaluations"][0]["outcomes"][0] == {
        "game_id": "a", "family": "heat", "won": True, "steps": 7, "task_score": 0.5,
    }  # fmt: skip


def test_rewriting_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    path = write_record(tmp_path, record(status="finished"))
    assert load_records(tmp_path)[0].status == "finished"
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


def test_interrupted_write_keeps_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_record(tmp_path, record())

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("envrl.analysis.records.os.fsync", full_disk)
    with pytest.raises(DataFault, match=r"record\.json can't be written \(No space left on device\)"):
        write_record(tmp_path, record(status="finished"))
    assert load_records(tmp_path)[0].status == "running"
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


def test_records_come_by_arm_and_seed_as_numbers(tmp_path: Path) -> None:
    for arm, seed in (("sp", 10), ("grpo", 1), ("sp", 2)):
        write_record(tmp_path, record(arm, seed))
    assert [(r.arm, r.seed) for r in load_records(tmp_path)] == [("grpo", 1), ("sp", 2), ("sp", 10)]


def test_success_rate_of_an_evaluation() -> None:
    outcomes = tuple(outcome(str(number), number == 0) for number in range(4))
    assert Evaluation(iteration=0, outcomes=outcomes).success_rate == 0.25


def test_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"no run record under .*runs; name the folder of a study"):
        load_records(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file: Invalid JSON"),
        ('{"arm": "grpo", ', "the file: Invalid JSON"),
        ('{"arm": "grpo"}', "seed: Field required"),
        ("[]", "the file: Input should be an object"),
    ],
)
def test_broken_file_is_named_with_the_place(tmp_path: Path, text: str, reason: str) -> None:
    path = record_path(tmp_path, "grpo", 0)
    write_text_atomic(path, text)
    with pytest.raises(DataFault) as caught:
        load_records(tmp_path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert "run that arm and seed anew" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1}, {"status": "done"}, {"seconds": float("nan")}, {"unknown_key": 1},
        {"arm": "../escape"}, {"arm": ""}, {"arm": "two words"},
    ],
)  # fmt: skip
def test_impossible_values_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        record(**change)  # type: ignore[arg-type]


def test_game_twice_and_iterations_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="game a was evaluated twice at iteration 3"):
        Evaluation(iteration=3, outcomes=(outcome("a", True), outcome("a", False)))
    with pytest.raises(ValidationError, match=r"must rise, found \[5, 0\]"):
        record(evaluations=tuple(Evaluation(iteration=i, outcomes=()) for i in (5, 0)))
    with pytest.raises(ValidationError, match=r"must rise, found \[5, 5\]"):
        record(evaluations=tuple(Evaluation(iteration=i, outcomes=()) for i in (5, 5)))


def test_record_in_another_runs_folder(tmp_path: Path) -> None:
    path = write_record(tmp_path, record("grpo", 0))
    path.parent.rename(path.parent.with_name("seed_1"))
    with pytest.raises(DataFault, match="says arm 'grpo' and seed 0; it was copied"):
        load_records(tmp_path)
