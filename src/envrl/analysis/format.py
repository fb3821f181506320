"""Numbers as reports write them: rates in percent, differences in points with a sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from envrl.analysis.statistics import Estimate


def percent(value: float) -> str:
    """0.256 as ``25.6``."""
    return f"{100.0 * value:.1f}"


def signed(value: float) -> str:
    """0.012 as ``+1.2``."""
    return f"{100.0 * value:+.1f}"


def interval(estimate: Estimate) -> str:
    """Both ends in percent, in brackets."""
    return f"[{percent(estimate.low)}, {percent(estimate.high)}]"


def signed_interval(estimate: Estimate) -> str:
    """Both ends in points, in brackets."""
    return f"[{signed(estimate.low)}, {signed(estimate.high)}]"


def p_value(value: float) -> str:
    """Three digits, or ``<.001``."""
    return f"{value:.3f}" if value >= 0.001 else "<.001"


FILTERS: dict[str, Callable[..., Any]] = {
    "percent": percent,
    "signed": signed,
    "interval": interval,
    "signed_interval": signed_interval,
    "p_value": p_value,
}
"""Filters of the templates, by name."""
