"""The facts of one game, and which of its ground atoms can ever be true.

Atoms of predicates no action changes are looked up once and for all. Every other atom that can
become true gets one bit of an integer, so that a state is an integer, a conjunction two masks, and
an action a few bit operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from envrl.envs.alfworld.pddl import Conjunction, Domain, Fact, Literal, Problem
from envrl.errors import DataFault

AGENT_AT = "atlocation"
"""The predicate that says where the agent is; its one true fact picks the place."""
NEGATED = "not_"
"""Prefix of grammar predicates that ask whether an action has made a fact false."""

Pattern = tuple[str | None, ...]
Binding = dict[str, str]


@dataclass(frozen=True, slots=True)
class Masks:
    """A conjunction over changing facts: all bits of ``needs`` set, none of ``forbids``."""

    needs: int
    forbids: int

    def hold(self, bits: int) -> bool:
        """Whether the conjunction holds in the state ``bits``."""
        return bits & self.needs == self.needs and not bits & self.forbids


@dataclass(frozen=True, slots=True)
class Answer:
    """One way to satisfy a conjunction: values of its variables, and what remains to be checked."""

    binding: Mapping[str, str]
    masks: Masks


@dataclass(frozen=True, slots=True)
class Achiever:
    """A way an atom can become true: an effect, and what of its action's condition limits it.

    Attributes:
        effect: Arguments of the effect's atom.
        fixed: Unchanging atoms connected to the effect through shared variables.
        changing: Positive atoms of changing predicates.
        types: Types of the action's variables.
    """

    effect: tuple[str, ...]
    fixed: Conjunction
    changing: Conjunction
    types: Mapping[str, str]


Achievers = Mapping[str, tuple[Achiever, ...]]


def achievers_of(domain: Domain) -> Achievers:
    """Ways to make each changing predicate true (``p``) or false (``not_p``)."""
    found: dict[str, list[Achiever]] = {}
    for schema in domain.schemas:
        types = {**schema.condition.types, **schema.types}
        for effect in schema.effects:
            name = effect.literal.predicate if effect.literal.positive else NEGATED + effect.literal.predicate
            for conjunction in schema.condition.disjuncts:
                positive = [lit for lit in conjunction if lit.positive and lit.predicate != "="]
                fixed = [lit for lit in positive if lit.predicate not in domain.changing]
                changing = tuple(lit for lit in positive if lit.predicate in domain.changing)
                linked = _connected(effect.literal.args, fixed)
                found.setdefault(name, []).append(Achiever(effect.literal.args, linked, changing, types))
    return {name: tuple(ways) for name, ways in found.items()}


def _connected(start: Sequence[str], literals: Sequence[Literal]) -> Conjunction:
    reached = {a for a in start if a.startswith("?")}
    linked: list[Literal] = []
    rest = list(literals)
    while found := [lit for lit in rest if reached & set(lit.args)]:
        linked += found
        rest = [lit for lit in rest if lit not in found]
        reached |= {a for lit in found for a in lit.args if a.startswith("?")}
    return tuple(linked)


class FactBase:
    """Facts of one problem, with joins over them.

    Not changed by play except for caches, so any number of episodes may share it.
    """

    def __init__(self, problem: Problem, domain: Domain, achievers: Achievers) -> None:
        self.changing = domain.changing
        self._achievers = achievers
        self._facts: dict[str, list[tuple[str, ...]]] = {}
        for fact in problem.facts:
            self._facts.setdefault(fact[0], []).append(fact[1:])
        self._by_type: dict[str, list[str]] = {}
        for name, kind in problem.objects.items():
            self._by_type.setdefault(kind, []).append(name)
        self._index: dict[tuple[str, tuple[int, ...]], dict[tuple[str, ...], list[tuple[str, ...]]]] = {}
        self._possible: dict[Fact, bool] = {}
        self._candidates: dict[tuple[str, Pattern], tuple[tuple[str, ...], ...]] = {}
        self._bits: dict[Fact, int] = {}
        self.initial_bits = 0
        for predicate in sorted(self.changing):
            for args in self._facts.get(predicate, ()):
                self.initial_bits |= self.bit((predicate, *args))

    def bit(self, fact: Fact) -> int:
        """Mask with the one bit of a changing fact; facts true at the start have theirs from the start."""
        mask = self._bits.get(fact)
        if mask is None:
            mask = self._bits[fact] = 1 << len(self._bits)
        return mask

    def objects(self, kind: str) -> list[str]:
        """Objects of a type; ``object`` is the root of all types, as in fast-downward."""
        if kind == "object":
            return [name for names in self._by_type.values() for name in names]
        return self._by_type.get(kind, [])

    def initial(self, predicate: str) -> list[tuple[str, ...]]:
        """Arguments of the predicate's facts at the start."""
        return self._facts.get(predicate, [])

    def preset(self, types: Mapping[str, str]) -> Binding:
        """Values of the variables whose type has a single object (the agent)."""
        return {v: names[0] for v, k in types.items() if len(names := self.objects(k)) == 1}

    def solve(
        self,
        conjunction: Conjunction,
        types: Mapping[str, str],
        binding: Mapping[str, str],
        agent_at: tuple[str, ...] | None = None,
    ) -> Iterator[Answer]:
        """Every answer that can hold in some state of the game.

        Args:
            conjunction: What must hold.
            types: Type of each variable.
            binding: Values that are already known.
            agent_at: Where the agent is known to be, as (agent, location); None leaves it open.
        """
        yield from self._solve(list(conjunction), types, dict(binding), agent_at, 0, 0)

    def _solve(
        self,
        literals: list[Literal],
        types: Mapping[str, str],
        binding: Binding,
        agent_at: tuple[str, ...] | None,
        needs: int,
        forbids: int,
    ) -> Iterator[Answer]:
        if not literals:
            yield from self._complete(types, binding, Masks(needs, forbids))
            return
        literal = min(literals, key=lambda lit: self._cost(lit, binding))
        rest = [lit for lit in literals if lit is not literal]
        pattern = ground(literal.args, binding)
        if not literal.positive or literal.predicate == "=":
            blocked = self._negative(literal, pattern, agent_at)
            if blocked is not None:
                yield from self._solve(rest, types, binding, agent_at, needs, forbids | blocked)
            return
        fixed = literal.predicate.removeprefix(NEGATED) not in self.changing
        known = fixed or (agent_at is not None and literal.predicate == AGENT_AT)
        for args in self._matches(literal.predicate, pattern, agent_at):
            extended = _unify(literal.args, args, binding)
            if extended is not None:
                mask = needs if known else needs | self.bit((literal.predicate, *args))
                yield from self._solve(rest, types, extended, agent_at, mask, forbids)

    def _complete(self, types: Mapping[str, str], binding: Binding, masks: Masks) -> Iterator[Answer]:
        free = [v for v in types if v not in binding]
        if not free:
            yield Answer(binding, masks)
            return
        for value in self.objects(types[free[0]]):
            yield from self._complete(types, {**binding, free[0]: value}, masks)

    def _cost(self, literal: Literal, binding: Mapping[str, str]) -> int:
        open_ = sum(1 for a in literal.args if a.startswith("?") and a not in binding)
        if open_ == 0:
            return 0 if literal.predicate not in self.changing else 1
        if not literal.positive or literal.predicate == "=":
            return 1000
        touched = len(literal.args) > open_
        return (2 if touched else 20) + (10 if literal.predicate in self.changing else 0) + open_

    def _negative(self, literal: Literal, pattern: Pattern, agent_at: tuple[str, ...] | None) -> int | None:
        """Mask of the bit that must not be set, 0 if nothing need be checked, None if it can't hold."""
        args = tuple(a for a in pattern if a is not None)
        if len(args) != len(pattern):
            raise DataFault(
                f"PDDL condition (not ({literal.predicate} ...)) leaves a variable free: not supported"
            )
        if literal.predicate == "=":
            return 0 if (args[0] == args[1]) == literal.positive else None
        if literal.predicate == AGENT_AT and agent_at is not None:
            return 0 if args != agent_at else None
        if literal.predicate not in self.changing:
            return None if self._lookup(literal.predicate, pattern) else 0
        return self.bit((literal.predicate, *args)) if self.possible(literal.predicate, args) else 0

    def _matches(
        self, predicate: str, pattern: Pattern, agent_at: tuple[str, ...] | None
    ) -> Sequence[tuple[str, ...]]:
        if predicate == AGENT_AT and agent_at is not None:
            return (agent_at,)
        if predicate.removeprefix(NEGATED) not in self.changing:
            return self._lookup(predicate, pattern)
        return self.candidates(predicate, pattern)

    def _lookup(self, predicate: str, pattern: Pattern) -> Sequence[tuple[str, ...]]:
        positions = tuple(i for i, a in enumerate(pattern) if a is not None)
        if not positions:
            return self._facts.get(predicate, ())
        index = self._index.get((predicate, positions))
        if index is None:
            index = {}
            for args in self._facts.get(predicate, ()):
                index.setdefault(tuple(args[i] for i in positions), []).append(args)
            self._index[predicate, positions] = index
        return index.get(tuple(a for a in pattern if a is not None), ())

    def candidates(self, predicate: str, pattern: Pattern) -> Sequence[tuple[str, ...]]:
        """Arguments fitting ``pattern`` (None: any) for which a changing fact may ever be true.

        A superset of the reachable ones is enough: the bit of an unreachable fact stays 0.
        """
        if None not in pattern:
            args = tuple(a for a in pattern if a is not None)
            return (args,) if self.possible(predicate, args) else ()
        known = self._candidates.get((predicate, pattern))
        if known is None:
            found = dict.fromkeys(self._lookup(predicate, pattern))
            for way in self._achievers.get(predicate, ()):
                found.update(dict.fromkeys(self._achieved(way, pattern)))
            known = self._candidates[predicate, pattern] = tuple(found)
        return known

    def possible(self, predicate: str, args: tuple[str, ...]) -> bool:
        """Whether a changing fact may ever be true (a superset, see :meth:`candidates`)."""
        fact = (predicate, *args)
        known = self._possible.get(fact)
        if known is None:
            self._possible[fact] = True  # while it is being asked, assume so: never wrong, only wider
            known = bool(self._lookup(predicate, args)) or any(
                True for way in self._achievers.get(predicate, ()) for _ in self._achieved(way, args)
            )
            self._possible[fact] = known
        return known

    def _achieved(self, way: Achiever, pattern: Pattern) -> Iterator[tuple[str, ...]]:
        start = self.preset(way.types)
        for variable, value in zip(way.effect, pattern, strict=True):
            if value is not None and start.setdefault(variable, value) != value:
                return
        names = {v: k for v, k in way.types.items() if v in way.effect}
        for answer in self.solve(way.fixed, names, start):
            for literal in way.changing:
                args = ground(literal.args, answer.binding)
                if None not in args and not self.possible(literal.predicate, tuple(a for a in args if a)):
                    break
            else:
                yield tuple(answer.binding.get(a, a) for a in way.effect)


def ground(args: Sequence[str], binding: Mapping[str, str]) -> Pattern:
    """Arguments with variables replaced by their values, None where there is none yet."""
    return tuple(binding.get(a) if a.startswith("?") else a for a in args)


def _unify(args: Sequence[str], values: Sequence[str], binding: Binding) -> Binding | None:
    extended = dict(binding)
    for arg, value in zip(args, values, strict=True):
        if (extended.setdefault(arg, value) if arg.startswith("?") else arg) != value:
            return None
    return extended
