"""Places of their own for studies that are made to fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import checkpoint


@pytest.fixture(scope="session")
def own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the caller's generated games and MLflow server out; commands started by a test inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENVRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        checkpoint()  # made here, so that what its making prints is in no test's output
        yield
