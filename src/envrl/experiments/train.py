"""Trains one run: ``python -m envrl.experiments.train --help``.

    python -m envrl.experiments.train --name first --loss.sp.weight=0.2 --loss.id.weight=0.2
    python -m envrl.experiments.train --config run.yaml --seed 3

Run again, the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from envrl.analysis.records import RunRecord, record_path
from envrl.experiments.config import run_config, run_parser
from envrl.experiments.console import (
    DEFAULT_ROOT,
    GO_ON,
    guarded,
    parse_or_fault,
    progress_printer,
    say,
    share,
)
from envrl.experiments.deliver import deliver_left
from envrl.experiments.resume import existing_record
from envrl.experiments.study_file import require_folder_name

ARM = "run"
"""Name of the only arm of a run that stands alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = run_parser(
        "python -m envrl.experiments.train",
        "Train one run. The same command again goes on from the last checkpoint; a finished run is left "
        "alone.",
    )
    parser.add_argument("--name", type=str, default="single", help="name of the run's folder and experiment")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="MLflow store and run folders")

    def command() -> int:
        parsed = parse_or_fault(lambda: parser.parse_args(arguments))
        name, root = str(parsed.pop("name")), Path(parsed.pop("root"))
        require_folder_name(name)
        config = run_config(parser, parsed)
        from envrl.experiments.processes import launched_rank

        helping = launched_rank() > 0
        if not helping:
            from envrl.experiments.preflight import preflight

            preflight(config)
        from envrl.experiments.run import execute_run
        from envrl.experiments.run_place import RunPlace
        from envrl.tracking.store import open_store

        console = Console()
        place = RunPlace(root / "studies" / name, name, ARM, open_store(root))
        if helping:
            execute_run(config, place)
            return 0
        deliver_left(place.study_folder, place.store.uri, console)
        known = existing_record(record_path(place.study_folder, ARM, config.seed), config)
        if known is not None and known.status == "finished":
            say(console, "this run was finished before; choose another --name or --seed to train another")
        record = execute_run(config, place, progress_printer(f"seed {config.seed}", console))
        _report(record, console)
        say(console, f"files: {place.folder(config.seed)}")
        say(console, f"all runs: {place.store.look}")
        return 0

    return guarded(command, GO_ON)


def _report(record: RunRecord, console: Console) -> None:
    first, last = record.evaluations[0], record.evaluations[-1]
    say(
        console,
        f"success on the panel ({len(last.outcomes)} games): {share(first.success_rate)} before, "
        f"{share(last.success_rate)} after {last.iteration} iterations",
    )


if __name__ == "__main__":
    sys.exit(main())
