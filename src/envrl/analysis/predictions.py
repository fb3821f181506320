"""What a trained policy said when it was asked about turns of kept episodes, kept beside them.

The file is named after the checkpoint and the form of the questions, an answer after what was asked about, so
that nothing is read as the answer of another policy or to another question.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from envrl.analysis.episodes import FOLDER, Turn
from envrl.analysis.records import write_bytes_atomic
from envrl.errors import DataFault
from envrl.untrusted import read_bytes, unpack

Asked = Literal["sp", "id"]
"""State prediction (next observation) or inverse dynamics (action between two observations)."""
SPForm = Literal["conversation", "question"]
"""How state prediction is asked: as what follows in the growing conversation, or as a question of its own."""


_LARGEST = 1 << 28
"""Most bytes of a file's unpacked content."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Answer(_Model):
    """What was written, by greedy decoding."""

    text: str
    cut: bool
    """It reached the most tokens it was given before it ended."""


class Predictions(_Model):
    """Answers of one policy."""

    iteration: int = Field(ge=0)
    """Training iterations the policy had seen."""
    sp_form: SPForm
    trained: tuple[Asked, ...]
    """Objectives the policy was trained with; the others are asked all the same."""
    answers: dict[str, Answer]
    """By :func:`answer_key`."""


def answer_key(turns: Sequence[Turn], asked: Asked) -> str:
    """Hash of an episode so far and of what its last turn is asked for."""
    seen = [
        [t.prompt, t.observation, t.admissible, t.written, t.finish.value, t.action, t.next_observation]
        for t in turns
    ]
    return f"{asked}-{hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:24]}"


def predictions_path(run_folder: Path, checkpoint: str, form: str) -> Path:
    """Where answers are kept.

    Args:
        run_folder: Folder of the run.
        checkpoint: Hash of the policy that was asked.
        form: Hash of everything that decides how a turn becomes a question.
    """
    return run_folder / FOLDER / f"predictions_{checkpoint[:16]}_{form[:16]}.json.gz"


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Replaces the file as a whole.

    Raises:
        DataFault: It can't be written.
    """
    write_bytes_atomic(path, gzip.compress(predictions.model_dump_json().encode(), mtime=0))


def read_predictions(path: Path) -> Predictions | None:
    """What was kept there; None if nothing was.

    Raises:
        DataFault: The file is broken.
    """
    try:
        return Predictions.model_validate_json(unpack(read_bytes(path), _LARGEST))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError) as fault:  # ValidationError is a ValueError
        reason = fault.errors()[0]["msg"] if isinstance(fault, ValidationError) else str(fault)
        raise DataFault(
            f"the predictions in {path} can't be read ({reason}); remove the file, they are made again"
        ) from fault
