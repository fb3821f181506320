"""Fuzzes every border that takes input from strangers: ``make fuzz SECONDS=600``.

The time is divided over the targets, which run one after the other on one core. Crashing inputs are kept in
``--crashes``; ``--replay FILE`` runs one again. The last line says ``inputs=N crashes=M``; the exit code
is 1 if there was a crash.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fuzz.targets import TARGETS

_INPUTS = re.compile(r"^(?:stat::number_of_executed_units:\s*|#)(\d+)", re.M)
_START_S = 120
"""Seconds a target may take beside its fuzzing: imports, its first inputs, a hang at the end."""


def fuzz(name: str, seconds: int, crashes: Path) -> tuple[int, str]:
    """Fuzzes one target in a process of its own.

    Returns:
        Number of inputs, and what ended it before its time, if anything did.
    """
    # In memory where that can be: most inputs are written to a file before they are read.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="envrl-fuzz-", dir=memory) as scratch,
        tempfile.TemporaryFile("w+") as log,
    ):
        command = [sys.executable, "-m", "fuzz.one", name, str(seconds), str(crashes)]
        environment = {**os.environ, "TMPDIR": scratch}
        try:
            code = subprocess.run(
                command,
                stdout=subprocess.DEVNULL,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                timeout=seconds + _START_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
        log.seek(0)
        said = log.read()
    counts = [int(number) for number in _INPUTS.findall(said)]
    if code != 0 and not any(crashes.glob(f"{name}-*")):
        # Ended without an input being written: by a signal in native code, or before fuzzing began.
        (crashes / f"{name}-died.input").write_bytes(b"")
        (crashes / f"{name}-died.txt").write_text(said[-10_000:])
    return max(counts, default=0), "" if code == 0 else f", ended with code {code}"


def replay(path: Path) -> int:
    """Runs one kept input; a crash shows its traceback."""
    name = path.name.split("-")[0]
    from envrl.errors import EnvrlError

    with tempfile.TemporaryDirectory(prefix="envrl-fuzz-") as scratch:
        run = TARGETS[name].make(Path(scratch))
        try:
            run(path.read_bytes())
        except EnvrlError as error:
            print(f"refused: {error}")
            return 0
    print("accepted")
    return 0


def main() -> int:
    """Fuzzes the targets named, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=int, default=60, help="time for all targets together")
    parser.add_argument("--targets", default=",".join(TARGETS), help="names with commas between them")
    parser.add_argument(
        "--crashes", type=Path, default=Path("build/fuzz"), help="where crashing inputs are kept"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one kept input instead")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay)
    names = options.targets.split(",")
    if unknown := sorted(set(names) - TARGETS.keys()):
        parser.error(f"there is no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    if options.seconds < len(names):
        parser.error(f"{options.seconds} seconds are too few for {len(names)} targets; give one each")
    options.crashes.mkdir(parents=True, exist_ok=True)
    for old in [path for name in names for path in options.crashes.glob(f"{name}-*")]:
        old.unlink()
    whole = sum(TARGETS[name].weight for name in names)
    inputs = crashes = 0
    for name in names:
        seconds = max(1, round(options.seconds * TARGETS[name].weight / whole))
        begun = time.monotonic()
        found, ended = fuzz(name, seconds, options.crashes.resolve())
        known = len([p for p in options.crashes.glob(f"{name}-*") if p.suffix != ".txt"])
        print(
            f"{name:<24}{found:>10} inputs in {time.monotonic() - begun:4.0f} s, {known} crashes{ended}",
            flush=True,
        )
        inputs, crashes = inputs + found, crashes + known
    if crashes:
        print(f"crashing inputs lie in {options.crashes}; run one again with --replay")
    print(f"inputs={inputs} crashes={crashes}")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
