"""Writes a furnished room and its task as the JSON of a ``game.tw-pddl`` file, as TextWorld plays it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from alfworld.gen import constants, goal_library
from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

from envrl.envs.alfworld.rooms import OPENABLE, Receptacle, holdable, is_action_object

_IDENTIFIER_ESCAPES = str.maketrans({"|": "_bar_", "+": "_plus_", "-": "_minus_", ".": "_dot_"})
_OBJECT_PREDICATES = (("cleanable", "Cleanable"), ("heatable", "Heatable"), ("coolable", "Coolable"))
# The domain's actions name these as constants; they must exist even where the room lacks them.
_CONSTANT_RECEPTACLES = ("SinkBasin", "Microwave", "Fridge")
_CONSTANT_OBJECTS = ("Knife", "ButterKnife")


@dataclass(frozen=True, slots=True)
class PlacedObject:
    """An object and the receptacle (by identifier) it lies in. ``identifier`` is ``Type|x|y|z``."""

    identifier: str
    kind: str
    receptacle: str


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked for; ``look_at_obj_in_light`` alone has a ``toggle`` and no ``receptacle_type``."""

    task_type: str
    object_type: str
    receptacle_type: str
    toggle: str
    template: int


@dataclass(frozen=True, slots=True)
class Room:
    """A furnished room with a task: everything a game file says."""

    scene: int
    receptacles: tuple[Receptacle, ...]
    objects: tuple[PlacedObject, ...]
    start: tuple[int, int, int, int]
    task: Task


def escape(identifier: str) -> str:
    """``Mug|+00.68|-02.20`` -> ``Mug_bar__plus_00_dot_68_bar__minus_02_dot_20``, as in official games."""
    return identifier.translate(_IDENTIFIER_ESCAPES)


def location_name(point: tuple[int, int, int, int]) -> str:
    """PDDL name of a point to stand at, as in official games: quarter metres, quarter turns, degrees."""
    return escape("loc|{}|{}|{}|{}".format(*point))


def instruction(task: Task) -> str:
    """The task in words, from the goal library's templates: lower case, no full stop."""
    template: str = goal_library.gdict[task.task_type]["templates"][task.template]
    return template.format(
        obj=task.object_type.lower(), recep=task.receptacle_type.lower(), toggle=task.toggle.lower()
    )


def _object_facts(placed: PlacedObject, location: str) -> Iterable[str]:
    name = escape(placed.identifier)
    yield f"(objectType {name} {placed.kind}Type)"
    yield f"(inReceptacle {name} {escape(placed.receptacle)})"
    yield f"(objectAtLocation {name} {location})"
    if is_action_object("Toggleable", placed.kind):
        yield f"(toggleable {name})"
        return
    yield f"(pickupable {name})"
    if placed.kind in constants.MOVABLE_RECEPTACLES_SET:
        yield f"(isReceptacleObject {name})"
    for predicate, action in (*_OBJECT_PREDICATES, ("sliceable", "Sliceable")):
        if is_action_object(action, placed.kind):
            yield f"({predicate} {name})"


def _facts(room: Room) -> list[str]:
    where = {r.identifier: location_name(r.location) for r in room.receptacles}
    object_kinds = sorted({o.kind for o in room.objects})
    facts = [f"(atLocation agent1 {location_name(room.start)})"]
    for receptacle in room.receptacles:
        name = escape(receptacle.identifier)
        facts.append(f"(receptacleType {name} {receptacle.kind}Type)")
        facts.append(f"(receptacleAtLocation {name} {where[receptacle.identifier]})")
        if receptacle.kind in OPENABLE:
            facts.append(f"(openable {name})")
    for kind in sorted({r.kind for r in room.receptacles}):
        facts += [f"(canContain {kind}Type {o}Type)" for o in object_kinds if o in holdable(kind)]
    for placed in room.objects:
        facts += _object_facts(placed, where[placed.receptacle])
    return facts


def _declarations(room: Room) -> list[str]:
    object_kinds = {o.kind for o in room.objects} | {room.task.object_type, *_CONSTANT_OBJECTS}
    receptacle_kinds = {r.kind for r in room.receptacles} | set(_CONSTANT_RECEPTACLES)
    points = {r.location for r in room.receptacles} | {room.start}
    return [
        "agent1 - agent",
        *(f"{kind}Type - otype" for kind in sorted(object_kinds)),
        *(f"{kind}Type - rtype" for kind in sorted(receptacle_kinds)),
        *(f"{escape(o.identifier)} - object" for o in room.objects),
        *(f"{escape(r.identifier)} - receptacle" for r in room.receptacles),
        *(f"{location_name(point)} - location" for point in sorted(points)),
    ]


def problem_text(room: Room) -> str:
    """The PDDL problem: declarations, facts in a fixed order, and the goal library's goal."""
    task = room.task
    goal = goal_library.gdict[task.task_type]["pddl"].format(
        obj=task.object_type, recep=task.receptacle_type, toggle=task.toggle
    )
    indent = "\n        "
    return (
        f"\n(define (problem plan_scene_{room.scene})\n(:domain alfred)\n(:objects\n        "
        f"{indent.join(_declarations(room))}\n        )\n\n"
        f"(:init\n        {indent.join(_facts(room))}\n        )\n{goal.replace('#', '-')}"
    )


@cache
def _package_text(path: str) -> str:
    return Path(path).read_text()


def game_data(room: Room) -> dict[str, Any]:
    """The JSON object of a game file, without the proof that it can be solved.

    Beside the three fields that define the game it tells the ``task_type`` and the ``scene``.
    """
    # The text goes into a JSON string of the grammar, so it is escaped as one.
    words = json.dumps(instruction(room.task))[1:-1]
    return {
        "pddl_domain": _package_text(ALFRED_PDDL_PATH),
        "grammar": _package_text(ALFRED_TWL2_PATH).replace("UNKNOWN GOAL", words),
        "pddl_problem": problem_text(room),
        "task_type": room.task.task_type,
        "scene": room.scene,
    }
