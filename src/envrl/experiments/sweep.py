"""Searches the settings of a run: ``python -m envrl.experiments.sweep --help``.

    python -m envrl.experiments.sweep --study experiments/sweep_aux_weights.yaml --workers 2

The same command again goes on where it was stopped; more trials are added with ``--trials``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from envrl.errors import ConfigFault
from envrl.experiments.console import DEFAULT_ROOT, GO_ON, guarded
from envrl.experiments.sweep_file import StorageSettings, load_sweep


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _command(options), GO_ON)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.experiments.sweep",
        description="Search the settings of a run: trials chosen by Optuna, then a table, the best "
        "configuration and figures. The same command again goes on where it was stopped.",
        epilog="What can be varied: python -m envrl.experiments.train --help",
    )
    parser.add_argument("--study", type=Path, required=True, help="sweep file")
    parser.add_argument(
        "--root",
        type=Path,
        default=DEFAULT_ROOT,
        help="folder of the MLflow store and of the study folders (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="trials at the same time (default: %(default)s)"
    )
    parser.add_argument("--trials", type=int, help="trials in all (default: the sweep file's)")
    parser.add_argument(
        "--storage",
        help="where Optuna keeps the trials: postgresql://USER:PASSWORD@HOST/DATABASE, sqlite:///PATH, or "
        "journal:PATH (default: SQLite in the study's folder)",
    )
    parser.add_argument(
        "--heartbeat",
        type=int,
        default=StorageSettings.heartbeat_s,
        metavar="SECONDS",
        help="between two signs of life of a running trial in a database (default: %(default)s)",
    )
    parser.add_argument(
        "--grace",
        type=int,
        default=StorageSettings.grace_s,
        metavar="SECONDS",
        help="without a sign of life, after which another machine takes a trial over (default: %(default)s)",
    )
    return parser


def _command(options: argparse.Namespace) -> int:
    settings = load_sweep(options.study)
    if options.trials is not None:
        settings = replace(settings, trials=options.trials)
    if options.workers < 1:
        raise ConfigFault(f"--workers is {options.workers}; use at least 1")
    storage = StorageSettings(options.storage, options.heartbeat, options.grace)
    from envrl.experiments.sweep_run import run_sweep

    failed = run_sweep(settings, options.root, options.workers, storage, Console())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
