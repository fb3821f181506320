"""A small kitchen written by hand, on the domain and grammar the alfworld package ships.

Agent at loc 0; countertop (mug a, mug b, knife, apple) and sink basin share loc 1; fridge (closed, with
lettuce) at loc 2; microwave (closed) at loc 3; desk with desk lamp at loc 4.
"""

from __future__ import annotations

from pathlib import Path

import alfworld.info

GOAL = """(exists (?r - receptacle ?o - object)
    (and (inReceptacle ?o ?r) (isHot ?o) (receptacleType ?r FridgeType)))"""

_OBJECTS = """
agent1 - agent
loc_bar_0 - location loc_bar_1 - location loc_bar_2 - location loc_bar_3 - location loc_bar_4 - location
CounterTop_bar_1 - receptacle Sink_bar_1_bar_SinkBasin - receptacle Fridge_bar_1 - receptacle
Microwave_bar_1 - receptacle Desk_bar_1 - receptacle
Mug_bar_a - object Mug_bar_b - object Knife_bar_1 - object Apple_bar_1 - object Lettuce_bar_1 - object
DeskLamp_bar_1 - object
CounterTopType - rtype SinkBasinType - rtype SinkType - rtype FridgeType - rtype MicrowaveType - rtype
DeskType - rtype
MugType - otype KnifeType - otype ButterKnifeType - otype AppleType - otype LettuceType - otype
DeskLampType - otype
"""
_FACTS = """
(atLocation agent1 loc_bar_0)
(receptacleAtLocation CounterTop_bar_1 loc_bar_1) (receptacleAtLocation Sink_bar_1_bar_SinkBasin loc_bar_1)
(receptacleAtLocation Fridge_bar_1 loc_bar_2) (receptacleAtLocation Microwave_bar_1 loc_bar_3)
(receptacleAtLocation Desk_bar_1 loc_bar_4)
(receptacleType CounterTop_bar_1 CounterTopType) (receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType)
(receptacleType Fridge_bar_1 FridgeType) (receptacleType Microwave_bar_1 MicrowaveType)
(receptacleType Desk_bar_1 DeskType)
(openable Fridge_bar_1) (openable Microwave_bar_1)
(inReceptacle Mug_bar_a CounterTop_bar_1) (objectAtLocation Mug_bar_a loc_bar_1)
(objectType Mug_bar_a MugType)
(inReceptacle Mug_bar_b CounterTop_bar_1) (objectAtLocation Mug_bar_b loc_bar_1)
(objectType Mug_bar_b MugType)
(inReceptacle Knife_bar_1 CounterTop_bar_1) (objectAtLocation Knife_bar_1 loc_bar_1)
(objectType Knife_bar_1 KnifeType)
(inReceptacle Apple_bar_1 CounterTop_bar_1) (objectAtLocation Apple_bar_1 loc_bar_1)
(objectType Apple_bar_1 AppleType)
(inReceptacle Lettuce_bar_1 Fridge_bar_1) (objectAtLocation Lettuce_bar_1 loc_bar_2)
(objectType Lettuce_bar_1 LettuceType)
(inReceptacle DeskLamp_bar_1 Desk_bar_1) (objectAtLocation DeskLamp_bar_1 loc_bar_4)
(objectType DeskLamp_bar_1 DeskLampType)
(pickupable Mug_bar_a) (pickupable Mug_bar_b) (pickupable Knife_bar_1) (pickupable Apple_bar_1)
(pickupable Lettuce_bar_1) (toggleable DeskLamp_bar_1)
(cleanable Mug_bar_a) (cleanable Mug_bar_b) (cleanable Apple_bar_1)
(heatable Mug_bar_a) (heatable Apple_bar_1)
(coolable Mug_bar_a) (coolable Apple_bar_1) (sliceable Apple_bar_1)
(canContain CounterTopType MugType) (canContain CounterTopType KnifeType)
(canContain CounterTopType AppleType)
(canContain SinkBasinType MugType) (canContain SinkBasinType KnifeType)
(canContain SinkBasinType AppleType)
(canContain FridgeType MugType) (canContain FridgeType AppleType) (canContain FridgeType LettuceType)
(canContain MicrowaveType MugType) (canContain MicrowaveType AppleType) (canContain DeskType MugType)
"""


def tiny_game(goal: str = GOAL, facts: str = _FACTS, task: str = "heat a mug") -> dict[str, str]:
    """Content of a game file."""
    return {
        "pddl_domain": Path(alfworld.info.ALFRED_PDDL_PATH).read_text(),
        "grammar": Path(alfworld.info.ALFRED_TWL2_PATH).read_text().replace("UNKNOWN GOAL", task),
        "pddl_problem": (
            f"(define (problem tiny) (:domain alfred) (:objects {_OBJECTS}) (:init {facts}) (:goal {goal}))"
        ),
    }


def without(fact: str) -> str:
    """The facts less one."""
    assert fact in _FACTS
    return _FACTS.replace(fact, "")


def plus(fact: str) -> str:
    """The facts and one more."""
    return _FACTS + fact
