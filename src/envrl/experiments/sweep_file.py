"""The sweep file: what is varied, how it is searched, and what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from envrl.errors import ConfigFault
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.study_file import Changes, checked_file, read_file, require_folder_name
from envrl.experiments.sweep_space import Choices, Parameter, Range, Space, Value

SamplerKind = Literal["tpe", "cmaes", "gp", "random", "grid", "nsga2", "qmc"]
PrunerKind = Literal["none", "median", "hyperband", "asha", "wilcoxon"]
Objective = Literal["success", "seconds"]
_STUDY_KEYS = frozenset({"arms", "factors", "baseline", "more_seeds", "jobs"})
"""Keys of a study file, which a sweep that extends one does not take over."""
_FIXED = ("seed", "evaluation", "env", "train.threads", "train.transcripts")
"""What a sweep must not vary: seeds have a key of their own, and trials are compared on one panel."""
_EXAMPLE = "sweep_aux_weights.yaml"


@dataclass(frozen=True)
class Method:
    """A sampler or pruner of Optuna with its options.

    Attributes:
        kind: Which.
        options: Keyword arguments of Optuna's class; ``seed`` is the sampler's root seed.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepSettings:
    """A sweep with everything checked that can be checked without work.

    Raises:
        ConfigFault: The settings contradict each other or a run refuses a value of the space.
    """

    name: str
    """Name of the sweep, its folder and its MLflow parent run."""
    space: Space
    """What is varied."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the run configuration that differ from the defaults, for all trials."""
    sampler: Method = Method("tpe")
    """How the next trial is chosen."""
    pruner: Method = Method("none")
    """When a trial is given up."""
    objectives: tuple[Objective, ...] = ("success",)
    """What is measured: success on the panel after training (higher is better), seconds of a run (lower)."""
    trials: int = 20
    """Trials in all, over all processes and all continuations."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each trial; its value is the mean over them."""
    enqueue: tuple[Mapping[str, Value], ...] = ()
    """Settings that are tried first."""

    def __post_init__(self) -> None:
        require_folder_name(self.name)
        if self.trials < 1:
            raise ConfigFault(f"trials is {self.trials}; use at least 1")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigFault(f"seeds are {list(self.seeds)}; give different numbers >= 0")
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            raise ConfigFault("objectives: give success, seconds, or both, each once")
        if len(self.enqueue) > self.trials:
            raise ConfigFault(
                f"enqueue holds {len(self.enqueue)} settings, but there are {self.trials} trials; use more"
            )
        self._check_methods()

    def _check_methods(self) -> None:
        if len(self.objectives) > 1 and self.sampler.kind != "nsga2":
            raise ConfigFault(f"sampler {self.sampler.kind} has one objective; for two, use kind: nsga2")
        if len(self.objectives) > 1 and self.pruner.kind != "none":
            raise ConfigFault(f"pruner {self.pruner.kind} needs a single objective; use kind: none")
        if self.pruner.kind != "none" and self.objectives != ("success",):
            raise ConfigFault("a pruner compares success on the panel; use objectives: [success]")
        if self.pruner.kind != "none" and "train.iterations" in self.space.parameters:
            raise ConfigFault(
                "space.train.iterations: a pruner compares runs of one length; use pruner: {kind: none}"
            )
        if self.sampler.kind == "grid":
            self.space.grid()
            if self.enqueue:
                raise ConfigFault("a grid tries every setting; leave out enqueue")

    @property
    def most_trials(self) -> int:
        """Trials in all; a grid ends when it is used up."""
        if self.sampler.kind != "grid":
            return self.trials
        size = 1
        for values in self.space.grid().values():
            size *= len(values)
        return min(self.trials, size)

    def config(self, values: Mapping[str, Value], seed: int) -> RunConfig:
        """The run of a trial.

        Raises:
            ConfigFault: The values exclude each other.
        """
        return config_from(self.base, values, {"seed": seed})

    def check(self) -> None:
        """Compares the space and the enqueued settings with what a run accepts.

        Raises:
            ConfigFault: A field does not exist, or a value is impossible.
        """
        config_from(self.base)
        self.space.check(self.base, _FIXED)
        for number, setting in enumerate(self.enqueue):
            self.space.check_setting(setting, self.base, f"enqueue[{number}]")


@dataclass(frozen=True)
class StorageSettings:
    """Which storage, and when another machine's trial counts as abandoned.

    Attributes:
        address: A database URL or ``journal:PATH``; None for SQLite in the sweep's folder.
        heartbeat_s: Seconds between two signs of life of a running trial.
        grace_s: A trial that has given no sign of life for so many seconds is taken over.
        patience_s: How long a sweep waits for a database server that has gone away.

    Raises:
        ConfigFault: The times are impossible.
    """

    address: str | None = None
    heartbeat_s: int = 30
    grace_s: int = 180
    patience_s: float = 300.0

    def __post_init__(self) -> None:
        if self.heartbeat_s < 1:
            raise ConfigFault(f"--heartbeat is {self.heartbeat_s}; use at least 1 second")
        if self.grace_s <= self.heartbeat_s:
            raise ConfigFault(
                f"--grace is {self.grace_s}, not above --heartbeat, {self.heartbeat_s}; "
                "living trials would be taken over, so use a larger number of seconds"
            )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Parameter(_Strict):
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    whole: bool = Field(default=False, alias="int")
    choices: list[Value] | None = None
    when: dict[str, Value | list[Value]] = {}


class _Sampler(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    kind: SamplerKind = "tpe"


class _Pruner(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    kind: PrunerKind = "none"


class _SweepFile(_Strict):
    """What may stand in a sweep file, with the types it must have."""

    name: str
    space: dict[str, _Parameter]
    base: Changes = {}
    sampler: _Sampler = _Sampler()
    pruner: _Pruner = _Pruner()
    objectives: list[Objective] = ["success"]
    trials: int = 20
    seeds: list[int] = [0]
    enqueue: list[dict[str, Value]] = []
    extends: str | None = None


def load_sweep(path: Path) -> SweepSettings:
    """Reads a sweep file, and the one it ``extends``: another sweep's, or a study's for its base.

    Raises:
        ConfigFault: The file is missing, is no YAML, has an unknown or missing key, or asks for something
            that a run does not have or does not accept.
    """
    checked = checked_file(path, read_file(path, _STUDY_KEYS), _SweepFile, _EXAMPLE)
    try:
        settings = SweepSettings(
            name=checked.name,
            space=Space({name: _parameter(name, p) for name, p in checked.space.items()}),
            base=checked.base,
            sampler=Method(checked.sampler.kind, checked.sampler.model_extra or {}),
            pruner=Method(checked.pruner.kind, checked.pruner.model_extra or {}),
            objectives=tuple(checked.objectives),
            trials=checked.trials,
            seeds=tuple(checked.seeds),
            enqueue=tuple(checked.enqueue),
        )
        settings.check()
    except ConfigFault as fault:
        raise ConfigFault(f"{path}: {fault}") from fault
    return settings


def _parameter(name: str, written: _Parameter) -> Parameter:
    given = written.model_fields_set
    when = {o: tuple(v) if isinstance(v, list) else (v,) for o, v in written.when.items()}
    if empty := [other for other, values in when.items() if not values]:
        raise ConfigFault(f"space.{name}: when gives '{empty[0]}' no value")
    try:
        if written.choices is not None:
            if numeric := given & {"low", "high", "log", "step", "whole"}:
                raise ConfigFault(f"choices stand alone; leave out {', '.join(sorted(numeric))}")
            return Parameter(Choices(tuple(written.choices)), when)
        if written.low is None or written.high is None:
            raise ConfigFault("give low and high, or choices")
        return Parameter(Range(written.low, written.high, written.log, written.step, written.whole), when)
    except ConfigFault as fault:
        raise ConfigFault(f"space.{name}: {fault}") from fault
