"""Auxiliary objectives by name, and how a configuration becomes a list of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from envrl.errors import ConfigFault
from envrl.losses.schedules import Schedule
from envrl.training.objectives.base import Objective
from envrl.training.objectives.dynamics import InverseDynamics, StatePrediction
from envrl.training.objectives.echo import Echo
from envrl.training.objectives.paw import PolicyAndWorld
from envrl.training.settings import LossSettings, ObjectiveSettings
from envrl.untrusted import standard_library

OBJECTIVES: dict[str, type[Objective]] = {"paw": PolicyAndWorld, "echo": Echo}
"""Objectives that ``loss.objectives`` knows by name; others are named ``module:class``."""

OWN_TERMS = frozenset({"policy", "entropy", "kl", "sp", "id", "value"})
"""Names of the terms that every run has or that have settings of their own."""


@dataclass(frozen=True)
class WeightedObjective:
    """An objective and how its weight changes over the iterations."""

    objective: Objective
    schedule: Schedule


def objectives_of(loss: LossSettings) -> tuple[WeightedObjective, ...]:
    """The paper's two objectives, then those of ``loss.objectives`` in their order.

    Raises:
        ConfigFault: An objective does not exist, has no such option, or two have the same name.
    """
    found = [WeightedObjective(StatePrediction(), loss.sp), WeightedObjective(InverseDynamics(), loss.id)]
    for settings in loss.objectives:
        objective = load_objective(settings)
        if objective.name in OWN_TERMS or objective.name in {w.objective.name for w in found}:
            raise ConfigFault(
                f"loss.objectives: {settings.use!r} gives a second term named {objective.name!r}; use each "
                "objective once (sp and id are weighted by loss.sp.weight and loss.id.weight)"
            )
        found.append(WeightedObjective(objective, settings.schedule))
    return tuple(found)


def load_objective(settings: ObjectiveSettings) -> Objective:
    """Builds an objective from its name and options.

    Raises:
        ConfigFault: There is none of that name, or it has no such option.
    """
    kind = OBJECTIVES.get(settings.use) or _imported(settings.use)
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]  # every objective is a dataclass
    if unknown := sorted(settings.options.keys() - set(known)):
        raise ConfigFault(
            f"loss.objectives: {settings.use!r} has no option {unknown[0]!r}; it knows "
            f"{', '.join(known) or 'none'}"
        )
    return _built(kind, settings.use, settings.options)


def questions_of(objectives: Sequence[Objective]) -> bool:
    """Whether any of them asks questions, so that rows beside the policy's are made."""
    return any(type(objective).ask is not Objective.ask for objective in objectives)


def may_read_policy_rows(objective: Objective) -> bool:
    """Whether an objective may have targets in the policy's rows; state prediction's settings decide.

    One with a ``mask`` of its own may read anything, inverse dynamics reads its questions.
    """
    if isinstance(objective, InverseDynamics):
        return False
    return objective.reads_policy_rows or type(objective).mask is not Objective.mask


def _built(kind: type[Objective], use: str, options: Mapping[str, Any]) -> Objective:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigFault(f"loss.objectives: {use!r} can't be built from {dict(options)}: {error}") from error


def _imported(use: str) -> type[Objective]:
    """The class that ``module:class`` names."""
    module, separator, name = use.partition(":")
    if not separator:
        raise ConfigFault(
            f"loss.objectives names {use!r}, which does not exist; use one of {', '.join(OBJECTIVES)}, or "
            "module:class of an own one (sp and id are weighted by loss.sp.weight and loss.id.weight)"
        )
    if standard_library(module):
        raise ConfigFault(f"loss.objectives names {use!r}, a module of Python's own; name one of yours")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigFault(
            f"loss.objectives names {use!r}, which can't be imported ({error}); put its folder on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise ConfigFault(
            f"loss.objectives names {use!r}, which is no auxiliary objective; derive it from "
            "envrl.training.objectives.base.Objective"
        )
    return found
