"""Configurations as nested mappings of plain values: what YAML holds and what is laid over each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from envrl.errors import ConfigFault


def nested(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys (``loss.sp.weight: 0.2``) as nested mappings."""
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        content = nested(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
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
            values = merge(values, nested({key: yaml.safe_load(value)}))
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
