"""Gathers what the benchmarks wrote into one file of flat keys, one number each: ``benchmarks/results.json``.

    python benchmarks/collect.py

Ratios are named ``…_ratio``; above 1 means faster, or less, than what is compared with. Those of what
something costs, ``…_cost_ratio``, are above 1 where it takes longer.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMES = {"training": "", "long_run": "", "iteration": "profile"}
"""What the keys of a file begin with, where that is not the file's own name."""


def numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number below a value, under the names on the way to it; lists are measurements of one kind."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers(re.sub(r"\W+", "_", f"{name}_{key}").strip("_"), inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)


def collected(folder: Path) -> dict[str, float]:
    """The numbers of all files of a folder; those of training under their own names."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        found |= dict(numbers(NAMES.get(path.stem, path.stem), content))
    return found


def main() -> int:
    """Writes the file."""
    found = collected(HERE / "results")
    if not found:
        print("collect: no results; run `make bench`", file=sys.stderr)
        return 1
    target = HERE / "results.json"
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(f"collect: {len(found)} numbers in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
