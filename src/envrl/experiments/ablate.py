"""Runs a study of arms and seeds: ``python -m envrl.experiments.ablate --help``.

    python -m envrl.experiments.ablate --study experiments/quick.yaml

The same command again skips finished runs and goes on with a killed one from its checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from rich.console import Console

from envrl.errors import ConfigFault
from envrl.experiments.config import as_plain, load_study
from envrl.experiments.console import DEFAULT_ROOT, guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m envrl.experiments.ablate", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--study", type=Path, default=Path("experiments/quick.yaml"), help="study file (YAML)"
    )
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="MLflow store and study folders")
    parser.add_argument("--name", help="another name for the study, e.g. to run it anew")
    parser.add_argument("--arms", help="only these arms, separated by commas")
    parser.add_argument("--seeds", help="only these seeds, separated by commas")
    parser.add_argument("--jobs", type=int, help="runs at the same time")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved configuration of every arm and stop"
    )
    options = parser.parse_args(arguments)
    return guarded(lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    settings = load_study(options.study)
    if options.name:
        settings = replace(settings, name=options.name)
    if options.jobs is not None:
        settings = replace(settings, jobs=options.jobs)
    if options.seeds:
        settings = replace(settings, seeds=_numbers(options.seeds))
    if options.arms:
        wanted = [a.strip() for a in options.arms.split(",")]
        if unknown := [a for a in wanted if a not in settings.arms]:
            raise ConfigFault(f"unknown arm '{unknown[0]}'; the study has {', '.join(settings.arms)}")
        arms = {name: settings.arms[name] for name in settings.arms if name in wanted}
        baseline = settings.baseline if settings.baseline in arms else next(iter(arms))
        settings = replace(settings, arms=arms, baseline=baseline)
    from envrl.experiments.study import describe, plan_study, run_study

    study = plan_study(settings, options.root)
    console = Console()
    if options.print_config:
        first = {r.arm: as_plain(r.config) for r in reversed(study.runs)}
        print(yaml.safe_dump(first, sort_keys=False), end="")
    elif options.dry_run:
        describe(study, console)
    else:
        records = run_study(study, options.root, console)
        return 0 if all(r.status == "finished" for r in records) else 1
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigFault(f"--seeds {text}: give whole numbers separated by commas") from None


if __name__ == "__main__":
    sys.exit(main())
