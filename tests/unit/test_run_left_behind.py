"""What a run that was stopped left behind, before it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from envrl.analysis.records import RunRecord, record_path, write_record
from envrl.errors import DataFault
from envrl.experiments.config import RunConfig
from envrl.experiments.plain import as_plain
from envrl.experiments.run import _left_behind
from envrl.training.checkpoints import CHECKPOINT, write_checkpoint


def stopped(folder: Path) -> None:
    progress = {"fit_loop": {"epoch_progress": {"current": {"processed": 2}}}}
    write_checkpoint({"state_dict": {"weight": torch.zeros(1)}, "loops": progress}, folder / CHECKPOINT)


def test_a_checkpoint_of_nobody_knows_what_run_is_not_gone_on_from(tmp_path: Path) -> None:
    """Its optimiser would overrule the settings in silence."""
    record = record_path(tmp_path, "grpo", 0)
    assert _left_behind(record, RunConfig()) == (None, None, None, None)
    stopped(record.parent)
    with pytest.raises(DataFault, match=r"holds a checkpoint and no record\.json.*put that file back"):
        _left_behind(record, RunConfig())
    known = RunRecord(arm="grpo", seed=0, status="running", panel_hash="0f1e", config=as_plain(RunConfig()))
    write_record(tmp_path, known)
    found, checkpoint, completed, note = _left_behind(record, RunConfig())
    assert found == known
    assert (checkpoint, completed, note) == (record.parent / CHECKPOINT, 2, None)
