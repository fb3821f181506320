"""Answers conjunctions over a state's facts, in an order planned once per conjunction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envrl.envs.alfworld.facts import AGENT_AT, View
from envrl.envs.alfworld.pddl import Literal
from envrl.envs.alfworld.steps import EQUALITY, Kind, Runner, Step, chain
from envrl.errors import DataFault

_MOST_VARIABLES = 12
_MOST_UNRELATED = 3
"""Each multiplies the answers by the number of objects or facts; ALFWorld's conditions have at most two."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to answer a conjunction; ``variables`` names the slots, the first ``given`` are inputs."""

    variables: tuple[str, ...]
    given: int
    steps: tuple[Step, ...]
    runner: Runner

    def answers(self, values: Sequence[str], view: View) -> list[tuple[str, ...]]:
        """Values of all ``variables`` for each answer, given those of the first ``given``."""
        slots: list[str] = [*values, *[""] * (len(self.variables) - self.given)]
        found: list[tuple[str, ...]] = []
        self.runner(slots, view, found)
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
        DataFault: A negated atom has a variable nothing binds, or answering would take for ever.
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
    unrelated = sum(1 for step in steps if step.binds and not step.positions)
    if unrelated > _MOST_UNRELATED or len(slots) > _MOST_VARIABLES:
        raise DataFault(
            f"PDDL condition has {len(slots)} variables, {unrelated} of them unrelated, and would take for "
            f"ever; at most {_MOST_VARIABLES} and {_MOST_UNRELATED} are supported, so use ALFWorld's own "
            "domain and goals"
        )
    runner = chain(steps, _keep_all, changing)
    return Plan(tuple(slots), len(given), tuple(steps), runner)


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


@dataclass(frozen=True, slots=True)
class Question:
    """A plan without inputs, a number to know its answers by, and the slots wanted of them."""

    plan: Plan
    number: int
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Questionnaire:
    """Many plans answered in one pass: what several begin with is done once."""

    size: int
    runner: Runner

    def answers(self, view: View) -> list[tuple[int, tuple[str, ...]]]:
        """(number, wanted values) of each answer to each question."""
        found: list[Any] = []
        self.runner([""] * self.size, view, found)
        return found


def combine(questions: Sequence[Question], changing: Collection[str]) -> Questionnaire:
    """Merges plans by their common first steps (slots are numbered in the order steps bind them)."""
    size = max((len(q.plan.variables) for q in questions), default=0)
    return Questionnaire(size, _fork([(q.plan.steps, q) for q in questions], changing))


def _fork(questions: Sequence[tuple[tuple[Step, ...], Question]], changing: Collection[str]) -> Runner:
    branches: list[Runner] = []
    groups: dict[Step, list[tuple[tuple[Step, ...], Question]]] = {}
    for steps, question in questions:
        if steps:
            groups.setdefault(steps[0], []).append((steps[1:], question))
        else:
            branches.append(_keep(question))
    for step, group in groups.items():
        branches.append(chain([step], _fork(group, changing), changing))
    if len(branches) == 1:
        return branches[0]

    def run(slots: list[str], view: View, found: list[Any]) -> None:
        for branch in branches:
            branch(slots, view, found)

    return run


def _keep(question: Question) -> Runner:
    number, wanted = question.number, question.slots

    def run(slots: list[str], view: View, found: list[Any]) -> None:
        found.append((number, tuple([slots[i] for i in wanted])))

    return run


def _keep_all(slots: list[str], view: View, found: list[Any]) -> None:
    found.append(tuple(slots))
