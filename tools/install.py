"""Installs this project into the virtual environment whose Python runs this file, in stages.

    python tools/install.py run        what a study needs
    python tools/install.py reference  TextWorld as well, the oracle the native engine is tested against
    python tools/install.py dev        both, and the development tools
    python tools/install.py docs       what builds the documentation site
    python tools/install.py fuzz       the fuzzer of `make fuzz`
    python tools/install.py bench      what `make bench` compares training with

Standard library only: it runs before anything is installed. Three things make it quick:

- The ``run`` stage takes alfworld for the data it ships and leaves out TextWorld, which alfworld asks
  for: two of TextWorld's dependencies are C and C++ programs that are compiled during installation,
  minutes of work and a compiler, and only the reference backend uses them.
- torch comes first and through pip, so that pip's own configuration decides which build it is (the
  CPU one is five times smaller); uv keeps the torch it finds.
- Everything else comes through uv, which resolves and unpacks in parallel. It does not read pip's
  configuration; where it cannot reach a package index, pip does the work, in about twice the time.

Nothing is byte-compiled in advance: Python compiles the modules it really imports, on first use.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ("-c", str(ROOT / "constraints.txt"))
DATA_ONLY = "alfworld"
"""Distribution whose files are wanted without what it depends on."""


def requirement_name(requirement: str) -> str:
    """Distribution a requirement asks for: ``torch`` of ``torch>=2.13``."""
    return re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]


def runtime_requirements(pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """The project's declared dependencies without torch and alfworld, which are installed apart."""
    declared: list[str] = tomllib.loads(pyproject.read_text())["project"]["dependencies"]
    return [r for r in declared if requirement_name(r) not in ("torch", DATA_ONLY)]


def optional_requirements(extra: str, pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """The requirements of one extra, which are installed without resolving the whole project again."""
    extras: dict[str, list[str]] = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
    return extras[extra]


def call(command: Sequence[str]) -> bool:
    """Runs a command, its output shown; whether it succeeded."""
    # One line a step: a slow network is told from a hang.
    print("install:", *(a.replace(f"{ROOT}/", "") for a in command[command.index("install") :]), flush=True)
    return subprocess.run(command, cwd=ROOT, check=False, stdin=subprocess.DEVNULL).returncode == 0


def pip(*arguments: str) -> bool:
    """Installs with pip; a warning of pip's about alfworld's missing TextWorld is expected."""
    return call([sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", *PINS, *arguments])


def install(*arguments: str) -> None:
    """Installs with uv, or with pip where uv is not to be had or reaches no index.

    Raises:
        SystemExit: If both fail; their own messages stand above.
    """
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
    if call([*uv, *PINS, *arguments]):
        return
    print("install: uv did not succeed; trying pip", file=sys.stderr, flush=True)
    if not pip(*arguments):
        raise SystemExit(
            "install: pip failed too; see its message above (no network, or no index configured?)"
        )


def install_run() -> None:
    """What a study needs: every declared dependency, alfworld's data, and this project itself."""
    # A failure here is not final: `install` says so and falls back.
    pip("uv")
    if not pip("--no-deps", "torch"):
        raise SystemExit("install: torch cannot be installed; see pip's message above")
    install(*runtime_requirements())
    install("--no-deps", DATA_ONLY)
    install("--no-deps", "--editable", ".")


def install_reference() -> None:
    """TextWorld: what alfworld itself depends on. Compiles two programs, which takes minutes."""
    install(DATA_ONLY)


def install_dev() -> None:
    """The reference stack and the development tools, in one resolution."""
    install(DATA_ONLY, "--editable", ".[dev]")


def install_docs() -> None:
    """What builds the documentation site; needs the ``run`` stage, and nothing of the other two."""
    install(*optional_requirements("docs"))


def install_fuzz() -> None:
    """The fuzzer; needs the ``run`` stage, and nothing of the others."""
    install(*optional_requirements("fuzz"))


def install_bench() -> None:
    """What training is compared with; needs the ``reference`` stage, whose engine is compared too."""
    install(*optional_requirements("bench"))


def main() -> None:
    """Installs the stage named on the command line and says how long it took."""
    stages = {
        "run": install_run,
        "reference": install_reference,
        "dev": install_dev,
        "docs": install_docs,
        "fuzz": install_fuzz,
        "bench": install_bench,
    }
    parser = argparse.ArgumentParser(description="Install envrl into this Python's virtual environment.")
    parser.add_argument("stage", choices=stages, help="run first, then any other")
    stage = parser.parse_args().stage
    if sys.prefix == sys.base_prefix:
        raise SystemExit("install: run this with the Python of a virtual environment, e.g. .venv/bin/python")
    started = time.monotonic()
    print(f"install: stage '{stage}' ...", flush=True)
    stages[stage]()
    print(f"install: stage '{stage}' took {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
