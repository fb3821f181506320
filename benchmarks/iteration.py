"""Where an iteration's time goes: a table for both layouts and environments, with and without SP+ID.

    python benchmarks/iteration.py [--iterations N] [--out FILE]

Runs of the quick studies, without evaluation and tracking, on one thread. The first iteration warms up
and counts operations; the following ones are timed. ``GFLOP/s`` beside the rate of large matrix products
on the same core (the roof) says how far a part is from what the processor can do.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.plain import merge, nested
from envrl.experiments.run import build
from envrl.experiments.study_file import load_study
from envrl.rollout.datamodule import RolloutDataModule
from envrl.rollout.source import Experience
from iteration_spans import ROLLOUT, UPDATE, Spans, peak_flops

DEFAULT_OUT = Path(__file__).parent / "results" / "iteration.json"
_CHATTY = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
STUDIES = Path(__file__).parent.parent / "experiments"
SP_ID = {"loss.sp.weight": 0.2, "loss.id.weight": 0.2}
STEPS = {
    "rollout.layout": "steps",
    "auxiliary.sp_rows": "questions",
    "sampling.max_context": 1024,
}


@dataclass(frozen=True, slots=True)
class Case:
    """What is run: a study's base and what differs from it."""

    name: str
    study: str
    changes: Mapping[str, Any]


CASES = (
    Case("alfworld transcript grpo", "quick.yaml", {}),
    Case("alfworld transcript grpo+sp+id", "quick.yaml", SP_ID),
    Case("alfworld steps grpo", "quick.yaml", STEPS),
    Case("alfworld steps grpo+sp+id", "quick.yaml", STEPS | SP_ID),
    Case("webshop transcript grpo", "webshop_quick.yaml", {}),
    Case("webshop transcript grpo+sp+id", "webshop_quick.yaml", SP_ID),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """An iteration of a case, means over the timed ones.

    Attributes:
        case: Its name.
        seconds: CPU seconds by span.
        gflops: 10⁹ floating-point operations by span, of the first iteration.
        other_s: CPU seconds outside all spans: Lightning, data loader.
        action_tokens: Tokens that the policy wrote, per iteration.
        update_tokens: Tokens in the update's rows, padding included, per iteration.
        useful_tokens: The same without padding.
    """

    case: str
    seconds: dict[str, float]
    gflops: dict[str, float]
    other_s: float
    action_tokens: float
    update_tokens: float
    useful_tokens: float

    @property
    def total_s(self) -> float:
        """CPU seconds of an iteration."""
        return sum(self.seconds.values()) + self.other_s


def configuration(case: Case) -> RunConfig:
    """The run's configuration: without evaluation, on one thread, nothing diagnosed."""
    quiet = nested({"train.diagnose_every": 0, "train.threads": 1, "evaluation.games": 4})
    changes = merge(quiet, nested(dict(case.changes)))
    return config_from(load_study(STUDIES / case.study).base, changes)


def profile(case: Case, iterations: int) -> Profile:
    """Runs the case in this process."""
    config = configuration(case)
    torch.set_num_threads(1)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    parts = build(config)
    spans = Spans()
    began: list[float] = []
    tokens = {"action": 0.0, "update": 0.0, "useful": 0.0}

    def collected(iteration: int, experience: Experience) -> None:
        if iteration == 0:
            return
        tokens["action"] += experience.metrics["rollout/action_tokens"]
        for batch in experience.batches:
            for rows in (batch.policy, batch.questions):
                if rows is not None:
                    tokens["update"] += rows.token_ids.numel()
                    tokens["useful"] += int((rows.token_ids != parts.policy.chat.pad_id).sum())

    class Clock(L.Callback):
        """Counts operations in the first iteration, and starts the clock after it."""

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 0:
                spans.clear()
            began.append(time.process_time())

    data = RolloutDataModule(parts.source, config.batch, lambda: parts.module.updates_done, collected)
    with warnings.catch_warnings(), parts.pool, spans.watching():
        warnings.simplefilter("ignore")
        for epochs, count in ((1, True), (iterations + 1, False)):
            trainer = L.Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                accumulate_grad_batches=config.batch.micro_batches,
                gradient_clip_val=config.optim.gradient_clip or None,
                reload_dataloaders_every_n_epochs=1,
                logger=False,
                callbacks=[Clock()],
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            if count:
                with spans.counting_flops():
                    trainer.fit(parts.module, datamodule=data)
                flops = dict(spans.flops)
                parts.module.updates_done = 0
                began.clear()
            else:
                trainer.fit(parts.module, datamodule=data)
    total = (began[-1] - began[0]) / iterations
    seconds = {name: spans.seconds.get(name, 0.0) / iterations for name in (*ROLLOUT, *UPDATE)}
    return Profile(
        case.name,
        seconds,
        {name: flops.get(name, 0) / 1e9 for name in seconds},
        max(0.0, total - sum(seconds.values())),
        tokens["action"] / iterations,
        tokens["update"] / iterations,
        tokens["useful"] / iterations,
    )


def table(profiles: Sequence[Profile], roof: float) -> str:
    """Markdown: shares of the time by span, and how near the roof the dense work runs."""
    names = (*ROLLOUT, *UPDATE)
    lines = [
        "| share of CPU time | " + " | ".join(p.case for p in profiles) + " |",
        "| --- |" + " ---: |" * len(profiles),
    ]

    def row(label: str, cells: Sequence[str]) -> None:
        lines.append(f"| {label} | " + " | ".join(cells) + " |")

    row("CPU s an iteration", [f"{p.total_s:.2f}" for p in profiles])
    for part, spans in (("rollout", ROLLOUT), ("update", UPDATE)):
        row(f"**{part}**", [f"{sum(p.seconds[n] for n in spans) / p.total_s:.1%}" for p in profiles])
        for name in spans:
            cells = [f"{p.seconds[name] / p.total_s:.1%}" for p in profiles]
            row(f"{part}: {name}", cells)
    row("other (Lightning)", [f"{p.other_s / p.total_s:.1%}" for p in profiles])
    for name in names:
        if any(p.gflops[name] > 0 for p in profiles):
            cells = [
                f"{p.gflops[name] / p.seconds[name]:.1f}" if p.seconds[name] > 0 else "" for p in profiles
            ]
            row(f"GFLOP/s: {name}", cells)
    used = [sum(p.gflops.values()) / p.total_s for p in profiles]
    row("GFLOP/s in all", [f"{u:.1f}" for u in used])
    row(f"utilisation (roof {roof / 1e9:.0f} GFLOP/s)", [f"{u * 1e9 / roof:.1%}" for u in used])
    row("tokens written", [f"{p.action_tokens:,.0f}" for p in profiles])
    row("update tokens a CPU s", [f"{update_rate(p):,.0f}" for p in profiles])
    row("padding that is not computed", [f"{1 - p.useful_tokens / p.update_tokens:.1%}" for p in profiles])
    return "\n".join(lines)


def update_rate(profile: Profile) -> float:
    """Tokens of the update's rows, padding not counted, per CPU second of the update."""
    return profile.useful_tokens / sum(profile.seconds[name] for name in UPDATE)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes the numbers."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=main.__doc__)
    parser.add_argument("--iterations", type=int, default=4, help="timed iterations of each case")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where the numbers go")
    args = parser.parse_args(argv)
    roof = peak_flops()
    chosen = [case for case in CASES if args.cases in case.name]
    profiles = [profile(case, args.iterations) for case in chosen]
    print(table(profiles, roof))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "roof_gflops": roof / 1e9,
        "cases": {p.case: asdict(p) | {"total_s": p.total_s} for p in profiles},
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
