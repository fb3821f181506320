"""A real MLflow store for each test, copied from one that is made once, because making one takes seconds."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from envrl.tracking.store import Store, open_store


@pytest.fixture(autouse=True)
def _own_store_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps a store named in the caller's environment out of the tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "mlruns"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        open_store(root)
    return root / "mlflow.db"


@pytest.fixture
def store_root(tmp_path: Path, empty_database: Path) -> Path:
    """Folder of a store without runs that nothing has opened yet."""
    root = tmp_path / "mlruns"
    root.mkdir()
    with (
        closing(sqlite3.connect(empty_database)) as source,
        closing(sqlite3.connect(root / "mlflow.db")) as target,
    ):
        source.backup(target)
    return root


@pytest.fixture
def store(store_root: Path) -> Store:
    return open_store(store_root)
