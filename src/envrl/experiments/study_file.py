"""The study file: arms, seeds, and the run they all start from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from envrl.errors import ConfigFault
from envrl.experiments.plain import merge, nested

_FOLDER_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")
M = TypeVar("M", bound=BaseModel)
# An arm without changes is written `grpo:`, which YAML reads as null.
Changes = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


@dataclass(frozen=True)
class StudySettings:
    """A study: arms, seeds, and the run they all start from."""

    name: str
    """Name of the study, its folder and its MLflow parent run."""
    arms: Mapping[str, Mapping[str, Any]]
    """Arms by name; each gives the keys in which it differs from the base."""
    baseline: str
    """Arm the others are compared with."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds; every arm runs with each."""
    jobs: int = 1
    """Runs at the same time, each with train.threads threads."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the run configuration that differ from the defaults, for all arms."""

    def __post_init__(self) -> None:
        for name in (self.name, *self.arms):
            require_folder_name(name)
        if not self.arms:
            raise ConfigFault("the study has no arms; give at least one under `arms:`")
        if self.baseline not in self.arms:
            raise ConfigFault(
                f"baseline '{self.baseline}' is not an arm; choose one of {', '.join(self.arms)}"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigFault(f"seeds are {list(self.seeds)}; give different numbers >= 0")
        if self.jobs < 1:
            raise ConfigFault(f"jobs is {self.jobs}; use at least 1")


class _StudyFile(BaseModel):
    """What may stand in a study file, with the types it must have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    arms: dict[str, Changes]
    baseline: str
    seeds: list[int] = [0, 1]
    jobs: int = 1
    base: Changes = {}
    extends: str | None = None


def require_folder_name(name: str) -> None:
    """Refuses names of studies, arms and runs that can't be a folder.

    Raises:
        ConfigFault: The name is empty or has other characters than letters, digits, ``_ - + .``.
    """
    if not _FOLDER_NAME.fullmatch(name):
        raise ConfigFault(
            f"'{name}' can't be the name of a folder; use letters, digits, _ - + and, not first, dots"
        )


def load_study(path: Path) -> StudySettings:
    """Reads a study file, and the one it ``extends``, if it does.

    ``extends: other.yaml``, seen from the file's own folder, gives every key that the file leaves out. The
    two ``base`` are merged key by key; ``arms`` that are given replace all arms.

    Raises:
        ConfigFault: The file is missing, is no YAML, extends itself, or has an unknown or missing key.
    """
    checked = checked_file(path, read_file(path), _StudyFile)
    return StudySettings(
        name=checked.name,
        arms=checked.arms,
        baseline=checked.baseline,
        seeds=tuple(checked.seeds),
        jobs=checked.jobs,
        base=checked.base,
    )


def checked_file(path: Path, content: dict[str, Any], model: type[M], example: str = "quick.yaml") -> M:
    """What a file says, as its model.

    Args:
        path: The file, for the message.
        content: What :func:`read_file` gave.
        model: The keys and their types.
        example: Committed file that the message points to.

    Raises:
        ConfigFault: A key is unknown or missing, or a value is of another type.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigFault(f"{path}: {_first_complaint(error, model, example)}") from error


def read_file(path: Path, foreign: frozenset[str] = frozenset()) -> dict[str, Any]:
    """What a file says together with what it ``extends``.

    Args:
        path: The file.
        foreign: Keys that are not taken over from the extended files, because only those know them.

    Raises:
        ConfigFault: The file is missing, is no YAML, holds no mapping, or extends itself.
    """
    return _read(path, (), foreign)


def _read(path: Path, below: tuple[Path, ...], foreign: frozenset[str]) -> dict[str, Any]:
    """``below`` are the files that extend this one."""
    if path.resolve() in below:
        raise ConfigFault(f"the study file '{path}' extends itself, by way of others; break the circle")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigFault(
            f"the study file '{path}' can't be read ({error.strerror or error}); give a file such as "
            "experiments/quick.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigFault(f"the study file '{path}' is not YAML ({reason}); correct it") from error
    if not isinstance(content, dict):
        raise ConfigFault(f"the study file '{path}' holds no mapping; see experiments/quick.yaml")
    other = content.pop("extends", None)
    if other is None:
        return content
    if not isinstance(other, str):
        raise ConfigFault(f"{path}: 'extends' is {other!r}; give the name of one study file")
    inherited = _read(path.parent / other, (*below, path.resolve()), foreign)
    inherited = {key: value for key, value in inherited.items() if key not in foreign}
    base, changes = (found.get("base") or {} for found in (inherited, content))
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return inherited | content
    return inherited | content | {"base": merge(nested(base), nested(changes))}


def _first_complaint(error: ValidationError, model: type[BaseModel], example: str) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if len(first["loc"]) == 1 and first["type"] in ("extra_forbidden", "missing"):
        known = f"known keys: {', '.join(model.model_fields)}"
    else:
        known = f"see experiments/{example}"
    if first["type"] == "extra_forbidden":
        return f"unknown key '{place}'; {known}"
    if first["type"] == "missing":
        return f"the key '{place}' is missing; {known}"
    return f"'{place}' is {first['input']!r}: {first['msg']}; see experiments/{example}"
