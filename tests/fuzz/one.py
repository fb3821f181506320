"""Fuzzes one border until the time is up: ``python -m fuzz.one TARGET SECONDS CRASHES``.

Run by :mod:`fuzz`. An exception that is none of this package's own goes into the folder ``CRASHES`` with
its traceback, once for each place it comes from, and fuzzing goes on. A hang or exhausted memory ends the
process; libFuzzer then writes the input there.
"""

from __future__ import annotations

import hashlib
import logging
import random
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import atheris

from fuzz.mutation import mutated
from fuzz.targets import TARGETS

HANG_S = 10
"""Seconds after which an input counts as a hang."""
_MEMORY_MB = 3072
_LONGEST = 1 << 16
_FRAMES = 3


def place_of(error: BaseException) -> str:
    """Where an exception comes from: its type and the innermost calls, the same for many inputs."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return f"{type(error).__name__}:" + ";".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames)


def main(name: str, seconds: int, crashes: Path) -> None:
    """Fuzzes until the time is up; libFuzzer ends the process."""
    logging.disable()
    warnings.simplefilter("ignore")
    target = TARGETS[name]
    scratch = Path(tempfile.mkdtemp(prefix="envrl-fuzz-"))
    (scratch / "work").mkdir()
    with atheris.instrument_imports(include=["envrl"], enable_loader_override=False):
        from envrl.errors import EnvrlError

        run = target.make(scratch / "work")
    corpus = scratch / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds()):
        run(seed)  # a seed that is refused finds nothing
        (corpus / f"seed{number}").write_bytes(seed)
    known: set[str] = set()

    def once(data: bytes) -> None:
        try:
            run(data)
        except EnvrlError:
            return
        except Exception as error:
            place = place_of(error)
            if place not in known:
                known.add(place)
                stem = crashes / f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
                stem.with_suffix(".input").write_bytes(data)
                stem.with_suffix(".txt").write_text(traceback.format_exc(), errors="replace")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        # The fuzzer's own mutations follow comparisons in the code, these keep the form.
        if rng.random() < 0.5:
            return atheris.Mutate(data, most)
        return mutated(data, most, rng, target.words)

    options = [
        f"-max_total_time={seconds}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={_MEMORY_MB}",
        f"-max_len={_LONGEST}",
        "-len_control=0",
        f"-artifact_prefix={crashes}/{name}-",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup([sys.argv[0], *options], once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
