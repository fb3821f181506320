"""The page of the site that lists every field of a run's configuration, made from its dataclasses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import yaml
from docstring_parser import parse_from_object

HEAD = """# Configuration

Every field of a run, made from the dataclasses when this site is built. A field is

- an option of a command: `--loss.sp.weight=0.2` (`train`, `evaluate`);
- a line of a YAML file: `loss: {sp: {weight: 0.2}}`, or `loss.sp.weight: 0.2` in an arm of a study;
- a key for `ablate --set loss.sp.weight=0.2`, and for the space of a [sweep](sweeps.md#the-space).

Unknown keys and impossible values are refused before anything is written.
"""


def configuration_page() -> str:
    """The page's Markdown."""
    from envrl.experiments.config import RunConfig

    sections = [HEAD, *section(RunConfig, "", "The run")]
    return "\n".join(sections)


def section(kind: type, prefix: str, title: str) -> Iterator[str]:
    """A table of a dataclass's own fields, then the sections of the dataclasses it holds."""
    about, meanings = documented(kind)
    hints = get_type_hints(kind)
    yield f"\n## {title}\n\n{about}\n"
    rows, nested = [], []
    for each in fields(kind):
        name = f"{prefix}{each.name}"
        if is_dataclass(hints[each.name]):
            nested.append((hints[each.name], f"{name}.", f"`{name}`"))
        else:
            cells = (f"`{name}`", type_name(hints[each.name]), default(each), meanings[each.name])
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if rows:
        yield "| field | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)
    for inner in nested:
        yield from section(*inner)


def documented(kind: type) -> tuple[str, dict[str, str]]:
    """First paragraph of a dataclass's docstring, and the text below each of its fields."""
    docstring = parse_from_object(kind)
    meanings = {p.arg_name: re.sub(r"\s+", " ", p.description or "") for p in docstring.params}
    missing = [f.name for f in fields(kind) if not meanings.get(f.name)]
    if missing:
        raise ValueError(f"{kind.__name__} has fields without a text below them: {', '.join(missing)}")
    return docstring.short_description or "", meanings


def type_name(hint: Any) -> str:
    """A type as a reader of YAML needs it: choices, or a name, with null where it may be left empty."""
    if hint is type(None):
        return "null"
    arguments = get_args(hint)
    if is_dataclass(hint):
        return f"a mapping (`{hint.__name__}`)"
    origin = getattr(hint, "__origin__", None)
    if origin is tuple:
        return f"list of {type_name(arguments[0])}"
    if isinstance(origin, type):
        return "mapping"
    if arguments and not any(isinstance(a, type) or get_args(a) for a in arguments):
        return ", ".join(f"`{plain(a)}`" for a in arguments)
    if arguments:
        return " or ".join(type_name(a) for a in arguments)
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(hint, str(hint))


def default(each: Field[Any]) -> str:
    """A field's default as YAML writes it."""
    value = each.default if each.default_factory is MISSING else each.default_factory()
    return f"`{plain(value)}`"


def plain(value: Any) -> str:
    """A value as YAML writes it on one line."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
