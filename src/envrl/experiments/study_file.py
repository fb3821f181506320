"""The study file: arms, seeds, and the run they all start from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from envrl.errors import ConfigFault
from envrl.experiments.plain import LARGEST_YAML, flat, merge, nested, read_yaml
from envrl.untrusted import read_text

_FOLDER_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")
_UNNAMED = "none"
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
    more_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Seeds that single arms run with beyond ``seeds``, by arm."""

    @property
    def runs(self) -> tuple[tuple[str, int], ...]:
        """Arm and seed of every run. Seeds come first and arms second, so that an interrupted study can
        already compare its arms."""
        common = [(arm, seed) for seed in self.seeds for arm in self.arms]
        further = sorted({seed for seeds in self.more_seeds.values() for seed in seeds})
        return tuple(
            common + [(arm, s) for s in further for arm in self.arms if s in self.more_seeds.get(arm, ())]
        )

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
        # A seed of its own would be overwritten in silence by the study's.
        for where, changes in (("base", self.base), *((f"arm '{arm}'", c) for arm, c in self.arms.items())):
            if "seed" in changes:
                raise ConfigFault(
                    f"{where}: seed is {changes['seed']}; leave it out: every arm runs with the `seeds` "
                    "of the study, and with its own under `more_seeds`"
                )
        for arm, seeds in self.more_seeds.items():
            if arm not in self.arms:
                raise ConfigFault(f"more_seeds names '{arm}', which is none of {', '.join(self.arms)}")
            if len({*self.seeds, *seeds}) != len(self.seeds) + len(seeds) or min(seeds, default=0) < 0:
                raise ConfigFault(
                    f"more_seeds of '{arm}' are {list(seeds)}; give numbers >= 0, once each, that are not "
                    f"among the seeds {list(self.seeds)} of all arms"
                )
        if self.jobs < 1:
            raise ConfigFault(f"jobs is {self.jobs}; use at least 1")


class _StudyFile(BaseModel):
    """What may stand in a study file, with the types it must have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    arms: dict[str, Changes] = {}
    factors: dict[str, dict[str, Changes]] = {}
    baseline: str
    seeds: list[int] = [0, 1]
    more_seeds: dict[str, list[int]] = {}
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
    two ``base`` are merged key by key; ``arms`` or ``factors`` that are given replace all arms.

    Raises:
        ConfigFault: The file is missing, is no YAML, extends itself, or has an unknown or missing key.
    """
    checked = checked_file(path, read_file(path), _StudyFile)
    return StudySettings(
        name=checked.name,
        arms=_all_arms(path, checked),
        baseline=checked.baseline,
        seeds=tuple(checked.seeds),
        jobs=checked.jobs,
        base=checked.base,
        more_seeds={arm: tuple(seeds) for arm, seeds in checked.more_seeds.items()},
    )


def _all_arms(path: Path, checked: _StudyFile) -> dict[str, Mapping[str, Any]]:
    """The arms that are named, then those that cross the factors."""
    arms: dict[str, Mapping[str, Any]] = dict(checked.arms)
    if not checked.factors:
        return arms
    for name, changes in crossed(checked.factors).items():
        if name in arms:
            raise ConfigFault(f"{path}: '{name}' is an arm and a combination of factors; rename the arm")
        arms[name] = changes
    return arms


def crossed(factors: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    """Every combination of one level of each factor, the last factor varying fastest.

    An arm is named after its levels, joined by ``+``; levels called ``none`` are left out of the name.

    Args:
        factors: Factor → level → the keys that the level changes.

    Raises:
        ConfigFault: A factor has no level, two combinations have one name, or two factors change one key.
    """
    for name, levels in factors.items():
        if not levels:
            raise ConfigFault(f"the factor '{name}' has no levels; give at least one, or remove it")
    arms: dict[str, Mapping[str, Any]] = {}
    for combination in product(*(factor.items() for factor in factors.values())):
        _refuse_overlap(tuple(factors), [level for _, level in combination])
        name = "+".join(called for called, _ in combination if called != _UNNAMED) or _UNNAMED
        if name in arms:
            raise ConfigFault(f"two combinations of the factors are called '{name}'; rename a level")
        changes: dict[str, Any] = {}
        for _, more in combination:
            changes = merge(changes, nested(more))
        arms[name] = changes
    return arms


def _refuse_overlap(names: Sequence[str], levels: Sequence[Mapping[str, Any]]) -> None:
    """Merging would let one factor silently win over another."""
    seen: dict[str, str] = {}
    for factor, changes in zip(names, levels, strict=True):
        for key in flat(nested(changes)):
            for other, owner in seen.items():
                outer, inner = sorted((key, other), key=len)
                if owner != factor and f"{inner}.".startswith(f"{outer}."):
                    raise ConfigFault(
                        f"the factors '{owner}' and '{factor}' both change {outer}, and one would win "
                        "silently; let one factor change it"
                    )
            seen[key] = factor


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
    try:
        if path.resolve() in below:
            raise ConfigFault(f"the study file '{path}' extends itself, by way of others; break the circle")
        content = read_yaml(read_text(path, LARGEST_YAML))
    except OSError as error:
        raise ConfigFault(
            f"the study file '{path}' can't be read ({error.strerror or error}); give a file such as "
            "experiments/quick.yaml"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # no UTF-8, or a name with a NUL in it
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
    own_arms = {"arms", "factors"} & content.keys()
    left_out = foreign | ({"arms", "factors", "more_seeds"} if own_arms else frozenset())
    inherited = {key: value for key, value in inherited.items() if key not in left_out}
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
