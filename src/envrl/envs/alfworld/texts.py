"""Writes a game's texts: the grammar's symbols, over the facts of a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from envrl.envs.alfworld.facts import View
from envrl.envs.alfworld.grammar import Call, Each, Expression, Grammar, Placeholder, Query, Symbol, Text
from envrl.envs.alfworld.joins import Plan, plan
from envrl.envs.alfworld.pddl import Domain, Literal
from envrl.errors import DataFault

Mapped = Mapping[Placeholder, str]
"""Ids of the variables in scope; name and type together identify one."""


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """A planned query.

    Attributes:
        plan: How to answer it.
        given: Placeholders whose values come from outside.
        fresh: (placeholder, slot) of those the query finds.
        order: For each conjunct, the slots of its arguments: what answers are sorted by.
    """

    plan: Plan
    given: tuple[Placeholder, ...]
    fresh: tuple[tuple[Placeholder, int], ...]
    order: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """Variables a text can look at: by name in expressions, by type in queries."""

    names: frozenset[str]
    kinds: frozenset[str]

    def visible(self, mapped: Mapped) -> tuple[tuple[str, str], ...]:
        """The part of the variables in scope that can make a difference to the text."""
        return tuple([(p.name, v) for p, v in mapped.items() if p.name in self.names or p.kind in self.kinds])


class Writer:
    """Writes texts of one grammar; shared by all games that have it."""

    def __init__(self, grammar: Grammar, domain: Domain) -> None:
        self.grammar = grammar
        self._changing = domain.changing
        # Keyed by identity, with the query kept so that it stays alive: hashing one costs more than
        # answering it.
        self._plans: dict[tuple[int, tuple[Placeholder, ...]], tuple[Query, QueryPlan]] = {}

    def write(self, symbols: Sequence[Symbol], mapped: Mapped, view: View, names: Mapping[str, str]) -> str:
        """Text of ``symbols``.

        Args:
            symbols: What to write.
            mapped: Variables in scope.
            view: The state to look things up in.
            names: What a player calls each id.

        Raises:
            DataFault: The grammar refers to a rule or variable that isn't there, or no rule applies.
        """
        parts = []
        for symbol in symbols:
            if isinstance(symbol, Text):
                parts.append(symbol.text)
            elif isinstance(symbol, Expression):
                parts.append(_evaluate(symbol, mapped, names))
            elif isinstance(symbol, Call):
                parts.append(self._call(symbol.rule, mapped, view, names))
            else:
                parts.append(self._each(symbol, mapped, view, names))
        return "".join(parts)

    def scope(self, symbols: Sequence[Symbol]) -> Scope:
        """Which variables the symbols, and the rules they call, can look at."""
        found: set[str] = set()
        kinds: set[str] = set()
        pending, seen = list(symbols), set()
        while pending:
            symbol = pending.pop()
            if isinstance(symbol, Each):
                kinds |= {p.kind for atom in symbol.query or () for p in atom.args}
                pending.append(symbol.body)
            elif isinstance(symbol, Expression):
                found |= {
                    s[0] for alternative in symbol.alternatives for s in alternative if isinstance(s, tuple)
                }
            elif isinstance(symbol, Call) and symbol.rule not in seen:
                seen.add(symbol.rule)
                for rule in self.grammar.rules.get(symbol.rule, ()):
                    kinds |= {p.kind for atom in rule.condition or () for p in atom.args}
                    pending += rule.symbols
        return Scope(frozenset(found), frozenset(kinds))

    def _call(self, name: str, mapped: Mapped, view: View, names: Mapping[str, str]) -> str:
        for rule in self.grammar.rules.get(name, ()):
            if rule.condition is None or self._answers(rule.condition, mapped, view):
                return self.write(rule.symbols, mapped, view, names)
        raise DataFault(f"grammar has no rule {name!r} that applies; fetch or write the file again")

    def _each(self, each: Each, mapped: Mapped, view: View, names: Mapping[str, str]) -> str:
        scopes = [mapped] if each.query is None else self._answers(each.query, mapped, view)
        items = [self.write((each.body,), scope, view, names) for scope in scopes]
        if not each.as_list:
            return "".join(items)
        if not items:
            return self._call("list_empty", mapped, view, names)
        if len(items) == 1:
            return items[0]
        head = self._call("list_separator", mapped, view, names).join(items[:-1])
        return head + self._call("list_last_separator", mapped, view, names) + items[-1]

    def _answers(self, query: Query, mapped: Mapped, view: View) -> list[Mapped]:
        """Answers in the reference's order: facts sorted by their ids, the first conjunct outermost.

        As there, different variables never stand for the same thing, those in scope included.
        """
        known = tuple(mapped)
        entry = self._plans.get((id(query), known))
        if entry is None:
            entry = self._plans[id(query), known] = (query, self._plan(query, mapped))
        planned = entry[1]
        rows = planned.plan.answers([mapped[p] for p in planned.given], view)
        if len(rows) > 1:
            rows.sort(key=lambda row: [[row[i] for i in slots] for slots in planned.order])
        taken = set(mapped.values())
        answers: list[Mapped] = []
        for row in rows:
            values = [row[slot] for _, slot in planned.fresh]
            if taken.isdisjoint(values) and (len(values) < 2 or len(set(values)) == len(values)):
                answers.append({**mapped, **{p: row[slot] for p, slot in planned.fresh}})
        return answers

    def _plan(self, query: Query, mapped: Mapped) -> QueryPlan:
        labels = {p: f"?{p.name}:{p.kind}" for atom in query for p in atom.args}
        literals = [Literal(True, a.predicate, tuple(labels[p] for p in a.args)) for a in query]
        given = tuple(p for p in labels if p in mapped)
        planned = plan(literals, {}, [labels[p] for p in given], self._changing)
        slots = {v: i for i, v in enumerate(planned.variables)}
        fresh = tuple((p, slots[labels[p]]) for p in labels if p not in mapped)
        order = tuple(tuple(slots[a] for a in lit.args) for lit in literals)
        return QueryPlan(planned, given, fresh, order)


def _evaluate(expression: Expression, mapped: Mapped, names: Mapping[str, str]) -> str:
    text = ""
    for summands in expression.alternatives:
        text = "".join([s if isinstance(s, str) else _attribute(s, mapped, names) for s in summands])
        if text:
            break
    return text


def _attribute(reference: tuple[str, str], mapped: Mapped, names: Mapping[str, str]) -> str:
    variable, attribute = reference
    identifier = None
    for placeholder, value in mapped.items():
        if placeholder.name == variable:
            identifier = value
    if identifier is None:
        raise DataFault(f"grammar text uses {{{variable}.{attribute}}}, but no {variable!r} is in scope")
    if attribute == "name":
        return names[identifier]
    return {"id": identifier, "indefinite": "a", "definite": "the"}[attribute]
