"""The parenthesised forms PDDL is written in."""

from __future__ import annotations

import re
from collections.abc import Sequence

from envrl.errors import DataFault

Tree = str | list["Tree"]

_TOKEN = re.compile(r"[()]|[^\s()]+")
_COMMENT = re.compile(r";[^\n]*")


def parse_tree(text: str) -> list[Tree]:
    """Nested lists of the lower-cased tokens of one PDDL expression."""
    if ";" in text:
        text = _COMMENT.sub("", text)
    stack: list[list[Tree]] = [[]]
    for token in _TOKEN.findall(text.lower()):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise DataFault("PDDL has a ')' too many; the file is damaged, fetch or write it again")
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1 or isinstance(stack[0][0], str):
        raise DataFault("PDDL is not one balanced (define ...) form; the file is damaged, fetch it again")
    return stack[0][0]


def sections(text: str, expected: str) -> tuple[str, list[tuple[str, list[Tree]]]]:
    """Name and (keyword, content) sections of ``(define (expected name) (keyword content...) ...)``."""
    tree = parse_tree(text)
    header = tree[1] if len(tree) > 1 else ""
    if tree[0] != "define" or isinstance(header, str) or len(header) != 2 or header[0] != expected:
        raise DataFault(f"text is not a PDDL {expected}; it must start with (define ({expected} ...) ...)")
    parts = [as_list(part) for part in tree[2:]]
    return as_str(header[1]), [(as_str(part[0]), part[1:]) for part in parts]


def typed(tokens: Sequence[Tree]) -> list[tuple[str, str]]:
    """``?a ?b - t ?c`` as (name, type) pairs; without a type it is ``object``."""
    pairs: list[tuple[str, str]] = []
    waiting: list[str] = []
    stream = iter(tokens)
    for token in stream:
        if token == "-":
            kind = as_str(next(stream, []))
            pairs += [(name, kind) for name in waiting]
            waiting = []
        else:
            waiting.append(as_str(token))
    return pairs + [(name, "object") for name in waiting]


def as_list(tree: Tree) -> list[Tree]:
    """The form, refused if it is a name."""
    if isinstance(tree, str):
        raise DataFault(f"PDDL has {tree!r} where a (...) form is expected")
    return tree


def as_str(tree: Tree) -> str:
    """The name, refused if it is a form."""
    if not isinstance(tree, str):
        raise DataFault(f"PDDL has the form {tree!r} where a name is expected")
    return tree
