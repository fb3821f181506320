"""A run is timed for an estimate, and nothing of it stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from envrl.experiments.config import config_from
from envrl.experiments.estimate import timed
from studies import tiny
from support import checkpoint


@pytest.mark.usefixtures("own_places")
@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_a_real_run_is_timed_and_leaves_nothing(
    iterations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_from(tiny(checkpoint(), {"train.iterations": iterations}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    timing = timed(config)
    assert timing.iteration > 0
    assert timing.diagnosed > 0
    assert timing.setup >= 0
    # A shorter run has no iteration without an evaluation to compare with.
    assert iterations >= 3 or timing.evaluation == 0
    assert list(tmp_path.iterdir()) == []
