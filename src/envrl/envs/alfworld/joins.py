"""Answers conjunctions over a state's facts, in an order planned once per conjunction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from envrl.envs.alfworld.facts import AGENT_AT, NEGATED, Args, Positions, View
from envrl.envs.alfworld.pddl import Literal
from envrl.errors import DataFault

EQUALITY = "="
Runner = Callable[[list[str], View, list[Any]], None]
"""Carries out the rest of a plan: reads and fills the slots, appends the answers it finds."""
KeyMaker = Callable[[list[str]], Args]


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
    runner = _chain(steps, _keep_all, changing)
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
        branches.append(_chain([step], _fork(group, changing), changing))
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


def _chain(steps: Sequence[Step], last: Runner, changing: Collection[str]) -> Runner:
    """Chains the steps from the last to the first, each as one function that calls the next."""
    runner = last
    for step in reversed(steps):
        if step.kind is Kind.RANGE:
            runner = _range_runner(step, runner)
        elif step.kind in (Kind.EQUAL, Kind.DIFFERENT):
            runner = _equality_runner(step, runner)
        else:
            runner = _fact_runner(step, runner, step.predicate.removeprefix(NEGATED) in changing)
    return runner


def _range_runner(step: Step, proceed: Runner) -> Runner:
    slot = step.binds[0][1]

    def run(slots: list[str], view: View, found: list[Any]) -> None:
        for value in view.facts.objects(step.predicate):
            slots[slot] = value
            proceed(slots, view, found)

    return run


def _equality_runner(step: Step, proceed: Runner) -> Runner:
    key_of = _key_maker(step.sources)
    equal = step.kind is Kind.EQUAL

    def run(slots: list[str], view: View, found: list[Any]) -> None:
        key = key_of(slots)
        if (key[0] == key[1]) == equal:
            proceed(slots, view, found)

    return run


def _fact_runner(step: Step, proceed: Runner, changing: bool) -> Runner:
    key_of = _key_maker(step.sources)
    shape = (step.predicate, step.positions)
    if step.predicate == AGENT_AT:
        rows_of = partial(View.place_rows, positions=step.positions)
    else:
        rows_of = partial(View.changing_rows if changing else View.fixed_rows, shape=shape)
    if step.kind is Kind.ABSENT:
        return _absent_runner(key_of, rows_of, proceed)
    if not step.binds:
        return _present_runner(key_of, rows_of, proceed)
    binds, same = step.binds, step.same

    def run(slots: list[str], view: View, found: list[Any]) -> None:
        for args in rows_of(view, key_of(slots)):
            if same and any(args[i] != args[j] for i, j in same):
                continue
            for position, slot in binds:
                slots[slot] = args[position]
            proceed(slots, view, found)

    return run


def _absent_runner(key_of: KeyMaker, rows_of: Callable[..., Sequence[Args]], proceed: Runner) -> Runner:
    def run(slots: list[str], view: View, found: list[Any]) -> None:
        if not rows_of(view, key_of(slots)):
            proceed(slots, view, found)

    return run


def _present_runner(key_of: KeyMaker, rows_of: Callable[..., Sequence[Args]], proceed: Runner) -> Runner:
    def run(slots: list[str], view: View, found: list[Any]) -> None:
        if rows_of(view, key_of(slots)):
            proceed(slots, view, found)

    return run


def _key_maker(sources: tuple[int | str, ...]) -> KeyMaker:
    """Function from slots to the known arguments; slots are numbers, constants stand for themselves."""
    if not sources:
        return lambda slots: ()
    if len(sources) == 1 and isinstance(sources[0], int):
        only = sources[0]
        return lambda slots: (slots[only],)
    if len(sources) == 2 and isinstance(sources[0], int) and isinstance(sources[1], int):
        left, right = sources[0], sources[1]
        return lambda slots: (slots[left], slots[right])
    # A constant is kept as its own one-value getter, so that no test is left for when it runs.
    parts = [_slot_getter(s) if isinstance(s, int) else _constant_getter(s) for s in sources]
    return lambda slots: tuple([get(slots) for get in parts])


def _slot_getter(slot: int) -> Callable[[list[str]], str]:
    return lambda slots: slots[slot]


def _constant_getter(value: str) -> Callable[[list[str]], str]:
    return lambda slots: value
