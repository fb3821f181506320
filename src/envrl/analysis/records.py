"""What a run leaves on disk for the analysis: every game of every evaluation, won or not.

Statistics over games and seeds need single outcomes, which MLflow's metrics don't hold. A record is
replaced as a whole on each write, so that a killed run leaves the last complete one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from envrl.errors import DataFault
from envrl.untrusted import read_bytes

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GameOutcome(_Model):
    """How one game of the panel ended."""

    game_id: str
    """Content hash of the game."""
    family: str
    """Task type."""
    won: bool
    steps: int = Field(ge=0)
    """Environment steps taken."""
    task_score: Share


class Evaluation(_Model):
    """One pass over the panel, each game once."""

    iteration: int = Field(ge=0)
    """Training iterations completed; 0 is the policy before any update."""
    outcomes: tuple[GameOutcome, ...]
    dynamics: dict[str, float] = Field(default_factory=dict)
    """What the policy knows of the environment: the metrics ``dynamics/…`` over all task types."""

    @model_validator(mode="after")
    def _each_game_once(self) -> Evaluation:
        ids = [outcome.game_id for outcome in self.outcomes]
        if len(set(ids)) != len(ids):
            twice = sorted({game for game in ids if ids.count(game) > 1})[0]
            raise ValueError(f"game {twice} was evaluated twice at iteration {self.iteration}")
        return self

    @property
    def success_rate(self) -> float:
        """Games won / games; NaN without games."""
        won = sum(outcome.won for outcome in self.outcomes)
        return won / len(self.outcomes) if self.outcomes else float("nan")


class RunRecord(_Model):
    """One run: an arm with one seed."""

    arm: str = Field(pattern=r"^[^/\\.\s][^/\\\s]*$")
    """Name of the arm, also a folder name."""
    seed: int = Field(ge=0)
    status: Literal["running", "finished", "failed", "pruned"]
    """A pruned run was given up by a sweep because others did better."""
    panel_hash: str
    """Content hash of the evaluation panel."""
    evaluations: tuple[Evaluation, ...] = ()
    training_success: tuple[float, ...] = ()
    """Success rate of the collected episodes of each iteration, at sampling temperature."""
    seconds: float = Field(default=0.0, ge=0.0)
    """Wall time of the run, over all its continuations."""
    mlflow_run_id: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    """Resolved configuration."""
    error: str | None = None
    """What a failed run failed of, or when a pruned one was given up."""
    notes: tuple[str, ...] = ()
    """What its numbers do not show of how it was made: a broken checkpoint that was passed over."""

    @model_validator(mode="after")
    def _iterations_rise(self) -> RunRecord:
        iterations = [evaluation.iteration for evaluation in self.evaluations]
        if sorted(set(iterations)) != iterations:
            raise ValueError(f"the iterations of evaluations must rise, found {iterations}")
        return self


def record_path(study_folder: Path, arm: str, seed: int) -> Path:
    """Where the record of an arm and seed lies: ``runs/<arm>/seed_<n>/record.json``."""
    return study_folder / "runs" / arm / f"seed_{seed}" / "record.json"


def write_record(study_folder: Path, record: RunRecord) -> Path:
    """Writes a record in one atomic step and returns its path.

    Raises:
        DataFault: The folder can't be written.
    """
    path = record_path(study_folder, record.arm, record.seed)
    write_text_atomic(path, record.model_dump_json(indent=1) + "\n")
    return path


def write_text_atomic(path: Path, text: str) -> None:
    """Replaces a file by a new text, or leaves it as it was.

    Raises:
        DataFault: The folder can't be written.
    """
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Replaces a file by new content, or leaves it as it was.

    Raises:
        DataFault: The folder can't be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = Path(handle.name)
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as fault:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise DataFault(
            f"{path} can't be written ({fault.strerror or fault}); free or choose another folder"
        ) from fault


def load_record(path: Path) -> RunRecord:
    """Reads one record.

    Raises:
        DataFault: The file is missing or broken; the message says where.
    """
    try:
        return RunRecord.model_validate_json(read_bytes(path))
    except OSError as fault:
        raise DataFault(f"the run record {path} can't be read ({fault.strerror or fault})") from fault
    except ValidationError as fault:
        first = fault.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataFault(
            f"the run record {path} is broken at {place}: {first['msg']}; remove the folder {path.parent} "
            "to run that arm and seed anew"
        ) from fault


def load_records(study_folder: Path) -> list[RunRecord]:
    """Every record of a study, ordered by arm and seed.

    Raises:
        DataFault: There is no record, one is broken, or one lies in another run's folder.
    """
    records = []
    for path in sorted(study_folder.glob("runs/*/seed_*/record.json")):
        record = load_record(path)
        if path != record_path(study_folder, record.arm, record.seed):
            raise DataFault(
                f"the run record {path} says arm {record.arm!r} and seed {record.seed}; "
                "it was copied from another run, move it back"
            )
        records.append(record)
    if not records:
        raise DataFault(
            f"there is no run record under {study_folder / 'runs'}; name the folder of a study that "
            "`python -m envrl.experiments.ablate` has written"
        )
    return sorted(records, key=lambda record: (record.arm, record.seed))


def arms_in_order(records: Iterable[RunRecord], first: str | None = None) -> list[str]:
    """Names of the arms as they appear, ``first`` (the baseline) put in front."""
    names = list(dict.fromkeys(record.arm for record in records))
    return sorted(names, key=lambda name: name != first)
