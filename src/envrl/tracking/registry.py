"""MLflow's model registry: adapters of the best runs, each registered once, the best of a panel by alias."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envrl.tracking.store import Store, client, quiet_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

BEST = "best"
"""Alias of the version with the highest success."""
_STRANGE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Registered:
    """A version in the registry.

    Attributes:
        name: Registered model.
        version: Its version.
        best: It holds the alias ``best``.
        holder: Version that holds the alias; None if none does.
        comparable: The holder was measured on the same panel.
    """

    name: str
    version: str
    best: bool
    holder: str | None
    comparable: bool


def model_name(env: str, model: str) -> str:
    """``envrl-<env>-<base model>``, the base model without its owner or folder.

    >>> model_name("alfworld", "Qwen/Qwen2.5-0.5B-Instruct")
    'envrl-alfworld-Qwen2.5-0.5B-Instruct'
    """
    base = model.rstrip("/").rsplit("/", 1)[-1]
    return f"envrl-{_STRANGE.sub('-', env)}-{_STRANGE.sub('-', base)}"


def register_adapter(
    store: Store,
    name: str,
    run_id: str,
    folder: str,
    success: float,
    panel: str,
    tags: Mapping[str, str],
) -> Registered:
    """Registers the adapter a run has logged; a run that is registered already keeps its version.

    The alias ``best`` goes to it if no version holds it, or one of the same panel with less success. On
    another panel successes can't be compared, and the alias stays.

    Args:
        store: The opened store.
        name: Registered model; made if there is none.
        run_id: Run with the adapter among its artifacts.
        folder: Folder of the adapter among them.
        success: Final success rate on the panel, in [0, 1].
        panel: Hash of the panel.
        tags: More tags of the version.

    Raises:
        MlflowException: The store can't be used.
    """
    exceptions = quiet_mlflow().exceptions
    mlflow_client = client(store)
    try:
        mlflow_client.create_registered_model(
            name, description="LoRA adapters in peft format, trained by envrl on the base model of its name."
        )
    except exceptions.MlflowException as fault:
        if fault.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = _version_of(mlflow_client, name, run_id)
    if version is None:
        run = mlflow_client.get_run(run_id)
        version = mlflow_client.create_model_version(
            name,
            source=f"{run.info.artifact_uri}/{folder}",
            run_id=run_id,
            tags={**tags, "success": repr(success), "panel": panel},
            description=f"Success {success:.1%} on the panel {panel}.",
        )
    holder = _holder(mlflow_client, name)
    # Somebody may have given the alias to a version of their own.
    comparable = holder is None or (holder.tags.get("panel") == panel and "success" in holder.tags)
    if holder is None or (comparable and float(holder.tags["success"]) < success):
        mlflow_client.set_registered_model_alias(name, BEST, version.version)
        holder = version
    return Registered(
        name, str(version.version), holder.version == version.version, str(holder.version), comparable
    )


def _version_of(mlflow_client: MlflowClient, name: str, run_id: str) -> ModelVersion | None:
    found = mlflow_client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _holder(mlflow_client: MlflowClient, name: str) -> ModelVersion | None:
    exceptions = quiet_mlflow().exceptions
    try:
        return mlflow_client.get_model_version_by_alias(name, BEST)
    except exceptions.MlflowException as fault:
        if fault.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
