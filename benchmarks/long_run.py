"""One long run in one process: does memory stay flat, and do seconds an iteration?

    python benchmarks/long_run.py [--iterations N] [--out FILE]

The embedded policy with SP and ID, tracked by MLflow, evaluated and checkpointed as any run, on small
iterations (2 games of 8 episodes), so that 500 of them take minutes. The first fifth is left out: caches
fill there. Slopes are those of least squares over the rest; seconds are CPU seconds, and the time of an
iteration that evaluates is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from envrl.experiments.config import config_from
from envrl.experiments.plain import merge, nested
from envrl.experiments.run import execute_run
from envrl.experiments.run_place import RunPlace
from envrl.experiments.study_file import load_study
from envrl.tracking.store import open_store
from envrl.training.progress import Progress
from iteration import STUDIES

DEFAULT_OUT = Path(__file__).parent / "results" / "long_run.json"
EVALUATED_EVERY = 50
MIB = 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, prints the slopes and writes the numbers."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=main.__doc__)
    parser.add_argument("--iterations", type=int, default=500, help="iterations of the run")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where the numbers go")
    args = parser.parse_args(argv)
    small = {
        "rollout.games": 2,
        "train.iterations": args.iterations,
        "train.diagnose_every": 0,
        "evaluation.games": 16,
        "evaluation.every": EVALUATED_EVERY,
        "loss.sp.weight": 0.02,
        "loss.id.weight": 0.02,
    }
    config = config_from(merge(load_study(STUDIES / "quick.yaml").base, nested(small)))
    process = psutil.Process()
    memory: list[float] = []
    clock: list[float] = []

    def report(progress: Progress) -> None:
        memory.append(process.memory_info().rss / MIB)
        clock.append(time.process_time())
        if progress.iteration % EVALUATED_EVERY == 0:
            print(f"iteration {progress.iteration}: {memory[-1]:.0f} MiB", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as root:
        place = RunPlace(Path(root) / "studies" / "long", "long", "long", open_store(Path(root)))
        execute_run(config, place, report)
    seconds = np.diff(clock)
    numbers = np.arange(1, len(clock))
    # An iteration that is evaluated takes longer, and so may the one after.
    plain = (numbers % EVALUATED_EVERY > 1) & (numbers > args.iterations // 5)
    late = np.arange(len(memory)) > args.iterations // 5
    growth = np.polyfit(np.flatnonzero(late), np.array(memory)[late], 1)[0]
    slower = np.polyfit(numbers[plain], seconds[plain], 1)[0]
    mean = float(seconds[plain].mean())
    result = {
        "long_run_iterations": args.iterations,
        "long_run_memory_mib": memory[-1],
        "long_run_memory_mib_per_100_iterations": 100 * float(growth),
        "long_run_s_per_iteration": mean,
        "long_run_slowdown_per_100_iterations": 100 * float(slower) / mean,
    }
    for name, value in result.items():
        print(f"{name} {value:.4g}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result | {"memory_mib": memory, "seconds": seconds.tolist()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
