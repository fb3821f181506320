"""Where an iteration's time goes: a table for both layouts and environments, with and without SP+ID.

    python benchmarks/iteration.py [--iterations N] [--out FILE] [--cases PART_OF_NAME]
        [--model FOLDER_OR_HUB_ID | --random SHAPE] [--dtype float32|bfloat16] [--device cpu|gpu]

Runs of the quick studies, without evaluation and tracking, on one thread. The first iteration warms up
and counts operations; the following ones are timed. ``GFLOP/s`` beside the rate of large matrix products
on the same core (the roof) says how far a part is from what the processor can do; for decoding, which reads
all weights for a token a row, so does the rate of a large copy.

- ``utilisation``: operations that were computed (matrix products and attention; causal attention as half the
  square) beside the roof, over the whole iteration;
- ``model_flops_utilisation``: operations that the rows of the timed iterations need by hand, beside the same
  roof: 2 a weight and token and attention for playing and for the update's forward pass, twice that for its
  backward pass but for the gradients of weights that are not trained (:mod:`flops`). Nothing is shared and no
  filler counted, so it lies above ``utilisation`` where rows share beginnings.

On the CPU times are CPU seconds. With ``--device gpu`` they are those of the clock, a span's begin and end
waiting for the GPU, which slows an iteration down; roofs are then those of the GPU. That was not run on one.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.plain import merge, nested
from envrl.experiments.run import build
from envrl.experiments.runner import Parts
from envrl.experiments.study_file import load_study
from envrl.rollout.datamodule import RolloutDataModule
from envrl.rollout.source import Experience
from flops import ModelSize, learnt_rows, played_rows
from iteration_spans import ROLLOUT, UPDATE, Spans
from iteration_table import Profile, Roofs, table
from random_policy import SHAPES, write_random
from roofs import Clock, clock_of, peak_bandwidth, peak_flops

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


def configuration(case: Case) -> RunConfig:
    """The run's configuration: without evaluation, on one thread, nothing diagnosed."""
    quiet = nested(
        {
            "train.diagnose_every": 0,
            "train.threads": 1,
            "train.accelerator": "cpu",
            "evaluation.games": 4,
        }
    )
    changes = merge(quiet, nested(dict(case.changes)))
    return config_from(load_study(STUDIES / case.study).base, changes)


class _Tally:
    """What the timed iterations brought, and when they ended.

    Args:
        config: What is run.
        parts: What it is put together from.
        spans: Cleared when the time that counts begins.
        clock: Gives the seconds.
    """

    def __init__(self, config: RunConfig, parts: Parts, spans: Spans, clock: Clock) -> None:
        self._config, self._spans, self.clock = config, spans, clock
        self._pad = parts.policy.chat.pad_id
        self._size = ModelSize.of(parts.policy)
        self.ends: list[float] = []
        self.action = self.update = self.useful = self.model_flops = 0.0

    def collected(self, iteration: int, experience: Experience) -> None:
        """An iteration was played; the first one warms up."""
        if iteration == 0:
            return
        self.action += experience.metrics["rollout/action_tokens"]
        for batch in experience.batches:
            for rows in (batch.policy, batch.questions):
                if rows is not None:
                    self.update += rows.token_ids.numel()
                    self.useful += int((rows.token_ids != self._pad).sum())
        played = played_rows(experience.groups, self._config.rollout.layout)
        learnt = learnt_rows(experience.batches, self._config.batch.micro_batches)
        self.model_flops += self._size.forward(*played) + self._size.update(*learnt)

    def ended(self, iteration: int) -> None:
        """An iteration's updates were made."""
        if iteration == 0:
            self._spans.clear()
        self.ends.append(self.clock())


class _Ends(L.Callback):
    """Tells the ends of iterations."""

    def __init__(self, tally: _Tally) -> None:
        self._tally = tally

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._tally.ended(trainer.current_epoch)


def _trainer(config: RunConfig, iterations: int, tally: _Tally) -> L.Trainer:
    return L.Trainer(
        max_epochs=iterations,
        accelerator=config.train.accelerator,
        devices=1,
        precision=config.train.precision,
        accumulate_grad_batches=config.batch.micro_batches,
        gradient_clip_val=config.optim.gradient_clip or None,
        reload_dataloaders_every_n_epochs=1,
        logger=False,
        callbacks=[_Ends(tally)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


def profile(case: Case, iterations: int) -> Profile:
    """Runs the case in this process."""
    config = configuration(case)
    torch.set_num_threads(1)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    parts = build(config)
    clock = clock_of(device_of(config.train.accelerator))
    spans = Spans(clock)
    tally = _Tally(config, parts, spans, clock)
    data = RolloutDataModule(parts.source, config.batch, lambda: parts.module.updates_done, tally.collected)
    with warnings.catch_warnings(), parts.pool, spans.watching():
        warnings.simplefilter("ignore")
        with spans.counting_flops():
            _trainer(config, 1, tally).fit(parts.module, datamodule=data)
        flops = dict(spans.flops)
        parts.module.updates_done = 0
        tally.ends.clear()
        _trainer(config, iterations + 1, tally).fit(parts.module, datamodule=data)
    total = (tally.ends[-1] - tally.ends[0]) / iterations
    seconds = {name: spans.seconds.get(name, 0.0) / iterations for name in (*ROLLOUT, *UPDATE)}
    return Profile(
        case=case.name,
        seconds=seconds,
        gflops={name: flops.get(name, 0) / 1e9 for name in seconds},
        model_gflops=tally.model_flops / iterations / 1e9,
        decode_gigabytes=spans.decode_bytes / iterations / 1e9,
        other_s=max(0.0, total - sum(seconds.values())),
        action_tokens=tally.action / iterations,
        update_tokens=tally.update / iterations,
        useful_tokens=tally.useful / iterations,
    )


def device_of(accelerator: str) -> torch.device:
    """Where a run computes."""
    return torch.device("cpu" if accelerator == "cpu" else "cuda")


def measured_roofs(device: torch.device, dtype: torch.dtype) -> Roofs:
    """What that device can do."""
    return Roofs(peak_flops(device, dtype) / 1e9, peak_bandwidth(device) / 1e9)


def chosen_cases(args: argparse.Namespace, scratch: Path) -> list[Case]:
    """The cases with the policy and device that were asked for; a random policy is written to a folder."""
    changes: dict[str, Any] = {"train.accelerator": args.device, "policy.dtype": args.dtype}
    cases = []
    for case in CASES:
        if args.cases not in case.name:
            continue
        model = args.model
        if args.random:
            env = case.name.split()[0]
            model, dtype = str(scratch / env), getattr(torch, args.dtype)
            if not Path(model).exists():
                write_random(args.random, Path(model), dtype, env)
        named = {} if model is None else {"policy.model": model}
        cases.append(replace(case, changes={**case.changes, **changes, **named}))
    return cases


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=main.__doc__)
    parser.add_argument("--iterations", type=int, default=4, help="timed iterations of each case")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where the numbers go")
    policy = parser.add_mutually_exclusive_group()
    policy.add_argument("--model", help="folder or hub id of the policy, in place of the embedded one")
    policy.add_argument("--random", choices=sorted(SHAPES), help="a policy of this shape with random weights")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of its weights")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="where it computes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the table and writes the numbers."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)
    roofs = measured_roofs(device_of(args.device), getattr(torch, args.dtype))
    with tempfile.TemporaryDirectory() as scratch:
        profiles = [profile(case, args.iterations) for case in chosen_cases(args, Path(scratch))]
    print(table(profiles, roofs, "CPU s" if args.device == "cpu" else "s"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "roof_gflops": roofs.gflops,
        "roof_gigabytes_per_s": roofs.gigabytes,
        "cases": {p.case: p.plain(roofs) for p in profiles},
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
