"""Every border that takes input from strangers, by name."""

from __future__ import annotations

from fuzz import alfworld, answers, journals, results, settings, webshop
from fuzz.target import Target

TARGETS: dict[str, Target] = {
    name: target
    for part in (alfworld, webshop, answers, settings, results, journals)
    for name, target in part.TARGETS.items()
}
