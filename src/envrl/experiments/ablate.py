"""Runs a study of arms and seeds: ``python -m envrl.experiments.ablate --help``.

    python -m envrl.experiments.ablate --study experiments/quick.yaml

The same command again skips finished runs and goes on with a killed one from its checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from envrl.errors import ConfigFault
from envrl.experiments.console import DEFAULT_ROOT, GO_ON, guarded
from envrl.experiments.plain import as_plain, assignments, merge, nested
from envrl.experiments.study_file import StudySettings, load_study

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Set in the environment of what torchrun has started."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: _command(options), GO_ON)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.experiments.ablate",
        description="Run a study: every arm with every seed, then a table, curves and a report. The same "
        "command again skips finished runs and goes on with killed ones.",
        epilog="What a run may be configured with: python -m envrl.experiments.train --help",
    )
    parser.add_argument(
        "--study", type=Path, default=Path("experiments/quick.yaml"), help="study file (default: %(default)s)"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=DEFAULT_ROOT,
        help="folder of the MLflow store and of the study folders (default: %(default)s)",
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the runs that are there; --no-resume refuses a study that has begun",
    )
    parser.add_argument("--name", help="another name for the study, e.g. to run it anew")
    parser.add_argument("--arms", help="only these arms, separated by commas")
    parser.add_argument("--seeds", help="only these seeds, separated by commas")
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: the study file's)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the base to change for all arms, e.g. --set train.iterations=3; can be repeated",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the runs and the time they take, and stop"
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="as --dry-run, and time three iterations of each arm of which no run is finished",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved configuration of every arm and stop"
    )
    return parser


def _command(options: argparse.Namespace) -> int:
    if TORCHRUN in os.environ:
        raise ConfigFault(
            "a study starts the processes of its runs itself; start it without torchrun, or each run by "
            "`torchrun … -m envrl.experiments.train …` where it shall have several machines"
        )
    settings = _chosen(load_study(options.study), options)
    from envrl.experiments.study import describe, plan_study, run_study

    study = plan_study(settings, options.root)
    console = Console()
    if options.print_config:
        first: dict[str, Any] = {}
        for run in study.runs:
            first.setdefault(run.arm, as_plain(run.config))
        print(yaml.safe_dump(first, sort_keys=False), end="")
    elif options.dry_run or options.estimate:
        from envrl.experiments.estimate import describe_time

        describe(study, console)
        describe_time(study, options.estimate, console)
    else:
        if not options.resume and (begun := sum(study.state(run) is not None for run in study.runs)):
            raise ConfigFault(
                f"{study.folder} has {begun} runs of this study already; give it another --name, move the "
                "folder away, or leave out --no-resume"
            )
        records = run_study(study, options.root, console)
        return 0 if all(r.status == "finished" for r in records) else 1
    return 0


def _chosen(settings: StudySettings, options: argparse.Namespace) -> StudySettings:
    """The study as the command line wants it."""
    if options.name is not None:
        settings = replace(settings, name=options.name)
    if options.jobs is not None:
        settings = replace(settings, jobs=options.jobs)
    if options.seeds is not None:
        settings = replace(settings, seeds=_numbers(options.seeds), more_seeds={})
    if options.set:
        settings = replace(settings, base=merge(nested(settings.base), assignments(options.set)))
    if options.arms is None:
        return settings
    wanted = [name.strip() for name in options.arms.split(",")]
    if unknown := [name for name in wanted if name not in settings.arms]:
        raise ConfigFault(f"unknown arm '{unknown[0]}'; the study has {', '.join(settings.arms)}")
    arms = {name: settings.arms[name] for name in settings.arms if name in wanted}
    baseline = settings.baseline if settings.baseline in arms else next(iter(arms))
    more = {name: seeds for name, seeds in settings.more_seeds.items() if name in arms}
    return replace(settings, arms=arms, baseline=baseline, more_seeds=more)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigFault(f"--seeds {text}: give whole numbers separated by commas") from None


if __name__ == "__main__":
    sys.exit(main())
