"""Answers conjunctions over a state's facts, in an order planned once per conjunction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from envrl.envs.alfworld.facts import AGENT_AT, Positions, View
from envrl.envs.alfworld.pddl import Literal
from envrl.errors import DataFault

EQUALITY = "="


class Kind(Enum):
    """What a step of a plan does."""

    MATCH = "match"
    """Goes through the true facts that fit what is known."""
    ABSENT = "absent"
    """Goes on only if the fact is not true."""
    EQUAL = "equal"
    """Goes on only if the two terms are equal."""
    DIFFERENT = "different"
    """Goes on only if the two terms differ."""
    RANGE = "range"
    """Goes through all objects of a type."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: ``sources`` are slots (numbers) or constants that give the arguments at ``positions``;
    ``binds`` are (position, slot) of what the step finds out, ``same`` positions that must agree."""

    kind: Kind
    predicate: str
    positions: Positions
    sources: tuple[int | str, ...]
    binds: tuple[tuple[int, int], ...]
    same: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps to answer a conjunction; ``variables`` names the slots, the first ``given`` are inputs."""

    variables: tuple[str, ...]
    given: int
    steps: tuple[Step, ...]

    def answers(self, values: Sequence[str], view: View) -> list[tuple[str, ...]]:
        """Values of all ``variables`` for each answer, given those of the first ``given``."""
        slots: list[str] = [*values, *[""] * (len(self.variables) - self.given)]
        found: list[tuple[str, ...]] = []
        _run(self.steps, 0, slots, view, found)
        return found


def plan(
    literals: Iterable[Literal], types: Mapping[str, str], given: Sequence[str], changing: Collection[str]
) -> Plan:
    """Orders a conjunction so that each step has as much as possible to go by.

    Args:
        literals: The conjunction.
        types: Type of each variable; one that no positive literal binds ranges over its type.
        given: Variables whose values are known beforehand.
        changing: Predicates that actions can change.

    Raises:
        DataFault: A negated atom has a variable nothing binds.
    """
    slots = {v: i for i, v in enumerate(given)}
    rest = list(literals)
    steps: list[Step] = []
    while rest:
        literal = min(rest, key=lambda lit: _rank(lit, slots, changing))
        rest.remove(literal)
        if _open(literal, slots) and (not literal.positive or literal.predicate == EQUALITY):
            for variable in dict.fromkeys(a for a in literal.args if _is_open(a, slots)):
                steps.append(_range(variable, types, slots))
        steps.append(_step(literal, slots))
    for variable in types:
        if variable not in slots:
            steps.append(_range(variable, types, slots))
    return Plan(tuple(slots), len(given), tuple(steps))


def _range(variable: str, types: Mapping[str, str], slots: dict[str, int]) -> Step:
    if variable not in types:
        raise DataFault(f"PDDL condition uses the undeclared variable {variable!r}")
    slots[variable] = len(slots)
    return Step(Kind.RANGE, types[variable], (), (), ((0, slots[variable]),), ())


def _step(literal: Literal, slots: dict[str, int]) -> Step:
    known = tuple(i for i, a in enumerate(literal.args) if not _is_open(a, slots))
    sources = tuple(slots.get(literal.args[i], literal.args[i]) for i in known)
    if literal.predicate == EQUALITY:
        return Step(Kind.EQUAL if literal.positive else Kind.DIFFERENT, EQUALITY, known, sources, (), ())
    if not literal.positive:
        return Step(Kind.ABSENT, literal.predicate, known, sources, (), ())
    binds: list[tuple[int, int]] = []
    same: list[tuple[int, int]] = []
    first: dict[str, int] = {}
    for i, arg in enumerate(literal.args):
        if i in known:
            continue
        if arg in first:
            same.append((first[arg], i))
        else:
            first[arg] = i
            slots[arg] = len(slots)
            binds.append((i, slots[arg]))
    return Step(Kind.MATCH, literal.predicate, known, sources, tuple(binds), tuple(same))


def _is_open(arg: str, slots: Mapping[str, int]) -> bool:
    return arg.startswith("?") and arg not in slots


def _open(literal: Literal, slots: Mapping[str, int]) -> int:
    return sum(1 for a in literal.args if _is_open(a, slots))


def _rank(literal: Literal, slots: Mapping[str, int], changing: Collection[str]) -> int:
    """Tests first, then the agent's place, then what something known narrows down."""
    open_ = _open(literal, slots)
    if open_ == 0:
        return 0 if literal.predicate not in changing else 1
    if not literal.positive or literal.predicate == EQUALITY:
        return 1000
    if literal.predicate == AGENT_AT:
        return 2
    narrowed = open_ < len(literal.args)
    if literal.predicate in changing:  # few of these are true at any time
        return (10 if narrowed else 100) + open_
    return (20 if narrowed else 200) + open_


def _run(
    steps: tuple[Step, ...], at: int, slots: list[str], view: View, found: list[tuple[str, ...]]
) -> None:
    if at == len(steps):
        found.append(tuple(slots))
        return
    step = steps[at]
    kind = step.kind
    if kind is Kind.RANGE:
        slot = step.binds[0][1]
        for value in view.facts.objects(step.predicate):
            slots[slot] = value
            _run(steps, at + 1, slots, view, found)
        return
    key = tuple([slots[s] if s.__class__ is int else s for s in step.sources])
    if kind is Kind.MATCH:
        for args in view.rows(step.predicate, step.positions, key):  # type: ignore[arg-type]
            if step.same and any(args[i] != args[j] for i, j in step.same):
                continue
            for position, slot in step.binds:
                slots[slot] = args[position]
            _run(steps, at + 1, slots, view, found)
    elif kind is Kind.ABSENT:
        if not view.rows(step.predicate, step.positions, key):  # type: ignore[arg-type]
            _run(steps, at + 1, slots, view, found)
    elif (key[0] == key[1]) == (kind is Kind.EQUAL):
        _run(steps, at + 1, slots, view, found)
