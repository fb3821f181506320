"""Generated games of all integration tests in one place, and a finished tiny study to look at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from studies import FinishedStudy, call, write_study
from support import checkpoint


@pytest.fixture(scope="session")
def own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the caller's generated games and MLflow server out; commands started by a test inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        checkpoint()  # made here, so that what its making prints is in no test's output
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, own_places: None) -> FinishedStudy:
    """Two arms, one seed, three iterations each, through the real command."""
    place = tmp_path_factory.mktemp("finished")
    file, root = write_study(place, checkpoint()), place / "mlruns"
    done = call("ablate", "--study", file, "--root", root)
    return FinishedStudy(file, root, root / "studies" / "tiny", done)
