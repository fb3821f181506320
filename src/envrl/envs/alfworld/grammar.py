"""Reads the grammar of a game (TextWorld's ``.twl2``): command templates and feedback texts.

A text is a row of symbols: plain text, ``#rule#``, ``{expression}``, ``{x | query}`` (one x for each
answer of the query) and ``[{x | query}]`` (the same as a list in words). Expressions are limited to
what the shipped grammars use: ``o``, ``o.name``, ``o.id``, ``o.indefinite``, ``o.definite``, string
constants, ``+`` and ``or``.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from envrl.errors import DataFault
from envrl.untrusted import parse_json


class Placeholder(NamedTuple):
    """A variable of a query; equal name and type mean the same variable."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Atom:
    """One conjunct of a query. ``not_p`` asks whether an action has made ``p`` false."""

    predicate: str
    args: tuple[Placeholder, ...]


Query = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """Text that stays as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """``#rule#``: the first rule of that name whose condition holds."""

    rule: str


@dataclass(frozen=True, slots=True)
class Expression:
    """Text computed from the variables' names; ``parts`` are alternatives (``or``) of sums (``+``).

    Each summand is a constant, or (variable, attribute).
    """

    alternatives: tuple[tuple[str | tuple[str, str], ...], ...]


@dataclass(frozen=True, slots=True)
class Each:
    """``{body | query}``, as a list in words if ``as_list``; without a query the body alone."""

    body: Call | Expression
    query: Query | None
    as_list: bool


Symbol = Text | Call | Expression | Each


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to write a nonterminal; it applies if ``condition`` has an answer (or is None)."""

    symbols: tuple[Symbol, ...]
    condition: Query | None


@dataclass(frozen=True, slots=True)
class ActionText:
    """How a command is written and answered."""

    template: tuple[Symbol, ...]
    feedback: tuple[Symbol, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """Texts of a game: per action (lower-case name) and per rule."""

    actions: Mapping[str, ActionText]
    rules: Mapping[str, tuple[Rule, ...]]


_BLOCK = r'"""(?P<{0}>(?:.|\n)*?)"""'
_STRING = r'"(?P<{0}>[^"]*)"'
_SKIP = r"(?:\s|#[^\n]*(?:\n|$))*"
_PART = re.compile(
    r"action\s*(?P<action>[\w/-]+)\s*\{|(?P<end>\})"
    r"|template\s*::\s*" + _STRING.format("template") + r"\s*;"
    r"|feedback\s*::\s*" + _STRING.format("feedback") + r"\s*;"
    r"|pddl\s*::\s*" + _BLOCK.format("pddl") + r"\s*;"
    r"|grammar\s*::\s*" + _BLOCK.format("grammar") + r"\s*;"
)
_BLANK = re.compile(_SKIP)

_LITERAL = re.compile(r'[^;|"<>\[\]#{}]+')
_QUOTED = re.compile(r'"([^;|"<>\[\]#{}]*)"')
_CALL = re.compile(r"#([\w()/!<>\-\s,.]+)#")
_EACH = re.compile(
    r"\{\s*+(?:#(?P<call>[\w()/!<>\-\s,.]+)#|(?P<expr>[^|\[\]{}\n<>]++))\s*+(?:\|\s*(?P<query>[^;|{}\n\[\]#]++))?\}"
)
_ATOM = re.compile(r"\s*([\w/-]+)\(([^()]*)\)\s*")
_LONGEST_EXPRESSION = 500
_ATTRIBUTES = ("name", "id", "indefinite", "definite")


def parse_grammar(text: str) -> Grammar:
    """Reads a whole ``.twl2`` text.

    Raises:
        DataFault: The text isn't such a grammar or uses a construct that isn't supported.
    """
    templates: dict[str, dict[str, str]] = {}
    rules: dict[str, Any] = {}
    action: str | None = None
    position = _blank(text, 0)
    while position < len(text):
        match = _PART.match(text, position)
        kind = match.lastgroup if match else None
        if (
            match is None
            or kind is None
            or (kind in ("template", "feedback", "pddl", "end"))
            != (action is not None and kind not in ("action", "grammar"))
        ):
            raise DataFault(
                f"grammar can't be read at {text[position : position + 40]!r}; fetch the file again"
            )
        if kind == "action":
            action = match["action"].lower()
            templates[action] = {}
        elif kind == "end":
            action = None
        elif kind == "grammar":
            rules.update(_rule_block(match["grammar"], commented=action is not None))
        elif action is not None:
            templates[action][kind] = match[kind]
        position = _blank(text, match.end())
    return Grammar(
        actions={n: _action_text(n, t) for n, t in templates.items()},
        rules={n: parse_rules(n, r) for n, r in rules.items()},
    )


def parse_rules(name: str, alternatives: Any) -> tuple[Rule, ...]:
    """Reads the JSON alternatives ``[{"rhs": ..., "condition": ...}]`` of the rule ``name``."""
    try:
        return tuple(
            Rule(parse_symbols(a["rhs"]), parse_query(a["condition"]) if a.get("condition") else None)
            for a in alternatives
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataFault(f"grammar rule {name!r} isn't a list of {{'rhs': ...}} objects: {error}") from error


def parse_symbols(text: str) -> tuple[Symbol, ...]:
    """Splits a right-hand side into symbols.

    As in the reference, white space at the very start is dropped and everything from the first
    character that can't be read on is ignored.
    """
    text = text.lstrip()
    if text.startswith("//"):
        raise DataFault(f"grammar text {text[:40]!r} starts with '//', which isn't supported")
    symbols: list[Symbol] = []
    position = 0
    while position < len(text):
        symbol, end = _symbol(text, position)
        if symbol is None:
            break
        symbols.append(symbol)
        position = end
    return tuple(symbols)


def parse_query(text: str) -> Query:
    """Reads ``p(x:kind, y:kind) & q(...)``."""
    atoms = []
    for part in text.split("&"):
        match = _ATOM.fullmatch(part)
        if match is None:
            raise DataFault(f"grammar query {text!r} isn't a conjunction of p(x:kind, ...)")
        pairs = [a.partition(":") for a in match[2].split(",")] if match[2].strip() else []
        args = tuple(Placeholder(n.strip(), k.strip() or n.strip()) for n, _, k in pairs)
        atoms.append(Atom(match[1], args))
    return tuple(atoms)


def _symbol(text: str, position: int) -> tuple[Symbol | None, int]:
    character = text[position]
    if character == "[":
        match = _EACH.match(text, position + 1)
        if match is None or text[match.end() : match.end() + 1] != "]":
            return None, position
        return _each(match, as_list=True), match.end() + 1
    if character == "{":
        match = _EACH.match(text, position)
        return (None, position) if match is None else (_each(match, as_list=False), match.end())
    if character == "#":
        match = _CALL.match(text, position)
        return (None, position) if match is None else (Call(match[1]), match.end())
    match = _QUOTED.match(text, position) or _LITERAL.match(text, position)
    if match is None:
        return None, position
    return Text((match[1] if character == '"' else match[0]).replace("\\n", "\n")), match.end()


def _each(match: re.Match[str], as_list: bool) -> Symbol:
    body = Call(match["call"]) if match["call"] else parse_expression(match["expr"])
    query = parse_query(match["query"]) if match["query"] else None
    if query is None and not as_list:
        return body
    return Each(body, query, as_list)


def parse_expression(text: str) -> Expression:
    """Reads ``o.indefinite + ' ' + o.name`` and the like; nothing is ever evaluated as Python."""
    if len(text) > _LONGEST_EXPRESSION:  # Python's parser may crash on one that is nested deeply enough
        raise DataFault(f"grammar expression {text[:40]!r}... has more than {_LONGEST_EXPRESSION} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise DataFault(f"grammar expression {text!r} can't be read: {error}") from error
    choices = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.Or) else [tree]
    return Expression(tuple(tuple(_summands(choice, text)) for choice in choices))


def _summands(node: ast.expr, text: str) -> list[str | tuple[str, str]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _summands(node.left, text) + _summands(node.right, text)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.Name):
        return [(node.id, "name")]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in _ATTRIBUTES:
        return [(node.value.id, node.attr)]
    raise DataFault(f"grammar expression {text!r} isn't supported; only names joined with + and or")


def _action_text(name: str, fields: Mapping[str, str]) -> ActionText:
    if not {"template", "feedback"} <= set(fields):
        raise DataFault(f"grammar action {name!r} lacks its template or feedback")
    return ActionText(parse_symbols(fields["template"]), parse_symbols(fields["feedback"]))


def _rule_block(block: str, commented: bool) -> dict[str, Any]:
    block = textwrap.dedent(block)
    if commented:
        block = "\n".join(line for line in block.split("\n") if not line.lstrip().startswith("#"))
    try:
        rules = parse_json(block)
    except ValueError as error:
        raise DataFault(f"grammar block is not JSON ({error}); fetch or write the file again") from error
    if not isinstance(rules, dict):
        raise DataFault("grammar block is not a JSON object of rules; fetch or write the file again")
    return rules


def _blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position
