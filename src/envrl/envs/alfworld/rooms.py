"""What the alfworld package knows about its 120 rooms: furniture, where it stands, and what may lie on it.

Everything is read from the layout files and constants the package ships, offline. A layout file names
the openable and flat receptacles with the point to stand at; receptacles that need no such point
(stove burners, holders, machines) are named by type in the objects file only and get a place here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from alfworld.gen import constants

from envrl.errors import DataFault

TASK_TYPES: tuple[str, ...] = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""The six task types of the text games, in the official order."""

TOOLS: dict[str, str] = {
    "pick_clean_then_place_in_recep": "SinkBasin",
    "pick_heat_then_place_in_recep": "Microwave",
    "pick_cool_then_place_in_recep": "Fridge",
}
"""Receptacle that changes the object's state, for the task types that need one."""

UNSEEN_SCENES: frozenset[int] = frozenset({10, 219, 308, 424})
"""Scenes of the official ``valid_unseen`` split; games of any other split must not use them."""

TYPICAL_LOAD: dict[str, float] = {
    "CounterTop": 5.8, "DiningTable": 8.4, "Desk": 4.9, "Fridge": 4.1, "Bed": 3.9, "Dresser": 3.7,
    "CoffeeTable": 3.7, "TVStand": 3.2, "SideTable": 2.1, "Sofa": 2.0, "Toilet": 1.9, "SinkBasin": 1.4,
    "BathtubBasin": 1.4, "Cart": 1.3, "Shelf": 1.1, "Microwave": 1.0, "TowelHolder": 0.9,
    "GarbageCan": 0.7, "HandTowelHolder": 0.7, "StoveBurner": 0.6, "ArmChair": 0.6, "Ottoman": 0.5,
    "Drawer": 0.5, "Cabinet": 0.5, "CoffeeMachine": 0.4, "Safe": 0.4, "ToiletPaperHanger": 0.2,
    "LaundryHamper": 0.1, "Toaster": 0.1,
}  # fmt: skip
"""Mean number of objects on one receptacle of the type, counted over a fifteenth of the official games."""

LAMP_PLACES: tuple[str, ...] = (
    "CoffeeTable",
    "Desk",
    "DiningTable",
    "Dresser",
    "Shelf",
    "SideTable",
    "TVStand",
)
"""Receptacle types a lamp may stand on (the package's table of places leaves lamps out)."""

OPENABLE: frozenset[str] = frozenset(constants.OPENABLE_CLASS_SET)
_BASINS = {"Sink": "SinkBasin", "Bathtub": "BathtubBasin"}
_UNPLACED_COUNT = {"StoveBurner": 4}


@dataclass(frozen=True, slots=True)
class Receptacle:
    """A piece of furniture. ``identifier`` is ``Type|x|y|z``; ``location`` is the point to stand at."""

    identifier: str
    kind: str
    location: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Scene:
    """One room: number, room type (``Kitchen`` ...), furniture sorted by identifier, portable object types.

    ``has_desk_lamp``: the room has a desk lamp and something to stand it on. Floor lamps stand on the floor,
    where no command reaches them, in the official games; they are left out.
    """

    number: int
    room_type: str
    receptacles: tuple[Receptacle, ...]
    object_types: tuple[str, ...]
    has_desk_lamp: bool


@cache
def holdable(receptacle_type: str) -> frozenset[str]:
    """Object types that may lie in or on a receptacle of this type (unsliced ones)."""
    allowed = constants.VAL_RECEPTACLE_OBJECTS.get(receptacle_type, set())
    return frozenset(kind for kind in allowed if not kind.endswith("Sliced"))


@cache
def object_types() -> tuple[str, ...]:
    """All object types that may lie somewhere, sorted."""
    return tuple(sorted(set().union(*(holdable(kind) for kind in TYPICAL_LOAD))))


@cache
def is_action_object(action: str, object_type: str) -> bool:
    """Whether a type is ``Cleanable``, ``Heatable``, ``Coolable``, ``Toggleable`` or ``Sliceable``."""
    return object_type in constants.VAL_ACTION_OBJECTS[action]


def scene_numbers() -> tuple[int, ...]:
    """Numbers of all scenes, ascending: kitchens, living rooms, bedrooms, bathrooms."""
    return tuple(n for scenes in constants.SCENE_TYPE.values() for n in scenes)


def scenes_for_split(split: str) -> tuple[int, ...]:
    """Scenes a generated game of this split may use.

    A split whose name contains ``unseen`` uses the four official unseen scenes only; every other split
    uses the remaining 116, so that games seen in training and unseen ones never share a room.
    """
    unseen = "unseen" in split
    return tuple(n for n in scene_numbers() if (n in UNSEEN_SCENES) == unseen)


def room_type(number: int) -> str:
    """Room type of a scene number.

    Raises:
        DataFault: There is no such scene.
    """
    for name, scenes in constants.SCENE_TYPE.items():
        if number in scenes:
            return str(name)
    raise DataFault(f"there is no scene {number}: use 1-30, 201-230, 301-330 or 401-430")


def _placed(layout: dict[str, list[float]]) -> list[Receptacle]:
    """Receptacles of a layout file; a sink or bath becomes its basin, as in the official games."""
    found = []
    for name, (x, z, rotation, horizon) in sorted(layout.items()):
        kind = name.split("|", 1)[0]
        if kind in _BASINS:
            kind = _BASINS[kind]
            name = f"{name}|{kind}"
        if kind in TYPICAL_LOAD:
            point = (round(x * 4), round(z * 4), round(rotation / 90) % 4, round(horizon))
            found.append(Receptacle(name, kind, point))
    return found


def _unplaced(kinds: set[str], placed: list[Receptacle]) -> list[Receptacle]:
    """Receptacles named by type only: machines stand on the first worktop, burners in pairs, others alone."""
    have = {r.kind for r in placed}
    worktops = [r.location for r in placed if r.kind == "CounterTop"]
    found = []
    for row, kind in enumerate(sorted(kinds & set(TYPICAL_LOAD) - have)):
        for copy in range(_UNPLACED_COUNT.get(kind, 1)):
            # Points 40 quarter metres and more away lie outside every layout: no accidental sharing.
            point = (40 + row, 40 + copy // 2, 0, 30)
            if kind in ("CoffeeMachine", "Toaster") and worktops:
                point = worktops[0]
            name = f"{kind}|+{10 + row:02d}.00|+00.90|+{10 + copy:02d}.00"
            if kind in _BASINS.values():
                name = f"{kind.removesuffix('Basin')}{name.removeprefix(kind)}|{kind}"
            found.append(Receptacle(name, kind, point))
    return found


@cache
def load_scene(number: int) -> Scene:
    """Reads one room from the alfworld package.

    Args:
        number: Scene number, e.g. 7 for ``FloorPlan7``.

    Raises:
        DataFault: There is no such scene, or the package's layout files are missing.
    """
    kind = room_type(number)
    folder = files("alfworld.gen") / "layouts"
    try:
        layout = json.loads((folder / f"FloorPlan{number}-openable.json").read_text())
        names = set(json.loads((folder / f"FloorPlan{number}-objects.json").read_text()))
    except OSError as error:
        raise DataFault(
            f"layout of scene {number} is missing: reinstall the alfworld package ({error})"
        ) from error
    placed = _placed(layout)
    basins = {_BASINS[n] for n in names if n in _BASINS}
    receptacles = placed + _unplaced(names | basins, placed)
    kinds = {r.kind for r in receptacles}
    reachable = set().union(*(holdable(k) for k in kinds))
    return Scene(
        number=number,
        room_type=kind,
        receptacles=tuple(sorted(receptacles, key=lambda r: r.identifier)),
        object_types=tuple(sorted(names & reachable)),
        has_desk_lamp="DeskLamp" in names and not kinds.isdisjoint(LAMP_PLACES),
    )
