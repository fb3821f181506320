"""Measures training beside what a user would take instead; ratios of one run on one core.

    python benchmarks/training.py [--repeats N] [--only PART] [--out FILE]

- ``iteration``: a whole iteration of GRPO beside TRL's ``GRPOTrainer`` (``trl_rival.py``; left out where
  TRL is not installed, ``python tools/install.py bench``);
- ``sampler``: tokens a second of the sampler beside ``transformers``' ``generate`` and continuous batching;
- ``update``: tokens a second of the update beside padded rows with one attention mask;
- ``auxiliary``: what SP+ID add to an update on the same episodes, in both layouts (here alone a ratio above
  1 means slower);
- ``scaling``: milliseconds of an episode by episodes, games, steps and history;
- ``evaluation``: seconds of a panel of 32 games, at temperature 0.4 and greedy;
- ``memory``: the most memory that the update took, beside padded rows.

Times are CPU seconds; each is the least of its repetitions, which take turns, because what a shared machine
does meanwhile only ever adds to them. There are ``--repeats`` of them, half as many of whole iterations
(``iteration``, ``auxiliary``'s episodes, ``scaling``, ``evaluation``, continuous batching), and three of
``memory``. Another ratio above 1 means faster, or less, than the other.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import multiprocessing
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from auxiliary_cost import auxiliary
from envrl.experiments.run import build
from envrl.experiments.runner import Parts
from envrl.policy.batch import RolloutBatch, RowBatch
from envrl.policy.sampler import CachedSession
from envrl.types import Role
from iteration import configuration, profile
from measuring import STEPS, TRANSCRIPT, WEBSHOP, Numbers, least, made, update, useful_tokens
from panel_speed import evaluation
from scaling import scaling

DEFAULT_OUT = Path(__file__).parent / "results" / "training.json"
_PROCESSES = 3
"""Processes in each of which the memory of an update is measured."""


def iteration(repeats: int) -> Numbers:
    """A whole iteration beside TRL's trainer; a round is the mean of two, after one that warms up."""
    if importlib.util.find_spec("trl") is None:
        print("training: trl is not installed, so no iteration is compared with it", file=sys.stderr)
        return {}
    from trl_rival import seconds_of_iterations

    own, rival, tokens = [], [], []
    for _ in range(max(1, repeats // 2)):
        found = profile(TRANSCRIPT, 2)
        own.append(found.total_s)
        seconds, written = seconds_of_iterations(configuration(TRANSCRIPT), 2)
        rival.append(sum(seconds) / len(seconds))
        tokens.append((found.action_tokens, written))
    best, other = min(own), min(rival)
    return {
        "iteration_s": best,
        "iteration_trl_s": other,
        "iteration_tokens": tokens[0][0],
        "iteration_trl_tokens": tokens[0][1],
        "iteration_trl_ratio": other / best,
    }


def sampler(repeats: int) -> Numbers:
    """Drawing answers of a fixed length to prompts of different lengths."""
    _, parts = made(TRANSCRIPT)
    model, rows, new = parts.policy.sampling_model().eval(), 64, 24
    # Others sample from it as transformers loads it.
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(10, 800, int(n)).tolist() for n in rng.integers(60, 200, rows)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    greedy = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def own() -> None:
        session = CachedSession(
            model, rows, model.config.vocab_size - 1
        )  # a token of no text, never the likeliest
        session.append(prompts)
        session.sample([np.random.default_rng(n) for n in range(rows)], 0.0, new)

    def generate() -> None:
        plain.generate(input_ids=ids, attention_mask=mask, **greedy)

    a, b = least(repeats, own, generate)
    drawn = rows * new
    numbers = {
        "sampler_tokens_per_s": drawn / a,
        "sampler_generate_tokens_per_s": drawn / b,
        "sampler_generate_ratio": b / a,
    }
    return numbers | _continuous(plain, prompts, new, a, max(1, repeats // 2))


def _continuous(model: Any, prompts: list[list[int]], new: int, own_s: float, repeats: int) -> Numbers:
    """The same with transformers' continuous batching, where this machine can run it.

    One manager draws for all rounds. To open it and what its first round takes beyond the others is start-up;
    a round is timed from handing over the prompts to the last answer.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    began = time.process_time()
    seconds: list[float] = []
    try:
        with (
            torch.no_grad(),
            model.continuous_batching_context_manager(generation_config=settings, timeout=5) as manager,
        ):
            opened = time.process_time() - began
            for _ in range(1 + repeats):
                started = time.process_time()
                written = _draw_all(manager, prompts, new)
                seconds.append(time.process_time() - started)
                if written != len(prompts) * new:
                    raise RuntimeError(f"it wrote {written} tokens")
    except Exception as error:  # whatever a part that is made for GPUs raises without one
        print(f"training: continuous batching can't run here ({str(error).splitlines()[0]})", file=sys.stderr)
        return {}
    best = min(seconds[1:])
    return {
        "sampler_continuous_tokens_per_s": len(prompts) * new / best,
        "sampler_continuous_ratio": best / own_s,
        "sampler_continuous_startup_s": opened + max(0.0, seconds[0] - best),
    }


def _draw_all(manager: Any, prompts: list[list[int]], new: int) -> int:
    """Tokens that a running manager wrote to the prompts, once all answers are there."""
    manager.add_requests(inputs=prompts, max_new_tokens=new)
    finished = written = 0
    while finished < len(prompts):
        answer = manager.get_result(timeout=1)
        if answer is None and not manager.is_running():
            break
        if answer is not None and answer.is_finished():
            finished += 1
            written += len(answer.generated_tokens)
    return written


def padded_update(parts: Parts, batches: Sequence[RolloutBatch]) -> Callable[[], None]:
    """Clipped surrogate over the policy rows as trainers commonly compute it: rows padded to one width,
    an attention mask, scores of every token."""
    model = parts.policy.causal
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)

    def loss(rows: RowBatch) -> Tensor:
        seen = (torch.arange(rows.token_ids.shape[1]) < rows.lengths[:, None]).long()
        logits = model(input_ids=rows.token_ids, attention_mask=seen, use_cache=False).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, rows.token_ids[:, 1:, None])[..., 0]
        acted = rows.roles[:, 1:] == Role.ACTION
        ratio = (logprobs - rows.sampled_logprobs[:, 1:]).exp()
        gain = torch.minimum(ratio, ratio.clamp(0.8, 1.2)) * rows.advantages[:, 1:]
        return -(gain * acted).sum() / acted.sum()

    def run() -> None:
        for batch in batches:
            if batch.policy is not None:
                loss(batch.policy).backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


def policy_batches(parts: Parts, *, padded: bool) -> list[RolloutBatch]:
    """Micro-batches of an iteration's policy rows, put together as an update with or without padding needs.

    The rows are the same: with padding those of like length come together, without it those that begin alike.
    """
    packs, parts.policy.packs = parts.policy.packs, not padded
    batches = [replace(batch, questions=None) for batch in parts.source.collect(0, 0).batches]
    parts.policy.packs = packs
    return batches


def updates(repeats: int) -> Numbers:
    """The update beside one on padded rows."""
    numbers: Numbers = {}
    for name, case in (
        ("transcript", TRANSCRIPT),
        ("steps", STEPS),
        ("webshop", WEBSHOP),
    ):
        # Every row is computed, as the other does it.
        config, parts = made(case, **{"loss.entropy_coefficient": 0.0, "batch.skip_flat": False})
        batches, alike = policy_batches(parts, padded=False), policy_batches(parts, padded=True)
        plain = build(configuration(replace(case, changes={**case.changes, "policy.packed": False})))
        own, padded = update(parts, batches, config.batch.micro_batches), padded_update(plain, alike)
        a, b = least(repeats, own, padded)
        tokens = useful_tokens(batches)
        numbers |= {
            f"update_{name}_tokens_per_s": tokens / a,
            f"update_{name}_padded_tokens_per_s": tokens / b,
            f"update_{name}_padded_ratio": b / a,
        }
    return numbers


def _peak(padded: bool, pipe: Any) -> None:
    """In a process of its own: the most memory during an update beyond that before it, MiB."""
    torch.set_num_threads(1)
    config, parts = made(WEBSHOP)
    batches = policy_batches(parts, padded=padded)
    plain = build(configuration(replace(WEBSHOP, changes={"policy.packed": False})))
    run = padded_update(plain, batches) if padded else update(parts, batches, config.batch.micro_batches)
    before = psutil.Process().memory_info().rss / 2**20
    # Linux's way to forget the most there was so far: loading took more than an update of this size does.
    Path("/proc/self/clear_refs").write_text("5")
    run()
    status = Path("/proc/self/status").read_text()
    most = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024
    pipe.send(most - before)


def memory(repeats: int) -> Numbers:
    """The update's peak on WebShop's long rows, the least of some processes that take turns."""
    found: dict[bool, list[float]] = {False: [], True: []}
    context = multiprocessing.get_context("spawn")
    for _ in range(min(repeats, _PROCESSES)):
        for padded, peaks in found.items():
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_peak, args=(padded, there))
            process.start()
            # Held by the child alone, so that waiting ends when it does.
            there.close()
            peaks.append(float(here.recv()))
            process.join()
    own, other = min(found[False]), min(found[True])
    return {
        "memory_update_mib": own,
        "memory_update_padded_mib": other,
        "memory_update_padded_ratio": other / max(own, 1e-9),
    }


PARTS: Mapping[str, Callable[[int], Numbers]] = {
    "iteration": iteration,
    "sampler": sampler,
    "update": updates,
    "auxiliary": auxiliary,
    "scaling": scaling,
    "evaluation": evaluation,
    "memory": memory,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table and writes the numbers."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=main.__doc__)
    parser.add_argument("--repeats", type=int, default=6, help="rounds of each comparison")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part alone")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where the numbers go")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    numbers: Numbers = {}
    for name, measure in PARTS.items():
        if args.only in (None, name):
            print(f"training: measuring {name}", file=sys.stderr)
            numbers |= measure(args.repeats)
    print("| measure | value |\n| --- | ---: |")
    for name, value in numbers.items():
        print(f"| {name} | {value:,.3g} |" if value < 100 else f"| {name} | {value:,.0f} |")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # One part measured again leaves the others as they were.
    before = json.loads(args.out.read_text()) if args.only and args.out.is_file() else {}
    args.out.write_text(json.dumps(before | numbers, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
