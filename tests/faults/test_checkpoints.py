"""Damaged checkpoints: found when they are read, passed over for the one before, and said so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from envrl.errors import DataFault
from envrl.experiments.resume import forget_after, newest_checkpoint, put_aside, read_checkpoint
from envrl.training import checkpoints
from envrl.training.checkpoints import CHECKPOINT, PREVIOUS, Damaged, check, write_checkpoint


def state(completed: int) -> dict[str, Any]:
    """As much of a checkpoint as its reading asks for."""
    progress = {"epoch_progress": {"current": {"processed": completed}}}
    weights = torch.arange(200.0) + completed
    return {"state_dict": {"policy.w": weights}, "loops": {"fit_loop": progress}}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_the_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, place: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 0x10
    path.write_bytes(content)


DAMAGES = [truncate, cut_the_last_byte, empty, flip]


def former(content: dict[str, Any], path: Path) -> None:
    """A checkpoint as it was written before there were checksums."""
    torch.save(content, path)


@pytest.mark.fault(
    "The newest checkpoint is cut off, empty, or a bit of it has flipped",
    "It is found when it is read, the one before is used, and one sentence says so",
)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("write", [write_checkpoint, former])
def test_a_damaged_checkpoint_is_passed_over(
    write: Callable[[dict[str, Any], Path], None],
    damage: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(state(3), tmp_path / CHECKPOINT)
    (tmp_path / CHECKPOINT).rename(tmp_path / PREVIOUS)
    write(state(4), tmp_path / CHECKPOINT)
    assert read_checkpoint(tmp_path / CHECKPOINT)["state_dict"]["policy.w"][0] == 4
    assert capsys.readouterr().err == ""
    damage(tmp_path / CHECKPOINT)
    assert read_checkpoint(tmp_path / CHECKPOINT)["state_dict"]["policy.w"][0] == 3
    said = capsys.readouterr().err
    assert said.startswith(f"warning: the checkpoint {tmp_path / CHECKPOINT} is broken (")
    assert said.endswith("); the one before it is used, previous.ckpt after 3 iterations\n")


@pytest.mark.fault(
    "A single bit of a checkpoint flips, in whichever byte",
    "It is found: headers, names and the checksum itself are covered too",
)
def test_a_flip_of_any_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    write_checkpoint(state(1), path)
    whole = path.read_bytes()
    check(path)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        with pytest.raises(Damaged):
            check(path)


@pytest.mark.fault("Both checkpoints of a run are damaged", "One sentence names the files and the remedy")
@pytest.mark.parametrize("damage", DAMAGES)
def test_two_damaged_checkpoints_are_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    write_checkpoint(state(3), tmp_path / CHECKPOINT)
    write_checkpoint(state(4), tmp_path / CHECKPOINT)
    for name in (CHECKPOINT, PREVIOUS):
        damage(tmp_path / name)
    with pytest.raises(DataFault) as refused:
        newest_checkpoint(tmp_path)
    said = str(refused.value)
    assert str(tmp_path / CHECKPOINT) in said
    assert str(tmp_path / PREVIOUS) in said
    assert said.endswith(f"remove the folder {tmp_path} to run it anew")


@pytest.mark.fault("The newest checkpoint is lost", "The one before is used, and one sentence says so")
def test_a_missing_checkpoint_is_passed_over(tmp_path: Path) -> None:
    write_checkpoint(state(3), tmp_path / CHECKPOINT)
    write_checkpoint(state(4), tmp_path / CHECKPOINT)
    (tmp_path / CHECKPOINT).unlink()
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.completed, found.path.name) == (3, PREVIOUS)
    assert found.note is not None
    assert "is missing; the one before it is used" in found.note
    (tmp_path / PREVIOUS).unlink()
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.fault(
    "A file that is whole, but not a checkpoint, stands in the place of one",
    "It is refused without running anything in it",
)
def test_a_file_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    write_checkpoint(state(2) | {"state_dict": Trap()}, tmp_path / CHECKPOINT)
    with pytest.raises(DataFault, match="is broken"):
        newest_checkpoint(tmp_path)
    assert not (tmp_path / "sprung").exists()
    write_checkpoint({"something": 1}, tmp_path / CHECKPOINT)
    with pytest.raises(DataFault, match=r"is broken \(KeyError\)"):
        newest_checkpoint(tmp_path)


def test_plain_torch_reads_a_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(state(5), tmp_path / CHECKPOINT)
    for mapped in (False, True):
        content = torch.load(tmp_path / CHECKPOINT, weights_only=True, mmap=mapped)
        assert torch.equal(content["state_dict"]["policy.w"], torch.arange(200.0) + 5)


def kept(folder: Path) -> dict[str, int]:
    names = {path.name for path in folder.iterdir()}
    assert names <= {CHECKPOINT, PREVIOUS}, names
    return {
        name: int(torch.load(folder / name, weights_only=True)["state_dict"]["policy.w"][0]) for name in names
    }


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_the_one_before_is_kept(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(checkpoints.os, "link", refuse)
    write_checkpoint(state(1), tmp_path / CHECKPOINT)
    assert kept(tmp_path) == {CHECKPOINT: 1}
    for completed in (2, 3):
        write_checkpoint(state(completed), tmp_path / CHECKPOINT)
        assert kept(tmp_path) == {CHECKPOINT: completed, PREVIOUS: completed - 1}


STEPS = ("os.fsync", "os.link", "Path.replace", "Path.unlink")


@pytest.mark.fault(
    "A process is killed between any two steps of writing a checkpoint",
    "One of the two last checkpoints is whole, and the next writing goes on from there",
)
def test_every_step_of_writing_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    class Killed(BaseException):
        pass

    steps: list[str] = []
    allowed = 1000

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if len(steps) >= allowed:
                raise Killed
            steps.append(name)
            return real(*arguments, **options)

        return step

    for name in STEPS:
        owner = checkpoints.os if name.startswith("os.") else Path
        function = name.split(".")[1]
        monkeypatch.setattr(owner, function, counted(name, getattr(owner, function)))
    write_checkpoint(state(1), tmp_path / CHECKPOINT)
    steps.clear()
    write_checkpoint(state(2), tmp_path / CHECKPOINT)
    total = len(steps)
    assert set(steps) == set(STEPS)
    completed = 2
    for allowed in range(total):
        steps.clear()
        with pytest.raises(Killed):
            write_checkpoint(state(completed + 1), tmp_path / CHECKPOINT)
        found = newest_checkpoint(tmp_path)
        assert found is not None
        assert found.note is None, "with hard links the newest is always there"
        assert found.completed in (completed, completed + 1)
        allowed = 1000
        completed += 1
        write_checkpoint(state(completed), tmp_path / CHECKPOINT)
        assert kept(tmp_path)[CHECKPOINT] == completed
    record_property("faults", total)
    record_property("survived", total)


@pytest.mark.fault(
    "The disk is full while a checkpoint is written", "A sentence says so, and the checkpoint of before stays"
)
def test_a_full_disk_leaves_the_checkpoint_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    write_checkpoint(state(1), tmp_path / CHECKPOINT)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "fsync", full)
        with pytest.raises(DataFault, match=r"No space left on device\); free space"):
            write_checkpoint(state(2), tmp_path / CHECKPOINT)
    assert kept(tmp_path) == {CHECKPOINT: 1}


def test_a_broken_one_never_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for completed in (1, 2):
        write_checkpoint(state(completed), tmp_path / CHECKPOINT)
    flip(tmp_path / CHECKPOINT)
    put_aside(tmp_path)
    write_checkpoint(state(2), tmp_path / CHECKPOINT)
    assert check(tmp_path / PREVIOUS) is None
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, PREVIOUS, "broken.ckpt"}


def test_episodes_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    from envrl.analysis.episodes import evaluated_iterations, write_episodes

    for iteration in (0, 2, 4):
        write_episodes(tmp_path, iteration, [])
    forget_after(tmp_path, 3)
    assert evaluated_iterations(tmp_path) == (0, 2)
    forget_after(tmp_path, None)
    assert evaluated_iterations(tmp_path) == ()
