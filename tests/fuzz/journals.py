"""Journals of what MLflow has not taken yet, which lie in the folders of runs that are handed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fuzz.target import JSON_WORDS, Run, Target

_RUN = "1" * 32
_FOLDER = "%FOLDER%"
"""Stands in an input for the journal's own folder, which is another one each time."""
_WORDS = (
    *(b"/etc/passwd", b"../", b"..", b"%2e%2e", b"/", _FOLDER.encode(), b"\\u0000", b"\n", b'{"done": 1}'),
    *(b'"artifact"', b'"text"', b'"metrics"', b'"params"', b'"tags"', b'"inputs"', b'"traces"', b'"status"'),
)


class _Store:
    """Takes everything, and remembers what it was given to upload and under which names."""

    def __init__(self) -> None:
        self.uploaded: list[Path] = []
        self.names: list[str] = []

    def log_artifact(self, run_id: str, path: str, folder: str | None) -> None:
        self.uploaded.append(Path(path))
        self.names.append(folder or "")

    log_artifacts = log_artifact

    def log_text(self, run_id: str, text: str, name: str) -> None:
        self.names.append(name)

    def log_batch(self, run_id: str, *values: Any, **named: Any) -> None:
        """Nothing."""

    log_inputs = set_terminated = get_run = list_artifacts = log_batch


def _journal(folder: Path) -> Run:
    from envrl.tracking.journal import Journal, NothingKept, journal_path
    from envrl.tracking.leftovers import empty

    own = folder / "own"
    (own / "adapter").mkdir(parents=True)
    (own / "adapter" / "weights").write_text("w")
    (own / "link").symlink_to(folder)
    (folder / "secret").write_text("s")
    path, aside = journal_path(own, _RUN), own / f"mlflow_unsent_{_RUN}.refused.jsonl"

    def run(data: bytes) -> None:
        path.write_bytes(data.replace(_FOLDER.encode(), str(own).encode()))
        aside.unlink(missing_ok=True)
        store = _Store()
        try:
            journal = Journal(path)
        except NothingKept:
            return
        try:
            assert isinstance(journal.owner.uri, str)
            empty(journal, store)  # type: ignore[arg-type]
            assert not len(journal)
        finally:
            journal.close()
        assert all(one.resolve().is_relative_to(own.resolve()) for one in store.uploaded)
        assert not any(".." in name.split("/") or name.startswith("/") for name in store.names)

    return run


def _journal_seeds() -> list[bytes]:
    dataset = {"name": "g", "digest": "1", "source_type": "code", "source": "{}"}
    owner = {"uri": "sqlite:////m.db", "run_id": _RUN, "name": "grpo/seed_0"}
    entries: list[dict[str, Any]] = [
        {"kind": "metrics", "points": [["train/loss", 1.0, 1000, 0]]},
        {"kind": "params", "params": {"seed": "1"}},
        {"kind": "tags", "tags": {"git_commit": "abc"}},
        {"kind": "text", "text": "t", "name": "notes/hello.txt"},
        {"kind": "artifact", "path": f"{_FOLDER}/adapter", "folder": "adapter"},
        {"kind": "artifact", "path": f"{_FOLDER}/link/own/adapter/weights", "folder": None},
        {"kind": "inputs", "datasets": [{"dataset": dataset, "context": "training"}]},
        {"kind": "status", "status": "FINISHED", "time": 5000},
    ]
    elsewhere: list[dict[str, Any]] = [
        {"kind": "artifact", "path": f"{_FOLDER}/../secret", "folder": "got"},
        {"kind": "artifact", "path": f"{_FOLDER}/link/secret", "folder": None},
        {"kind": "text", "text": "t", "name": "../../hello.txt"},
    ]

    def lines(entries: list[dict[str, Any]]) -> bytes:
        numbered = [{"id": number, "entry": entry} for number, entry in enumerate(entries, 1)]
        return b"".join(json.dumps(content).encode() + b"\n" for content in (owner, *numbered))

    return [lines(entries), lines(elsewhere), lines(entries) + b'{"done": 1}\n{"id": 9, "en']


TARGETS: dict[str, Target] = {"journal": Target(_journal, _journal_seeds, JSON_WORDS + _WORDS)}
