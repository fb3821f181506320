"""Where a run stands: in which study, on disk and in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from envrl.analysis.records import record_path
from envrl.tracking.store import Store


@dataclass(frozen=True)
class RunPlace:
    """Where a run stands: in which study, on disk and in MLflow.

    Attributes:
        study_folder: Folder of the study.
        experiment: MLflow experiment.
        arm: Name of the arm.
        store: MLflow store.
        parent_id: MLflow run of the study; None for a run that stands alone.
        tags: More tags of the MLflow run.
    """

    study_folder: Path
    experiment: str
    arm: str
    store: Store
    parent_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def run_name(self, seed: int) -> str:
        """Name of the run with that seed in MLflow."""
        return f"{self.arm}/seed_{seed}"

    def folder(self, seed: int) -> Path:
        """Folder of the run with that seed."""
        return record_path(self.study_folder, self.arm, seed).parent
