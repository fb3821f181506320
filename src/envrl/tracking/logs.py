"""What a run logs: metrics, configuration, texts, files, datasets, episodes; each through its outbox."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from envrl.errors import DataFault
from envrl.tracking.delivery import is_away
from envrl.tracking.environment import environment_versions, git_commit
from envrl.tracking.episode_traces import TraceOrigin, episode_traces
from envrl.tracking.metrics import check_name
from envrl.tracking.outbox import now_ms, outbox
from envrl.tracking.store import Store, client
from envrl.tracking.traces import Decode
from envrl.types import Trajectory

PARAMETER_CHARACTERS = 250
"""Longer parameter values are cut; the whole configuration is in the artifact ``config.yaml``."""


def log_metrics(store: Store, run_id: str, metrics: Mapping[str, float], iteration: int) -> None:
    """Logs metrics of one iteration; names must stand in :mod:`envrl.tracking.metrics`.

    Raises:
        ConfigFault: A name is not listed.
    """
    for name in metrics:
        check_name(name)
    now = now_ms()
    points = [[name, float(value), now, iteration] for name, value in metrics.items()]
    outbox(store, run_id).put({"kind": "metrics", "points": points})


def log_config(store: Store, run_id: str, config: Mapping[str, Any] | Any) -> None:
    """Logs a configuration: whole as ``config.yaml``, flattened and cut as parameters.

    Args:
        store: The opened store.
        run_id: The run.
        config: Mapping or dataclass of plain values, mappings and sequences.

    Raises:
        DataFault: A continued run was started with another value of a parameter.
    """
    plain = _plain(config)
    wanted = {key: value[:PARAMETER_CHARACTERS] for key, value in _flatten(plain).items()}
    known = _known_parameters(store, run_id)
    for key, value in wanted.items():
        if known.get(key, value) != value:
            raise DataFault(
                f"run {run_id} was started with {key}={known[key]!r} and can't continue with {value!r}; "
                "start a new study or restore the value"
            )
    new = {key: value for key, value in wanted.items() if key not in known}
    outbox(store, run_id).put({"kind": "params", "params": new})
    log_text(store, run_id, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), "config.yaml")


def log_environment(store: Store, run_id: str) -> None:
    """Logs package versions as ``environment.yaml`` and the commit of the code as a tag."""
    log_text(store, run_id, yaml.safe_dump(environment_versions()), "environment.yaml")
    outbox(store, run_id).put({"kind": "tags", "tags": {"git_commit": git_commit() or "unknown"}})


def set_tag(store: Store, run_id: str, key: str, value: str) -> None:
    """Sets a tag, by which MLflow finds runs: ``tags.pruned = 'true'``."""
    outbox(store, run_id).put({"kind": "tags", "tags": {key: value}})


def log_artifact(store: Store, run_id: str, path: Path, folder: str | None = None) -> None:
    """Copies a file, or a folder with what is in it, to the artifacts of a run.

    It must stay where it is: while the store is away only its path is kept.
    """
    outbox(store, run_id).put({"kind": "artifact", "path": str(path.resolve()), "folder": folder})


def log_text(store: Store, run_id: str, text: str, name: str) -> None:
    """Writes a text as an artifact, e.g. ``transcripts/iteration_0.md``."""
    outbox(store, run_id).put({"kind": "text", "text": text, "name": name})


def log_datasets(store: Store, run_id: str, *datasets: Mapping[str, Any]) -> None:
    """Logs what a run reads (:func:`envrl.tracking.datasets.games_dataset`), shown on its page."""
    outbox(store, run_id).put({"kind": "inputs", "datasets": [dict(one) for one in datasets]})


def log_episodes(
    store: Store,
    run_id: str,
    trajectories: Sequence[Trajectory],
    decode: Decode,
    *,
    arm: str,
    seed: int,
    iteration: int,
) -> None:
    """Logs episodes of an evaluation as traces; logged again, they replace those of before.

    Args:
        store: The opened store.
        run_id: The run.
        trajectories: The episodes.
        decode: Token ids → text, special tokens included.
        arm: Arm of the run.
        seed: Seed of the run.
        iteration: Training iterations completed when they were played.
    """
    opened = outbox(store, run_id)
    origin = TraceOrigin(run_id, opened.experiment_id, arm, seed, iteration, now_ms())
    opened.put(episode_traces(origin, trajectories, decode))


def _known_parameters(store: Store, run_id: str) -> dict[str, str]:
    try:
        return dict(client(store).get_run(run_id).data.params)
    except Exception as fault:
        # Compared by MLflow itself when they are delivered.
        if is_away(fault):
            return {}
        raise


def _plain(value: Any) -> Any:
    """Dataclasses, mappings, sequences, paths and enums as what YAML knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if value is None or type(value) in (bool, int, float, str):
        return value
    return str(getattr(value, "value", value))


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys; a sequence stays one value."""
    if not isinstance(value, dict) or not value:
        return {prefix or "value": str(value)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat.update(_flatten(item, f"{prefix}.{key}" if prefix else key))
    return flat
