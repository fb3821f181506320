"""The steps a plan consists of, and the functions that carry them out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from envrl.envs.alfworld.facts import AGENT_AT, NEGATED, Args, Positions, View

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


def chain(steps: Sequence[Step], last: Runner, changing: Collection[str]) -> Runner:
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
