"""Configurations as nested mappings of plain values: what YAML holds and what is laid over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from envrl.errors import ConfigFault

LARGEST_YAML = 1 << 18
"""Most bytes of a configuration or study file."""
_MOST_NODES = 100_000
_DEEPEST = 24
_MOST_PARTS = 16


def read_yaml(text: str) -> Any:
    """What a YAML text says: text, numbers, dates, lists and mappings, never an object of Python's.

    Raises:
        yaml.YAMLError: It is no YAML, or too deeply nested, or its aliases make it a multiple of its size.
    """
    return _bounded(text, construct=True)


def check_yaml(text: str) -> None:
    """Refuses what :func:`read_yaml` refuses, for another reader of YAML.

    Raises:
        yaml.YAMLError: See there.
    """
    _bounded(text, construct=False)


def _bounded(text: str, *, construct: bool) -> Any:
    if len(text) > LARGEST_YAML:
        raise yaml.YAMLError(f"it has more than {LARGEST_YAML} characters")
    try:
        _refuse_depth(text)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _extent(node, {})
            return loader.construct_document(node) if construct else None
        finally:
            loader.dispose()
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    # What PyYAML's constructors let through: a date of month 13, a number without digits.
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise yaml.YAMLError(f"a value can't be read: {error}") from error


def _refuse_depth(text: str) -> None:
    """Stops at the first value that lies too deep: the scanner takes quadratic time on open brackets."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} levels deep")


def _extent(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Nodes below a node with every alias written out, and how deep they lie.

    Raises:
        yaml.YAMLError: An alias stands within what it names, or there are too many or too deep.
    """
    if id(node) in known:
        if (found := known[id(node)]) is None:
            raise yaml.YAMLError("an alias (*name) stands within what it names")
        return found
    known[id(node)] = None
    below: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        below = node.value
    elif isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    extents = [_extent(part, known) for part in below]
    count = 1 + sum(size for size, _ in extents)
    depth = 1 + max((deep for _, deep in extents), default=0)
    if count > _MOST_NODES or depth > _DEEPEST:
        raise yaml.YAMLError(
            f"with its aliases written out it has more than {_MOST_NODES} values or {_DEEPEST} levels"
        )
    known[id(node)] = count, depth
    return count, depth


def nested(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys (``loss.sp.weight: 0.2``) as nested mappings.

    Raises:
        ConfigFault: A key has more parts than any setting.
    """
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        content = nested(value) if isinstance(value, Mapping) else value
        parts = str(key).split(".")
        if len(parts) > _MOST_PARTS:
            raise ConfigFault(f"the key {str(key)[:40]!r}... has {len(parts)} parts; no setting has so many")
        for part in reversed(parts):
            content = {part: content}
        result = merge(result, content)
    return result


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge; ``changes`` wins."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return result


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """The nested mapping of ``--set KEY=VALUE`` options, later ones winning.

    Raises:
        ConfigFault: A text is not of that form, or its value no YAML.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigFault(f"--set {text}: give KEY=VALUE, e.g. --set train.iterations=3")
        try:
            values = merge(values, nested({key: read_yaml(value)}))
        except yaml.YAMLError as error:
            raise ConfigFault(f"--set {text}: '{value}' is no YAML value") from error
    return values


def as_plain(value: Any) -> Any:
    """A configuration as what YAML and JSON know."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): as_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(v) for v in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
