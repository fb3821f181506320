"""Evaluates a policy on the fixed panel: ``python -m envrl.experiments.evaluate --help``.

    python -m envrl.experiments.evaluate                                  # the embedded policy
    python -m envrl.experiments.evaluate --run mlruns/studies/quick/runs/grpo/seed_0

With ``--run``, the run's own configuration takes the place of the defaults.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from envrl.analysis.records import Evaluation, write_text_atomic
from envrl.experiments.config import RunConfig, run_config, run_parser
from envrl.experiments.console import guarded, parse_or_fault, share
from envrl.experiments.plain import flat
from envrl.experiments.resume import CHECKPOINT, completed_iterations, read_checkpoint
from envrl.experiments.trained import trained_config


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = run_parser(
        "python -m envrl.experiments.evaluate",
        "Evaluate a policy on the fixed panel, each game once. With --run, the run's own configuration takes "
        "the place of the defaults.",
    )
    parser.add_argument("--run", type=Path | None, default=None, help="folder of a trained run to evaluate")
    parser.add_argument("--games", type=int | None, default=None, help="short for --evaluation.games")
    parser.add_argument(
        "--split", choices=["valid_seen", "valid_unseen"], help="short for --evaluation.split"
    )
    parser.add_argument("--out", type=Path | None, default=None, help="write the outcomes to this JSON file")

    def command() -> int:
        run = _run_folder(arguments)
        if run is not None:
            parse_or_fault(lambda: parser.set_defaults(flat(trained_config(run))))
        parsed = parse_or_fault(lambda: parser.parse_args(arguments))
        for name in ("games", "split"):
            if (value := parsed.pop(name)) is not None:
                parsed[f"evaluation.{name}"] = value
        out = parsed.pop("out")
        evaluation, panel_hash = evaluate(run_config(parser, parsed), run)
        report(evaluation, panel_hash, Console())
        if out is not None:
            document = {"panel": panel_hash, **evaluation.model_dump()}
            write_text_atomic(Path(out), json.dumps(document, indent=1) + "\n")
        return 0

    return guarded(command)


def _run_folder(arguments: Sequence[str] | None) -> Path | None:
    """The value of ``--run``, wanted before everything else is parsed."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--run", type=Path)
    found: Path | None = parse_or_fault(lambda: finder.parse_known_args(arguments)[0].run)
    return found


def evaluate(config: RunConfig, run: Path | None) -> tuple[Evaluation, str]:
    """Plays the panel with the configured policy, or with a trained run's weights.

    Returns:
        The outcomes, and the panel's hash.
    """
    import torch

    from envrl.experiments.dynamics import DynamicsProbe, with_dynamics
    from envrl.experiments.evaluation import play_panel
    from envrl.experiments.games import evaluation_panel
    from envrl.experiments.run import build_collector, build_pool, build_sampler, closed_in_the_end
    from envrl.experiments.trained import trained_policy
    from envrl.policy.model import load_policy

    torch.set_num_threads(config.train.threads)
    checkpoint = read_checkpoint(run / CHECKPOINT) if run is not None else None
    sampler = build_sampler(config)
    policy = load_policy(config.embodied) if checkpoint is None else trained_policy(config, checkpoint)
    panel = evaluation_panel(config.env, config.evaluation)
    iteration = completed_iterations(checkpoint) if checkpoint is not None else 0
    with build_pool(config, panel) as pool, closed_in_the_end(sampler):
        collector = build_collector(config, policy, pool)
        result = play_panel(
            policy,
            collector,
            panel,
            temperature=config.sampling.eval_temperature,
            iteration=iteration,
            sampler=sampler,
        )
        asked = config.evaluation.dynamics > 0
        known = DynamicsProbe(config, panel, pool, policy).measure(policy) if asked else {}
    return with_dynamics(result.evaluation, known), panel.panel_hash


def report(evaluation: Evaluation, panel_hash: str, console: Console) -> None:
    """Prints success in total and per task type, with bootstrap intervals over games."""
    import numpy as np

    from envrl.analysis.statistics import success_interval
    from envrl.tracking.metrics import check_name

    table = Table(title=f"panel {panel_hash}, {len(evaluation.outcomes)} games")
    for name in ("task type", "games", "success", "95 % interval", "mean steps"):
        table.add_column(name, justify="left" if name == "task type" else "right")
    families = sorted({o.family for o in evaluation.outcomes})
    for family in [*families, "all"]:
        mine = [o for o in evaluation.outcomes if family in (o.family, "all")]
        estimate = success_interval(np.array([[float(o.won) for o in mine]]), np.random.default_rng(0))
        table.add_row(
            family,
            str(len(mine)),
            share(estimate.value),
            f"{100 * estimate.low:.1f} – {100 * estimate.high:.1f} %",
            f"{sum(o.steps for o in mine) / len(mine):.1f}",
            end_section=family == families[-1],
        )
    console.print(table)
    for name, value in evaluation.dynamics.items():
        spec = check_name(name)
        shown = share(value) if spec.unit == "share" else f"{value:.3f} {spec.unit}"
        console.print(f"{name}: {shown} ({spec.formula})")


if __name__ == "__main__":
    sys.exit(main())
