"""Draws rooms with a task that can be solved: scene, goal, furniture and where every object lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from alfworld.gen import constants, goal_library

from envrl.envs.alfworld.problem import PlacedObject, Room, Task
from envrl.envs.alfworld.rooms import (
    LAMP_PLACES,
    TASK_TYPES,
    TOOLS,
    TYPICAL_LOAD,
    Receptacle,
    Scene,
    holdable,
    is_action_object,
    load_scene,
    scenes_for_split,
)
from envrl.errors import ConfigFault

T = TypeVar("T")

MAX_COPIES = 4
"""Most objects of one type in a room, as in the official games."""

_SMALLEST_ROOM = 4  # target, source, tool and lamp place may all differ
_NEVER_A_TARGET = frozenset({"SinkBasin", "BathtubBasin", "TowelHolder", "HandTowelHolder", "Toaster"})
_ROOM_FOR_ONE = frozenset({"CoffeeMachine", "StoveBurner", "ToiletPaperHanger"})
_PROPERTY = {
    "pick_clean_then_place_in_recep": "Cleanable",
    "pick_heat_then_place_in_recep": "Heatable",
    "pick_cool_then_place_in_recep": "Coolable",
}


@dataclass(frozen=True)
class RoomSettings:
    """How large and how hard generated rooms are."""

    receptacles: int | None = None
    """Pieces of furniture in the room, at least 4; None keeps all of the scene (6 to 54)."""
    objects_per_receptacle: float | None = None
    """Mean number of objects on a receptacle; None fills each type as full as official games do."""
    max_steps: int = 50
    """Environment steps an episode of these games may take; the expert must win within them."""
    task_types: tuple[str, ...] = TASK_TYPES
    """Task types to draw from, each equally likely."""
    shared_locations: bool = True
    """Neighbouring receptacles share one location, as in official games; False gives each its own."""

    def __post_init__(self) -> None:
        """Refuses settings no room can have.

        Raises:
            ConfigFault: A value is out of range or a task type is unknown or given twice.
        """
        if self.receptacles is not None and self.receptacles < _SMALLEST_ROOM:
            raise ConfigFault(
                f"receptacles={self.receptacles} is too small for the tasks: use 4 or more, or None"
            )
        if self.objects_per_receptacle is not None and not 0 < self.objects_per_receptacle <= 10:
            raise ConfigFault(
                f"objects_per_receptacle={self.objects_per_receptacle}: use a value in (0, 10], or None"
            )
        if self.max_steps < 1:
            raise ConfigFault(f"max_steps={self.max_steps}: an episode needs at least 1 step")
        if not self.task_types or len(set(self.task_types)) != len(self.task_types):
            raise ConfigFault(f"task_types={self.task_types}: name at least one task type, each once")
        for name in self.task_types:
            if name not in TASK_TYPES:
                raise ConfigFault(f"unknown task type {name!r}: use some of {', '.join(TASK_TYPES)}")


@dataclass(frozen=True, slots=True)
class _Goal:
    object_type: str
    receptacle_type: str


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _is_target(task_type: str, receptacle_type: str) -> bool:
    if receptacle_type in _NEVER_A_TARGET or receptacle_type == TOOLS.get(task_type):
        return False
    return task_type != "pick_two_obj_and_place" or receptacle_type not in _ROOM_FOR_ONE


def _sources(goal: _Goal, receptacles: Sequence[Receptacle]) -> list[Receptacle]:
    """Where a target object may lie at the start without being where it shall go."""
    return [r for r in _homes(goal, receptacles) if r.kind != goal.receptacle_type]


def _homes(goal: _Goal, receptacles: Sequence[Receptacle]) -> list[Receptacle]:
    return [r for r in receptacles if goal.object_type in holdable(r.kind)]


@cache
def _goals(number: int, task_type: str) -> tuple[tuple[_Goal, ...], ...]:
    """Goals that make sense in a scene, grouped by object type: it occurs, fits, and can be found."""
    scene = load_scene(number)
    if scene.room_type not in constants.GOALS_VALID[task_type]:
        return ()
    kinds = sorted({r.kind for r in scene.receptacles})
    if task_type in TOOLS and TOOLS[task_type] not in kinds:
        return ()
    if task_type == "look_at_obj_in_light":
        return tuple((_Goal(o, ""),) for o in scene.object_types) if scene.has_desk_lamp else ()
    objects = scene.object_types
    if task_type in _PROPERTY:
        objects = tuple(o for o in objects if is_action_object(_PROPERTY[task_type], o))
    targets = [k for k in kinds if _is_target(task_type, k)]
    groups = ([_Goal(o, k) for k in targets if o in holdable(k)] for o in objects)
    possible = (tuple(goal for goal in group if _sources(goal, scene.receptacles)) for group in groups)
    return tuple(group for group in possible if group)


@cache
def candidate_scenes(split: str, task_type: str, receptacles: int | None) -> tuple[int, ...]:
    """Scenes of a split in which a task type can be set and which have enough furniture.

    Raises:
        ConfigFault: There is none.
    """
    smallest = receptacles or 0
    fits = tuple(
        n
        for n in scenes_for_split(split)
        if _goals(n, task_type) and len(load_scene(n).receptacles) >= smallest
    )
    if not fits:
        raise ConfigFault(
            f"no scene of split {split!r} has {smallest} receptacles and a goal for {task_type}: "
            "ask for fewer receptacles or leave the task type out"
        )
    return fits


def _needed(rng: np.random.Generator, scene: Scene, task_type: str, goal: _Goal) -> list[Receptacle]:
    """One receptacle for each part the task needs: target, source, tool, place of the lamp."""
    groups = [_sources(goal, scene.receptacles)]
    groups += [[r for r in scene.receptacles if r.kind == kind] for kind in (goal.receptacle_type,) if kind]
    if task_type in TOOLS:
        groups.append([r for r in scene.receptacles if r.kind == TOOLS[task_type]])
    if task_type == "look_at_obj_in_light":
        groups.append([r for r in scene.receptacles if r.kind in LAMP_PLACES])
    return [_pick(rng, group) for group in groups]


def _draw_furniture(
    rng: np.random.Generator, scene: Scene, task_type: str, goal: _Goal, settings: RoomSettings
) -> tuple[Receptacle, ...]:
    chosen = list(scene.receptacles)
    if settings.receptacles is not None:
        keep = {r.identifier for r in _needed(rng, scene, task_type, goal)}
        rest = [r.identifier for r in scene.receptacles if r.identifier not in keep]
        order = rng.permutation(len(rest))
        keep.update(rest[i] for i in order[: settings.receptacles - len(keep)])
        chosen = [r for r in scene.receptacles if r.identifier in keep]
    if not settings.shared_locations:
        chosen = [Receptacle(r.identifier, r.kind, (i, 0, 0, 0)) for i, r in enumerate(chosen)]
    return tuple(chosen)


class _Shelver:
    """Puts objects on receptacles, fuller types more often, under fresh identifiers."""

    def __init__(self, rng: np.random.Generator, receptacles: Sequence[Receptacle]) -> None:
        self._rng = rng
        self._receptacles = receptacles
        self._names: set[str] = set()
        self.objects: list[PlacedObject] = []

    def _name(self, kind: str) -> str:
        while True:
            numbers = (float(v) / 100 for v in self._rng.integers(-999, 1000, size=3))
            name = "|".join([kind, *(f"{v:+06.2f}" for v in numbers)])
            if name not in self._names:
                self._names.add(name)
                return name

    def put(self, kind: str, places: Sequence[Receptacle]) -> None:
        """Lays one object of this type on one of the places."""
        weights = np.array([TYPICAL_LOAD[r.kind] for r in places])
        place = places[
            int(np.searchsorted(np.cumsum(weights), self._rng.random() * weights.sum(), side="right"))
        ]
        self.objects.append(PlacedObject(self._name(kind), kind, place.identifier))

    def put_anywhere(self, kind: str) -> None:
        """Lays one object of this type on any receptacle that may hold it, if there is one."""
        if places := [r for r in self._receptacles if kind in holdable(r.kind)]:
            self.put(kind, places)


def _draw_objects(
    rng: np.random.Generator,
    scene: Scene,
    task: Task,
    receptacles: tuple[Receptacle, ...],
    settings: RoomSettings,
) -> tuple[PlacedObject, ...]:
    """Targets first, so that the task can be solved and is not solved yet; then others up to the density."""
    shelver = _Shelver(rng, receptacles)
    goal = _Goal(task.object_type, task.receptacle_type)
    fewest = 2 if task.task_type == "pick_two_obj_and_place" else 1
    for _ in range(int(rng.integers(fewest, MAX_COPIES + 1))):
        # What must be cleaned, heated or cooled first may lie where it belongs, as in official games.
        places = _homes if task.task_type in TOOLS else _sources
        shelver.put(task.object_type, places(goal, receptacles))
    if task.toggle:
        shelver.put(task.toggle, [r for r in receptacles if r.kind in LAMP_PLACES])
    if settings.objects_per_receptacle is None:
        total = int(rng.poisson(sum(TYPICAL_LOAD[r.kind] for r in receptacles)))
    else:
        total = round(settings.objects_per_receptacle * len(receptacles))
    kinds = [kind for kind in scene.object_types if kind != task.object_type]
    stock = [kind for kind in kinds for _ in range(MAX_COPIES - 1)]
    for i in rng.permutation(len(stock))[: max(0, total - len(shelver.objects))]:
        shelver.put_anywhere(stock[i])
    return tuple(sorted(shelver.objects, key=lambda o: o.identifier))


def draw_room(rng: np.random.Generator, settings: RoomSettings, split: str) -> Room:
    """Draws one room with its task.

    Solvable by construction: target objects, the goal's receptacle and the tool are there and within
    reach. Not solved yet either: no target object is in the state, or the place, that is asked for.

    Raises:
        ConfigFault: No scene of the split has as many receptacles as asked for.
    """
    task_type = _pick(rng, settings.task_types)
    scene = load_scene(_pick(rng, candidate_scenes(split, task_type, settings.receptacles)))
    # Object type first, so that objects that fit in many places are not asked for more often.
    goal = _pick(rng, _pick(rng, _goals(scene.number, task_type)))
    toggle = "DeskLamp" if task_type == "look_at_obj_in_light" else ""
    template = int(rng.integers(len(goal_library.gdict[task_type]["templates"])))
    task = Task(task_type, goal.object_type, goal.receptacle_type, toggle, template)
    receptacles = _draw_furniture(rng, scene, task_type, goal, settings)
    objects = _draw_objects(rng, scene, task, receptacles, settings)
    # A point outside every layout: no receptacle is within reach at the start, as in official games.
    return Room(scene.number, receptacles, objects, (-60, int(rng.integers(-60, 61)), 0, 30), task)
