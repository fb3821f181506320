"""Turns the grammar's symbols into programs that write a text from a state's bits.

Whatever the game fixes (names, contents that can't change, rules that can't apply) is worked out
once; what is left is text, choices between rules, and lists whose members depend on bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from envrl.envs.alfworld.facts import FactBase, Masks, ground
from envrl.envs.alfworld.grammar import Call, Each, Expression, Grammar, Placeholder, Query, Symbol, Text
from envrl.envs.alfworld.pddl import Literal
from envrl.errors import DataFault

Mapped = Mapping[Placeholder, str]
"""Values of the variables in scope; name and type together identify one."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The program of the first option one of whose masks holds."""

    options: tuple[tuple[tuple[Masks, ...], Program], ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """The items whose masks hold, in order, joined as a list in words (or simply one after another)."""

    items: tuple[tuple[Masks, Program], ...]
    separator: str
    last_separator: str
    empty: str


Program = tuple["str | Choice | Listing", ...]
ALWAYS = Masks(0, 0)


def render(program: Program, bits: int) -> str:
    """Text the program writes in the state ``bits``."""
    return "".join([node if node.__class__ is str else _render(node, bits) for node in program])  # type: ignore[arg-type,misc]


def _render(node: Choice | Listing, bits: int) -> str:
    if isinstance(node, Choice):
        for conditions, program in node.options:
            for masks in conditions:
                if bits & masks.needs == masks.needs and not bits & masks.forbids:
                    return render(program, bits)
        raise DataFault("no grammar rule applies; the rule needs a last alternative without a condition")
    shown = [
        program[0] if len(program) == 1 and program[0].__class__ is str else render(program, bits)
        for masks, program in node.items
        if bits & masks.needs == masks.needs and not bits & masks.forbids
    ]
    if not shown:
        return node.empty
    if len(shown) == 1:
        return shown[0]  # type: ignore[return-value]
    return node.separator.join(shown[:-1]) + node.last_separator + shown[-1]  # type: ignore[arg-type,operator]


class TextCompiler:
    """Compiles symbols for one game; equal requests share one program."""

    def __init__(self, grammar: Grammar, facts: FactBase, names: Mapping[str, str]) -> None:
        self._grammar = grammar
        self._facts = facts
        self._names = names
        self._cache: dict[tuple[object, ...], Program] = {}
        self._scopes: dict[str, Scope] = {}

    def compile(self, symbols: Sequence[Symbol], mapped: Mapped, agent_at: tuple[str, ...] | None) -> Program:
        """Program for ``symbols``, given the variables in scope and where the agent is."""
        nodes: list[str | Choice | Listing] = []
        for symbol in symbols:
            for node in self._symbol(symbol, mapped, agent_at):
                if isinstance(node, str) and nodes and isinstance(nodes[-1], str):
                    nodes[-1] += node
                elif node != "":
                    nodes.append(node)
        return tuple(nodes)

    def fixed(self, symbols: Sequence[Symbol], mapped: Mapped) -> str:
        """Text of symbols that must not depend on the state.

        Raises:
            DataFault: They do depend on it.
        """
        program = self.compile(symbols, mapped, None)
        if not all(isinstance(node, str) for node in program):
            raise DataFault("a command template or list separator depends on changing facts: not supported")
        return render(program, 0)

    def scope(self, symbols: Sequence[Symbol]) -> Scope:
        """Which variables the symbols, and the rules they call, can look at."""
        names: set[str] = set()
        kinds: set[str] = set()
        pending, seen = list(symbols), set()
        while pending:
            symbol = pending.pop()
            if isinstance(symbol, Each):
                kinds |= {p.kind for atom in symbol.query or () for p in atom.args}
                pending.append(symbol.body)
            elif isinstance(symbol, Expression):
                names |= {s[0] for alt in symbol.alternatives for s in alt if isinstance(s, tuple)}
            elif isinstance(symbol, Call) and symbol.rule not in seen:
                seen.add(symbol.rule)
                for rule in self._grammar.rules.get(symbol.rule, ()):
                    kinds |= {p.kind for atom in rule.condition or () for p in atom.args}
                    pending += rule.symbols
        return Scope(frozenset(names), frozenset(kinds))

    def _symbol(
        self, symbol: Symbol, mapped: Mapped, agent_at: tuple[str, ...] | None
    ) -> Iterator[str | Choice | Listing]:
        if isinstance(symbol, Text):
            yield symbol.text
        elif isinstance(symbol, Expression):
            yield self._evaluate(symbol, mapped)
        elif isinstance(symbol, Call):
            yield from self._call(symbol.rule, mapped, agent_at)
        else:
            yield from self._each(symbol, mapped, agent_at)

    def _evaluate(self, expression: Expression, mapped: Mapped) -> str:
        values = {p.name: value for p, value in mapped.items()}
        text = ""
        for summands in expression.alternatives:
            text = "".join(s if isinstance(s, str) else self._attribute(s, values) for s in summands)
            if text:
                break
        return text

    def _attribute(self, reference: tuple[str, str], values: Mapping[str, str]) -> str:
        variable, attribute = reference
        if variable not in values:
            raise DataFault(f"grammar text uses {{{variable}.{attribute}}}, but no {variable!r} is in scope")
        identifier = values[variable]
        if attribute == "name":
            return self._names[identifier]
        return {"id": identifier, "indefinite": "a", "definite": "the"}[attribute]

    def _call(self, rule: str, mapped: Mapped, agent_at: tuple[str, ...] | None) -> Program:
        if rule not in self._scopes:
            self._scopes[rule] = self.scope((Call(rule),))
        key = (rule, agent_at, *self._scopes[rule].visible(mapped))
        known = self._cache.get(key)
        if known is None:
            known = self._cache[key] = tuple(self._rules(rule, mapped, agent_at))
        return known

    def _rules(
        self, name: str, mapped: Mapped, agent_at: tuple[str, ...] | None
    ) -> Iterator[str | Choice | Listing]:
        if name not in self._grammar.rules:
            raise DataFault(f"grammar has no rule {name!r}; fetch or write the file again")
        options: list[tuple[tuple[Masks, ...], Program]] = []
        for rule in self._grammar.rules[name]:
            masks = (ALWAYS,) if rule.condition is None else self._condition(rule.condition, mapped, agent_at)
            if masks:
                options.append((masks, self.compile(rule.symbols, mapped, agent_at)))
            if ALWAYS in masks:
                break
        if options and options[0][0] == (ALWAYS,):
            yield from options[0][1]
        else:
            yield Choice(tuple(options))

    def _condition(self, query: Query, mapped: Mapped, agent_at: tuple[str, ...] | None) -> tuple[Masks, ...]:
        masks = tuple(dict.fromkeys(m for _, m in self._answers(query, mapped, agent_at)))
        return (ALWAYS,) if ALWAYS in masks else masks

    def _each(
        self, each: Each, mapped: Mapped, agent_at: tuple[str, ...] | None
    ) -> Iterator[str | Choice | Listing]:
        answers = (
            [(mapped, ALWAYS)] if each.query is None else list(self._answers(each.query, mapped, agent_at))
        )
        items = tuple((masks, self.compile((each.body,), scope, agent_at)) for scope, masks in answers)
        separators = ("", "", "")
        if each.as_list:
            separators = tuple(
                self.fixed((Call(f"list_{n}"),), {}) for n in ("separator", "last_separator", "empty")
            )  # type: ignore[assignment]
        listing = Listing(items, *separators)
        if all(m == ALWAYS and all(isinstance(n, str) for n in program) for m, program in items):
            yield _render(listing, 0)
        else:
            yield listing

    def _answers(
        self, query: Query, mapped: Mapped, agent_at: tuple[str, ...] | None
    ) -> list[tuple[Mapped, Masks]]:
        """Answers in the reference's order: facts sorted by their ids, the first conjunct outermost.

        Different variables of a query never stand for the same thing.
        """
        labels = {p: f"?{p.name}:{p.kind}" for atom in query for p in atom.args}
        literals = tuple(Literal(True, a.predicate, tuple(labels[p] for p in a.args)) for a in query)
        fresh = [p for p in labels if p not in mapped]
        binding = {labels[p]: mapped[p] for p in labels if p in mapped}
        taken = set(mapped.values())
        rows = []
        for answer in self._facts.solve(literals, {labels[p]: p.kind for p in labels}, binding, agent_at):
            values = [answer.binding[labels[p]] for p in fresh]
            if len(set(values)) == len(values) and taken.isdisjoint(values):
                order = tuple(ground(lit.args, answer.binding) for lit in literals)
                rows.append((order, dict(zip(fresh, values, strict=True)), answer.masks))
        rows.sort(key=lambda row: row[0])  # type: ignore[arg-type,return-value]
        return [({**mapped, **new}, masks) for _, new, masks in rows]


@dataclass(frozen=True, slots=True)
class Scope:
    """Variables a text can look at: by name in expressions, by type in queries."""

    names: frozenset[str]
    kinds: frozenset[str]

    def visible(self, mapped: Mapped) -> tuple[tuple[Placeholder, str], ...]:
        """The part of the variables in scope that can make a difference to the text."""
        return tuple((p, v) for p, v in mapped.items() if p.name in self.names or p.kind in self.kinds)
