"""Trains one run: ``python -m envrl.experiments.train --help``.

    python -m envrl.experiments.train --name first --loss.sp.weight=0.2 --loss.id.weight=0.2
    python -m envrl.experiments.train --config run.yaml --seed 3

Run again, the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from jsonargparse import Namespace
from rich.console import Console

from envrl.experiments.config import run_config, run_parser
from envrl.experiments.console import DEFAULT_ROOT, guarded, parse_or_fault, progress_printer, share


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = run_parser("python -m envrl.experiments.train", "Train one run.")
    parser.add_argument("--name", type=str, default="single", help="name of the run's folder and experiment")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="MLflow store and run folders")

    def command() -> int:
        parsed = cast(Namespace, parse_or_fault(lambda: parser.parse_args(arguments)))
        name, root = str(parsed.pop("name")), Path(parsed.pop("root"))
        config = run_config(parser, parsed)
        from envrl.experiments.run import RunPlace, execute_run
        from envrl.tracking.store import open_store

        console = Console()
        place = RunPlace(root / "studies" / name, name, "run", open_store(root))
        record = execute_run(config, place, progress_printer(f"seed {config.seed}", console))
        last = record.evaluations[-1]
        console.print(
            f"success on the panel ({len(last.outcomes)} games): {share(record.evaluations[0].success_rate)} "
            f"before, {share(last.success_rate)} after {last.iteration} iterations; "
            f"files in {place.folder(config.seed)}",
            highlight=False,
        )
        return 0

    return guarded(command)


if __name__ == "__main__":
    sys.exit(main())
