"""Reads the PDDL of a game: the domain's actions and the problem's facts and goal.

Supported is what fast-downward accepts of ALFWorld's domain: typing without a hierarchy below
``object``, conjunctions, disjunctions, existential quantifiers, negated atoms, equality and
conditional effects. Anything else is refused, never guessed. As in fast-downward, names are compared
in lower case and ``;`` starts a comment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from envrl.envs.alfworld.sexpr import Tree, as_list, as_str, sections, typed
from envrl.errors import DataFault

Fact = tuple[str, ...]
"""A ground atom: predicate name, then its arguments."""

_EQUALITY = "="
_MOST_DISJUNCTS = 1000


@dataclass(frozen=True, slots=True)
class Literal:
    """An atom or its negation; arguments starting with ``?`` are variables, others constants."""

    positive: bool
    predicate: str
    args: tuple[str, ...]


Conjunction = tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """Disjunctive normal form of a formula with its existential variables pulled to the front.

    Attributes:
        disjuncts: Conjunctions of which one must hold; ``((),)`` is always true.
        types: Declared type of each existential variable (names are unique within the condition).
    """

    disjuncts: tuple[Conjunction, ...]
    types: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Effect:
    """``literal`` becomes true (or false, if negative) when ``condition`` held before the action."""

    literal: Literal
    condition: Conjunction


@dataclass(frozen=True, slots=True)
class Schema:
    """An action of the domain with variables for its arguments."""

    name: str
    params: tuple[str, ...]
    types: Mapping[str, str]
    condition: Condition
    effects: tuple[Effect, ...]


@dataclass(frozen=True, slots=True)
class Domain:
    """Predicates (name to argument types) and actions of a PDDL domain."""

    name: str
    types: frozenset[str]
    predicates: Mapping[str, tuple[str, ...]]
    schemas: tuple[Schema, ...]

    @property
    def changing(self) -> frozenset[str]:
        """Names of the predicates some action can change; all others are constant in a game."""
        return frozenset(e.literal.predicate for s in self.schemas for e in s.effects)


@dataclass(frozen=True, slots=True)
class Problem:
    """Objects (name to type), the facts true at the start, and the goal."""

    objects: Mapping[str, str]
    facts: tuple[Fact, ...]
    goal: Condition


def parse_domain(text: str) -> Domain:
    """Reads a PDDL domain.

    Raises:
        DataFault: The text is not a PDDL domain or uses a construct that isn't supported.
    """
    name, parts = sections(text, "domain")
    types: set[str] = {"object"}
    predicates: dict[str, tuple[str, ...]] = {}
    actions: list[list[Tree]] = []
    for key, body in parts:
        if key == ":types":
            types.update(_flat_types(body))
        elif key == ":predicates":
            for entry in body:
                tree = as_list(entry)
                predicates[as_str(tree[0])] = tuple(t for _, t in typed(tree[1:]))
        elif key == ":action":
            actions.append(body)
        elif key not in (":requirements", ":functions"):
            raise DataFault(f"PDDL section {key!r} isn't supported; use ALFWorld's own domain")
    schemas = tuple(_schema(body, predicates, types) for body in actions)
    return Domain(name, frozenset(types), predicates, schemas)


def parse_problem(text: str, domain: Domain) -> Problem:
    """Reads a PDDL problem of ``domain``.

    Raises:
        DataFault: The text is no problem of this domain or uses a construct that isn't supported.
    """
    _, parts = sections(text, "problem")
    objects: dict[str, str] = {}
    facts: dict[Fact, None] = {}
    goal: Condition | None = None
    for key, body in parts:
        if key == ":domain":
            if as_str(body[0]) != domain.name:
                raise DataFault(f"problem is for domain {body[0]!r}, the file's domain is {domain.name!r}")
        elif key == ":objects":
            objects = _objects(body, domain)
        elif key == ":init":
            facts = dict.fromkeys(_facts(body))
        elif key == ":goal":
            goal = parse_condition(as_list(body[0]), domain.predicates, domain.types)
        elif key not in (":requirements", ":metric"):
            raise DataFault(f"PDDL section {key!r} isn't supported in a problem")
    if goal is None or not facts or not objects:
        raise DataFault("PDDL problem lacks its :objects, :init or :goal; fetch or write the file again")
    _check_facts(facts, objects, domain)
    return Problem(objects, tuple(facts), goal)


def parse_condition(
    tree: list[Tree], predicates: Mapping[str, tuple[str, ...]], known_types: Collection[str]
) -> Condition:
    """Brings a formula into disjunctive normal form.

    A quantifier over an undeclared type has nothing to range over, so what it binds never holds. This
    decides what ALFWorld's ``examineObject`` means: its ``(exists (?l - location, ?r - receptacle) ...)``
    declares the type ``location,`` with the comma, so only a held object can be examined.

    Raises:
        DataFault: The formula has a quantifier or connective that isn't supported.
    """
    types: dict[str, str] = {}
    disjuncts = _dnf(tree, {}, types, predicates)
    empty = {v for v, kind in types.items() if kind not in known_types}
    possible = [c for c in disjuncts if empty.isdisjoint(a for lit in c for a in lit.args)]
    used = {a for c in possible for lit in c for a in lit.args}
    return Condition(tuple(possible), {v: k for v, k in types.items() if v in used})


def _dnf(
    tree: Tree, renamed: Mapping[str, str], types: dict[str, str], predicates: Mapping[str, tuple[str, ...]]
) -> list[Conjunction]:
    nodes = as_list(tree)
    if not nodes:
        return [()]
    head = as_str(nodes[0])
    if head == "and":
        parts = [_dnf(n, renamed, types, predicates) for n in nodes[1:]]
        if prod(map(len, parts)) > _MOST_DISJUNCTS:
            raise DataFault(
                f"PDDL condition has more than {_MOST_DISJUNCTS} alternatives; use ALFWorld's own goals"
            )
        return [tuple(dict.fromkeys(lit for conj in combo for lit in conj)) for combo in product(*parts)]
    if head == "or":
        return [conj for n in nodes[1:] for conj in _dnf(n, renamed, types, predicates)]
    if head == "exists":
        inner = dict(renamed)
        for var, kind in typed(as_list(nodes[1])):
            # The same letter may be bound by two quantifiers: each gets a name of its own.
            inner[var] = f"{var}~{len(types)}"
            types[inner[var]] = kind
        return _dnf(nodes[2], inner, types, predicates)
    if head == "not":
        return [(_literal(as_list(nodes[1]), False, renamed, predicates),)]
    return [(_literal(nodes, True, renamed, predicates),)]


def _literal(
    nodes: list[Tree], positive: bool, renamed: Mapping[str, str], predicates: Mapping[str, tuple[str, ...]]
) -> Literal:
    name = as_str(nodes[0])
    if name != _EQUALITY and name not in predicates:
        place = "has" if positive else "negates"
        raise DataFault(
            f"PDDL condition or effect {place} {name!r}, where only an atom of a declared predicate is "
            "supported; use ALFWorld's own domain and goals"
        )
    args = tuple(renamed.get(a, a) for a in map(as_str, nodes[1:]))
    expected = 2 if name == _EQUALITY else len(predicates[name])
    if len(args) != expected:
        raise DataFault(f"PDDL atom {name!r} has {len(args)} arguments, declared are {expected}")
    return Literal(positive, name, args)


def _schema(
    body: Sequence[Tree], predicates: Mapping[str, tuple[str, ...]], types: Collection[str]
) -> Schema:
    name = as_str(body[0])
    fields = {as_str(k): v for k, v in zip(body[1::2], body[2::2], strict=True)}
    unknown = set(fields) - {":parameters", ":precondition", ":effect"}
    if unknown:
        raise DataFault(f"PDDL action {name!r} has the unsupported field {sorted(unknown)[0]!r}")
    params = typed(as_list(fields[":parameters"]))
    condition = parse_condition(as_list(fields.get(":precondition", [])), predicates, types)
    effects = tuple(_effects(fields[":effect"], (), predicates))
    schema = Schema(name, tuple(v for v, _ in params), dict(params), condition, effects)
    _check_types(schema, predicates)
    return schema


def _effects(
    tree: Tree, condition: Conjunction, predicates: Mapping[str, tuple[str, ...]]
) -> Iterator[Effect]:
    nodes = as_list(tree)
    head = as_str(nodes[0])
    if head == "and":
        for node in nodes[1:]:
            yield from _effects(node, condition, predicates)
    elif head == "when" and not condition:
        disjuncts = _dnf(nodes[1], {}, {}, predicates)
        if len(disjuncts) != 1:
            raise DataFault("PDDL conditional effect with a disjunction isn't supported")
        yield from _effects(nodes[2], disjuncts[0], predicates)
    elif head == "not":
        yield Effect(_literal(as_list(nodes[1]), False, {}, predicates), condition)
    elif head != "increase":  # costs don't change what a player sees
        yield Effect(_literal(nodes, True, {}, predicates), condition)


def _check_types(schema: Schema, predicates: Mapping[str, tuple[str, ...]]) -> None:
    """Variables must have the type their predicates declare, so that joins need no type tests."""
    types = {**schema.condition.types, **schema.types}
    for literal in (lit for conj in schema.condition.disjuncts for lit in conj):
        if literal.predicate == _EQUALITY:
            continue
        for arg, kind in zip(literal.args, predicates[literal.predicate], strict=True):
            if arg.startswith("?") and types.get(arg) != kind:
                raise DataFault(
                    f"PDDL action {schema.name!r}: {arg} is a {types.get(arg)!r} but {literal.predicate!r} "
                    f"takes a {kind!r}; use ALFWorld's own domain"
                )


def _check_facts(facts: Mapping[Fact, None], objects: Mapping[str, str], domain: Domain) -> None:
    for fact in facts:
        kinds = domain.predicates.get(fact[0])
        if kinds is None or len(kinds) != len(fact) - 1:
            raise DataFault(f"PDDL fact {' '.join(fact)!r} doesn't fit any predicate of the domain")
        for arg, kind in zip(fact[1:], kinds, strict=True):
            found = objects.get(arg)
            if found is None:
                raise DataFault(f"PDDL fact {' '.join(fact)!r} names {arg!r}, which :objects doesn't declare")
            if found != kind:
                raise DataFault(f"PDDL fact {' '.join(fact)!r}: {arg!r} is a {found!r}, expected a {kind!r}")


def _facts(body: Sequence[Tree]) -> Iterator[Fact]:
    for entry in body:
        nodes = as_list(entry)
        if nodes[0] in (_EQUALITY, "not"):
            continue  # costs and distances; absent facts are false anyway
        yield tuple(map(as_str, nodes))


def _objects(body: Sequence[Tree], domain: Domain) -> dict[str, str]:
    objects: dict[str, str] = {}
    for name, kind in typed(body):
        if name in objects:
            raise DataFault(f"PDDL declares the object {name!r} twice; remove one declaration")
        if kind not in domain.types:
            raise DataFault(f"PDDL object {name!r} has the type {kind!r}, which the domain doesn't declare")
        objects[name] = kind
    return objects


def _flat_types(body: Sequence[Tree]) -> list[str]:
    pairs = typed(body)
    for name, parent in pairs:
        if parent != "object":
            raise DataFault(f"PDDL type {name!r} below {parent!r}: a hierarchy of types isn't supported")
    return [name for name, _ in pairs]
