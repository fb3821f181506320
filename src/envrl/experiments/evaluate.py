"""Evaluates a policy on the fixed panel: ``python -m envrl.experiments.evaluate --help``.

python -m envrl.experiments.evaluate                                  # the embedded policy
python -m envrl.experiments.evaluate --run mlruns/studies/quick/runs/grpo/seed_0
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from envrl.analysis.records import Evaluation, write_text_atomic
from envrl.errors import DataFault
from envrl.experiments.config import RunConfig, as_plain, config_from, run_config, run_parser
from envrl.experiments.console import guarded, parse_or_fault, share


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = run_parser(
        "python -m envrl.experiments.evaluate", "Evaluate a policy on the fixed panel, each game once."
    )
    parser.add_argument("--run", type=Path | None, default=None, help="folder of a trained run to evaluate")
    parser.add_argument("--games", type=int | None, default=None, help="size of the panel")
    parser.add_argument("--split", type=str | None, default=None, help="split of the panel")
    parser.add_argument("--out", type=Path | None, default=None, help="write outcomes to this JSON file")

    def command() -> int:
        parsed = cast(Namespace, parse_or_fault(lambda: parser.parse_args(arguments)))
        run, out = parsed.pop("run"), parsed.pop("out")
        asked = {"games": parsed.pop("games"), "split": parsed.pop("split")}
        changes = {f"evaluation.{name}": value for name, value in asked.items() if value is not None}
        if run is not None:
            config = config_from(trained_config(Path(run)), changes)
        else:
            config = config_from(as_plain(run_config(parser, parsed)), changes)
        evaluation, panel_hash = evaluate(config, Path(run) if run is not None else None)
        report(evaluation, panel_hash, Console())
        if out is not None:
            document = {"panel": panel_hash, **evaluation.model_dump()}
            write_text_atomic(Path(out), json.dumps(document, indent=1) + "\n")
        return 0

    return guarded(command)


def trained_config(run: Path) -> dict[str, Any]:
    """Configuration a run was trained with."""
    path = run / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataFault(
            f"'{run}' is no folder of a trained run: {path} can't be read ({error.strerror}); "
            "give a folder such as mlruns/studies/quick/runs/grpo/seed_0"
        ) from error
    return dict(content)


def evaluate(config: RunConfig, run: Path | None) -> tuple[Evaluation, str]:
    """Plays the panel with the configured policy, or with a trained run's weights.

    Returns:
        The outcomes, and the panel's hash.
    """
    from envrl.experiments.evaluation import play_panel
    from envrl.experiments.games import evaluation_panel
    from envrl.experiments.run import CHECKPOINT, build_collector
    from envrl.policy.model import load_policy

    torch.set_num_threads(config.train.threads)
    panel = evaluation_panel(config.env, config.evaluation)
    policy = load_policy(config.policy)
    if run is not None:
        path = run / CHECKPOINT
        if not path.is_file():
            raise DataFault(f"'{run}' holds no checkpoint ({path.name}); train it first")
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "policy."
        missing = policy.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items()}, strict=False
        ).unexpected_keys
        if missing:
            raise DataFault(f"{path} does not fit the model '{config.policy.model}': unknown {missing[0]}")
    collector = build_collector(config, policy, min(128, len(panel.games)))
    result = play_panel(policy, collector, panel, temperature=config.sampling.eval_temperature, iteration=0)
    return result.evaluation, panel.panel_hash


def report(evaluation: Evaluation, panel_hash: str, console: Console) -> None:
    """Prints success in total and per task type, with bootstrap intervals over games."""
    from envrl.analysis.statistics import success_interval

    table = Table(title=f"panel {panel_hash[:12]}, {len(evaluation.outcomes)} games")
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
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
