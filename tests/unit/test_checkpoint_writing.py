"""Writing a checkpoint: what it takes of memory, and a disk that fails in the middle."""

from __future__ import annotations

import errno
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from envrl.training import checkpoints
from envrl.training.checkpoints import check, write_checkpoint

SIZE = 4_000_000


def test_a_checkpoint_is_written_without_a_second_copy_of_it_in_memory(tmp_path: Path) -> None:
    content = {"weights": torch.arange(SIZE, dtype=torch.float32), "updates_done": 3}
    path = tmp_path / "last.ckpt"
    tracemalloc.start()
    try:
        write_checkpoint(content, path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < SIZE, "four bytes a number would be 16 MB"
    check(path)
    read = torch.load(path, weights_only=True)
    assert torch.equal(read["weights"], content["weights"])
    assert read["updates_done"] == 3


@pytest.mark.parametrize("written", [0, 1, 4])
def test_a_disk_that_is_full_after_some_parts_is_an_error_of_the_file(written: int) -> None:
    class Full(io.BytesIO):
        parts = 0

        def write(self, block: Any, /) -> int:
            self.parts += 1
            if self.parts > written:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(block)

    sealed = checkpoints._Sealed(Full())
    torch.save({"weights": torch.zeros(1000)}, sealed)
    with pytest.raises(OSError, match="No space left"):
        sealed.finish()


def test_small_parts_are_sealed_as_large_ones_are(tmp_path: Path) -> None:
    whole, pieces = io.BytesIO(), io.BytesIO()
    torch.save({"weights": torch.ones(50)}, plain := io.BytesIO())
    for target, size in ((whole, len(plain.getvalue())), (pieces, 5)):
        sealed = checkpoints._Sealed(target)
        for start in range(0, len(plain.getvalue()), size):
            sealed.write(plain.getvalue()[start : start + size])
        sealed.finish()
    assert whole.getvalue() == pieces.getvalue()
    path = tmp_path / "last.ckpt"
    path.write_bytes(pieces.getvalue())
    check(path)
