"""The space of a sweep: which fields of a run are varied, and between what."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from envrl.errors import ConfigFault
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.plain import as_plain

if TYPE_CHECKING:
    from optuna import Trial

Value: TypeAlias = bool | int | float | str | None
"""What a field can be set to."""


@dataclass(frozen=True)
class Range:
    """A number between two bounds, both included.

    Raises:
        ConfigFault: The bounds are impossible.
    """

    low: float
    high: float
    log: bool = False
    """Drawn evenly on a logarithmic scale."""
    step: float | None = None
    """Distance between values; null = any, and 1 for whole numbers."""
    whole: bool = False
    """Whole numbers (``int: true``)."""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigFault(f"low is {self.low}, above high, {self.high}; exchange them")
        if self.log and self.low <= 0:
            raise ConfigFault(f"low is {self.low}, which has no logarithm; use a number > 0, or log: false")
        if self.log and self.step is not None:
            raise ConfigFault("a logarithmic range has no steps; leave out log or step")
        if self.step is not None and self.step <= 0:
            raise ConfigFault(f"step is {self.step}; use a number > 0")
        if self.whole and any(v != int(v) for v in (self.low, self.high, self.step or 1)):
            raise ConfigFault("low, high and step of whole numbers (int: true) must be whole")

    def suggest(self, trial: Trial, name: str) -> Value:
        """The trial's value."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def examples(self) -> list[Value]:
        """Values that a run must accept for all of them to be possible: the bounds and one between."""
        if self.whole:
            return [int(self.low), int(self.high)]
        between = self.low + (self.high - self.low) * 0.4321 if self.step is None else self.low + self.step
        return [self.low, self.high, min(between, self.high)]

    def values(self) -> list[Value] | None:
        """All values; None if they can't be counted."""
        if self.whole:
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            return None
        return [self.low + n * self.step for n in range(int((self.high - self.low) / self.step + 1e-9) + 1)]

    def holds(self, value: Value) -> bool:
        """Whether the range has the value."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (self.whole and not isinstance(value, int)):
            return False
        known = None if self.log else self.values()
        if known is not None:
            return any(abs(float(value) - float(v)) < 1e-9 for v in known)  # type: ignore[arg-type]
        return self.low <= float(value) <= self.high  # type: ignore[arg-type]


@dataclass(frozen=True)
class Choices:
    """One of several values."""

    choices: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.choices:
            raise ConfigFault("choices is empty; give at least one value")
        if len({repr(c) for c in self.choices}) != len(self.choices):
            raise ConfigFault("choices holds a value twice; give each once")

    def suggest(self, trial: Trial, name: str) -> Value:
        """The trial's value."""
        chosen: Value = trial.suggest_categorical(name, list(self.choices))
        return chosen

    def examples(self) -> list[Value]:
        """All values."""
        return list(self.choices)

    def values(self) -> list[Value]:
        """All values."""
        return list(self.choices)

    def holds(self, value: Value) -> bool:
        """Whether it is one of the values."""
        return any(value == c and isinstance(value, bool) == isinstance(c, bool) for c in self.choices)


@dataclass(frozen=True)
class Parameter:
    """A field of the run configuration that a sweep varies."""

    domain: Range | Choices
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Other parameters and the values of theirs with which this one is varied; without one of these values
    it stays as in the base."""


@dataclass(frozen=True)
class Space:
    """All parameters of a sweep, those that others depend on first.

    Raises:
        ConfigFault: A condition names no parameter, a value that the parameter can't have, or a circle.
    """

    parameters: Mapping[str, Parameter]

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ConfigFault("space is empty; name at least one field of the run configuration")
        for name, parameter in self.parameters.items():
            for other, values in parameter.when.items():
                if other not in self.parameters:
                    raise ConfigFault(
                        f"space.{name}: when names '{other}', which is not in the space; "
                        f"it has {', '.join(self.parameters)}"
                    )
                for value in values:
                    if not self.parameters[other].domain.holds(value):
                        raise ConfigFault(f"space.{name}: '{other}' is never {value!r}, so it has no effect")
        object.__setattr__(self, "parameters", self._in_order())

    def _in_order(self) -> dict[str, Parameter]:
        done: dict[str, Parameter] = {}
        while len(done) < len(self.parameters):
            ready = [n for n, p in self.parameters.items() if n not in done and p.when.keys() <= done.keys()]
            if not ready:
                left = ", ".join(n for n in self.parameters if n not in done)
                raise ConfigFault(f"the conditions of {left} depend on each other; break the circle")
            done |= {name: self.parameters[name] for name in ready}
        return done

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """The trial's values of the parameters whose conditions are met."""
        values: dict[str, Value] = {}
        for name, parameter in self.parameters.items():
            if all(o in values and values[o] in wanted for o, wanted in parameter.when.items()):
                values[name] = parameter.domain.suggest(trial, name)
        return values

    def check(self, base: Mapping[str, Any], fixed: Sequence[str]) -> None:
        """Refuses fields that a run does not have and values that it does not accept.

        Args:
            base: Run configuration that the values are laid over.
            fixed: Fields, or groups of fields, that a sweep must not vary.

        Raises:
            ConfigFault: The message names the field and, if it was misspelt, those like it.
        """
        known = _leaves(as_plain(RunConfig()))
        for name in self.parameters:
            if name not in known:
                raise ConfigFault(f"space: a run has no field '{name}'{_near(name, known)}")
            if any(name == f or name.startswith(f"{f}.") for f in fixed):
                raise ConfigFault(
                    f"space.{name}: trials that differ in it can't be compared; set it under `base:`"
                )
        # Building a configuration takes a moment, so values are first tried many at a time.
        suspects = dict(self.parameters) if self._refused_together(base) else self._conditional()
        for name, parameter in suspects.items():
            for value in parameter.domain.examples():
                try:
                    config_from(base, self._needed(name), {name: value})
                except ConfigFault as fault:
                    hint = ""
                    if isinstance(parameter.domain, Range) and not parameter.domain.whole:
                        hint = " (a field of whole numbers needs int: true)"
                    raise ConfigFault(f"space.{name}: {value!r} is refused: {fault}{hint}") from fault

    def _conditional(self) -> dict[str, Parameter]:
        return {name: parameter for name, parameter in self.parameters.items() if parameter.when}

    def _refused_together(self, base: Mapping[str, Any]) -> bool:
        """Whether a run refuses the examples of all unconditional parameters, laid side by side."""
        examples = {n: p.domain.examples() for n, p in self.parameters.items() if not p.when}
        try:
            for row in range(max(map(len, examples.values()))):
                config_from(base, {name: values[row % len(values)] for name, values in examples.items()})
        except ConfigFault:
            return True
        return False

    def check_setting(self, setting: Mapping[str, Any], base: Mapping[str, Any], place: str) -> None:
        """Refuses a setting that no trial can have.

        Raises:
            ConfigFault: It names a parameter outside the space, or a value that the parameter can't have.
        """
        for name, value in setting.items():
            if name not in self.parameters:
                raise ConfigFault(f"{place}: '{name}' is not in the space{_near(name, self.parameters)}")
            if not self.parameters[name].domain.holds(value):
                raise ConfigFault(f"{place}: {name} is {value!r}, which the space does not hold; widen it")
        try:
            config_from(base, setting)
        except ConfigFault as fault:
            raise ConfigFault(f"{place}: {fault}") from fault

    def grid(self) -> dict[str, list[Value]]:
        """All values of each parameter.

        Raises:
            ConfigFault: One has no end of values, or is only varied under a condition.
        """
        result: dict[str, list[Value]] = {}
        for name, parameter in self.parameters.items():
            values = parameter.domain.values()
            if values is None:
                raise ConfigFault(f"space.{name}: a grid needs choices, a step, or int: true")
            if parameter.when:
                raise ConfigFault(f"space.{name}: a grid has no conditions; leave out `when`")
            result[name] = values
        return result

    def _needed(self, name: str) -> dict[str, Value]:
        """Values of other parameters with which this one is varied."""
        needed: dict[str, Value] = {}
        for other, values in self.parameters[name].when.items():
            needed |= {**self._needed(other), other: values[0]}
        return needed


def _leaves(mapping: Mapping[str, Any], prefix: str = "") -> list[str]:
    names: list[str] = []
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        names += _leaves(value, f"{path}.") if isinstance(value, Mapping) else [path]
    return names


def _near(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The names that are probably meant."""
    last = name.rsplit(".", 1)[-1]
    ends = [other for other in known if other.rsplit(".", 1)[-1] == last]
    near = list(dict.fromkeys([*difflib.get_close_matches(name, known, n=3), *ends]))[:3]
    return f"; is {' or '.join(near)} meant?" if near else "; see python -m envrl.experiments.train --help"
