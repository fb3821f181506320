"""Measures training beside what a user would take instead; ratios of one run on one core.

    python benchmarks/training.py [--repeats N] [--only PART] [--out FILE]

- ``iteration``: a whole iteration of GRPO beside TRL's ``GRPOTrainer`` (``trl_rival.py``; left out where
  TRL is not installed, ``python tools/install.py bench``);
- ``sampler``: tokens a second of the sampler beside ``transformers``' ``generate`` and continuous batching;
- ``update``: tokens a second of the update beside padded rows with one attention mask;
- ``auxiliary``: what SP+ID add to an update on the same episodes, in both layouts (here alone a ratio above
  1 means slower);
- ``scaling``: seconds of an iteration by episodes, history and games;
- ``memory``: the most memory that the update took, beside padded rows.

Times are CPU seconds; each is the least of the repetitions, which take turns, because what a shared machine
does meanwhile only ever adds to them. Another ratio above 1 means faster, or less, than the other.
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

from envrl.experiments.config import RunConfig
from envrl.experiments.run import build
from envrl.experiments.runner import Parts
from envrl.policy.batch import RolloutBatch, RowBatch
from envrl.policy.sampler import CachedSession
from envrl.training.optimiser import adamw
from envrl.types import Role
from iteration import CASES, SP_ID, Case, configuration, profile

DEFAULT_OUT = Path(__file__).parent / "results" / "training.json"
TRANSCRIPT, WITH_BOTH = CASES[0], CASES[1]
EVERY_TRANSITION = {"auxiliary.max_transitions": None}
PUBLISHED = {
    **EVERY_TRANSITION,
    # Instructions, all admissible actions and rooms as full as the official ones. Episodes are few and short,
    # because each of their prompts has several hundred tokens.
    "prompt.form": "reasoned",
    "prompt.show_admissible": True,
    "env.receptacles": None,
    "env.objects_per_receptacle": None,
    "env.max_steps": 6,
    "rollout.games": 4,
    "rollout.episodes_per_game": 4,
    "sampling.max_context": 8192,
}
"""How the published protocol asks (the embedded policy answers without thoughts, so answers are shorter)."""
Numbers = dict[str, float]


def least(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """Least CPU seconds of each function over rounds in which they take turns."""
    for function in functions:
        function()
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for n, function in enumerate(functions):
            started = time.process_time()
            function()
            best[n] = min(best[n], time.process_time() - started)
    return best


def made(case: Case, **changes: Any) -> tuple[RunConfig, Parts]:
    """What a run of the case is put together from."""
    config = configuration(replace(case, changes={**case.changes, **changes}))
    return config, build(config)


def update(parts: Parts, batches: Sequence[RolloutBatch], micro_batches: int) -> Callable[[], None]:
    """All updates of an iteration, as the trainer makes them."""
    module = parts.module
    optimiser = adamw((p for p in module.parameters() if p.requires_grad), module._optim)

    def run() -> None:
        for n, batch in enumerate(batches):
            (module.training_step(batch, n) / micro_batches).backward()
            if (n + 1) % micro_batches == 0:
                optimiser.step()
                optimiser.zero_grad()

    return run


def useful_tokens(batches: Sequence[RolloutBatch]) -> int:
    """Tokens of the rows, filler not counted."""
    return sum(int(r.lengths.sum()) for b in batches for r in (b.policy, b.questions) if r is not None)


def iteration(repeats: int) -> Numbers:
    """A whole iteration beside TRL's trainer."""
    if importlib.util.find_spec("trl") is None:
        print("training: trl is not installed, so no iteration is compared with it", file=sys.stderr)
        return {}
    from trl_rival import seconds_of_iterations

    own, rival, tokens = [], [], []
    for _ in range(max(1, repeats // 3)):
        found = profile(TRANSCRIPT, 2)
        own.append(found.total_s)
        seconds, written = seconds_of_iterations(configuration(TRANSCRIPT), 2)
        rival += seconds
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
    return numbers | _continuous(plain, prompts, new, a)


def _continuous(model: Any, prompts: list[list[int]], new: int, own_s: float) -> Numbers:
    """The same with transformers' continuous batching, where this machine can run it."""
    from transformers import GenerationConfig

    settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    started = time.process_time()
    try:
        answers = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
    except Exception as error:  # whatever a part that is made for GPUs raises without one
        print(f"training: continuous batching can't run here ({str(error).splitlines()[0]})", file=sys.stderr)
        return {}
    seconds = time.process_time() - started
    written = sum(len(answer.generated_tokens) for answer in answers.values())
    if written != len(prompts) * new:
        print(f"training: continuous batching wrote {written} tokens; left out", file=sys.stderr)
        return {}
    return {"sampler_continuous_tokens_per_s": written / seconds, "sampler_continuous_ratio": seconds / own_s}


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


def updates(repeats: int) -> Numbers:
    """The update beside one on padded rows."""
    numbers: Numbers = {}
    for name, case in (
        ("transcript", TRANSCRIPT),
        ("steps", CASES[2]),
        ("webshop", CASES[4]),
    ):
        # Every row is computed, as the other does it.
        config, parts = made(case, **{"loss.entropy_coefficient": 0.0, "batch.skip_flat": False})
        batches = [replace(b, questions=None) for b in parts.source.collect(0, 0).batches]
        plain = build(configuration(replace(case, changes={**case.changes, "policy.packed": False})))
        own, padded = update(parts, batches, config.batch.micro_batches), padded_update(plain, batches)
        a, b = least(repeats, own, padded)
        tokens = useful_tokens(batches)
        numbers |= {
            f"update_{name}_tokens_per_s": tokens / a,
            f"update_{name}_padded_tokens_per_s": tokens / b,
            f"update_{name}_padded_ratio": b / a,
        }
    return numbers


def auxiliary(repeats: int) -> Numbers:
    """SP+ID beside none of them on the same episodes: cost of the update, and of the whole iteration.

    With 64 questions of each kind, as the quick study has them; with one about every transition
    (``all``); and with those in the prompts of the published protocol (``published``).
    """
    numbers: Numbers = {}
    for layout, case in (("transcript", WITH_BOTH), ("steps", CASES[3])):
        for variant, changes in (("", {}), ("_all", EVERY_TRANSITION), ("_published", PUBLISHED)):
            update_cost, iteration_cost = _cost(replace(case, changes={**case.changes, **changes}), repeats)
            numbers[f"auxiliary_{layout}{variant}_update_cost_ratio"] = update_cost
            numbers[f"auxiliary_{layout}{variant}_iteration_cost_ratio"] = iteration_cost
    return numbers


def _cost(case: Case, repeats: int) -> tuple[float, float]:
    """How many times as long an update, and an iteration, takes with the two objectives of a case."""
    config, parts = made(case)
    started = time.process_time()
    experience = parts.source.collect(0, 0)
    collect = time.process_time() - started
    bare = build(
        configuration(replace(case, changes={k: v for k, v in case.changes.items() if k not in SP_ID}))
    )
    # The rows of a run without the objectives: no questions.
    others = bare.source.collect(0, 0).batches
    both = update(parts, experience.batches, config.batch.micro_batches)
    none = update(bare, others, config.batch.micro_batches)
    a, b = least(repeats, both, none)
    return a / b, (collect + a) / (collect + b)


def scaling(repeats: int) -> Numbers:
    """Seconds of an iteration per episode, as it grows in one direction."""
    numbers: Numbers = {}
    for name, key, values in (
        ("episodes", "rollout.episodes_per_game", (2, 8, 32)),
        ("games", "rollout.games", (2, 8, 32)),
        ("steps", "env.max_steps", (6, 12, 24, 48)),
    ):
        for value in values:
            config, parts = made(TRANSCRIPT, **{key: value})
            best = float("inf")
            for number in range(max(1, repeats // 2)):
                started = time.process_time()
                batches = parts.source.collect(number, 0).batches
                update(parts, batches, config.batch.micro_batches)()
                best = min(best, time.process_time() - started)
            episodes = config.rollout.games * config.rollout.episodes_per_game
            numbers[f"scaling_{name}_{value}_ms_per_episode"] = 1000 * best / episodes
    return numbers


def _peak(padded: bool, pipe: Any) -> None:
    """In a process of its own: the most memory during an update beyond that before it, MiB."""
    torch.set_num_threads(1)
    config, parts = made(CASES[4])
    batches = [replace(b, questions=None) for b in parts.source.collect(0, 0).batches]
    plain = build(configuration(replace(CASES[4], changes={"policy.packed": False})))
    run = padded_update(plain, batches) if padded else update(parts, batches, config.batch.micro_batches)
    before = psutil.Process().memory_info().rss / 2**20
    # Linux's way to forget the most there was so far: loading took more than an update of this size does.
    Path("/proc/self/clear_refs").write_text("5")
    run()
    status = Path("/proc/self/status").read_text()
    most = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024
    pipe.send(most - before)


def memory(repeats: int) -> Numbers:
    """The update's peak on WebShop's long rows."""
    found = []
    context = multiprocessing.get_context("spawn")
    for padded in (False, True):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_peak, args=(padded, there))
        process.start()
        found.append(float(here.recv()))
        process.join()
    return {
        "memory_update_mib": found[0],
        "memory_update_padded_mib": found[1],
        "memory_update_padded_ratio": found[1] / max(found[0], 1e-9),
    }


PARTS: Mapping[str, Callable[[int], Numbers]] = {
    "iteration": iteration,
    "sampler": sampler,
    "update": updates,
    "auxiliary": auxiliary,
    "scaling": scaling,
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
