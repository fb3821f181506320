"""A finished tiny study to look at."""

from __future__ import annotations

import pytest

from studies import FinishedStudy, call, write_study
from support import checkpoint


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, own_places: None) -> FinishedStudy:
    """Two arms, one seed, three iterations each, through the real command."""
    place = tmp_path_factory.mktemp("finished")
    file, root = write_study(place, checkpoint()), place / "mlruns"
    done = call("ablate", "--study", file, "--root", root)
    return FinishedStudy(file, root, root / "studies" / "tiny", done)
