"""Writes the page of all metrics, ``docs/metrics.md``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from envrl.tracking.metrics import METRICS

_DIRECTION = {True: "higher", False: "lower", None: "–"}


def metrics_document() -> str:
    """The table as Markdown, the content of ``docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Written by `python -m envrl.tracking.metrics_page` from `src/envrl/tracking/metrics.py`;",
        "edit there.",
        "",
        "Every metric is logged to MLflow at step = training iterations completed when it was measured. So",
        "at step 0, `eval/` and `rollout/` describe the policy before any update, and `train/` and `update/`",
        "the updates of the first iteration, each a mean over the iteration's updates. `eval/` is the fixed",
        "panel, each game once; `dynamics/` questions about random play on its games, the same for every",
        "policy; `rollout/` the episodes collected for training, at sampling temperature.",
        "",
        "Where `rollout/left_out_share` is above 0, means over tokens of policy rows (`train/entropy`,",
        "`train/clip_share`, `train/sp_ce` of weight 0, …) are over the rows that take part, while losses",
        "of terms with a weight stay divided by all tokens. A mean over updates is over those that could",
        "measure it; an iteration in which nothing takes part has no such metric. To compare such means with",
        "those of a run that needs every row, set `batch.skip_flat: false`.",
        "",
        "A part in angle brackets stands for one word. MLflow adds `system/…` by itself.",
        "",
        "| name | unit | how it is computed | better |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{spec.name}` | {spec.unit} | {spec.formula} | {_DIRECTION[spec.higher_is_better]} |"
        for spec in METRICS
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the table of metrics as Markdown."""
    parser = argparse.ArgumentParser(
        prog="python -m envrl.tracking.metrics_page",
        description="Writes the table of all metrics as Markdown.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs") / "metrics.md", help="the file (default: %(default)s)"
    )
    path: Path = parser.parse_args(arguments).out
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(metrics_document(), encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
