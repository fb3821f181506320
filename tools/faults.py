"""Runs the tests of faults and counts what was survived: `make faults`.

Each test below ``tests`` that makes something go wrong carries
``@pytest.mark.fault("what goes wrong", "what is promised")``. It counts as one fault, survived if the test
passes, unless it says more by ``record_property``: ``faults``, ``survived``, ``lost_runs``. A skipped test
has met no fault; the line before the last says how many were skipped and why. With ``--write`` no test is run
and the table of all of them is written into ``docs/faults.md``.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "tests"
PAGE = ROOT / "docs" / "faults.md"
COMMAND = "python tools/faults.py --write"


@dataclass(eq=False)  # pytest keeps plugins in sets
class Tally:
    """Counts faults while pytest runs; a plugin of it."""

    faults: int = 0
    survived: int = 0
    lost_runs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Tests by the reason why they were skipped."""
    _failed: set[str] = field(default_factory=set)
    _skipped: dict[str, str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called after set-up, test and tear-down of each test."""
        if "fault" not in report.keywords:
            return
        # Failed as it was expected to is not survived; pytest calls it skipped.
        if report.skipped and not hasattr(report, "wasxfail"):
            self._skipped[report.nodeid] = _reason(report)
        elif not report.passed or hasattr(report, "wasxfail"):
            self._failed.add(report.nodeid)
        if report.when != "teardown":
            return
        if report.nodeid in self._skipped and report.nodeid not in self._failed:
            self.skipped[self._skipped[report.nodeid]] += 1
        else:
            self._count(dict(report.user_properties), report.nodeid in self._failed)

    def _count(self, said: dict[str, object], failed: bool) -> None:
        faults = int(str(said.get("faults", 1)))
        survived = int(str(said.get("survived", 0 if failed else faults)))
        self.faults += faults
        # A test that failed has at least one fault that was not survived, whatever it said before.
        self.survived += max(0, min(survived, faults - 1)) if failed else min(survived, faults)
        self.lost_runs += int(str(said.get("lost_runs", 0)))

    @property
    def skips(self) -> str:
        """How many tests were skipped and why, in one line; empty if none was."""
        why = "; ".join(f"{reason} ({count})" for reason, count in self.skipped.most_common())
        return f"skipped={self.skipped.total()}: {why}" if self.skipped else ""

    @property
    def line(self) -> str:
        """The result in one line."""
        return f"faults={self.faults} survived={self.survived} lost_runs={self.lost_runs}"

    @property
    def good(self) -> bool:
        """Whether there were faults, and all were survived without a run lost."""
        return 0 < self.faults == self.survived and self.lost_runs == 0


def _reason(report: pytest.TestReport) -> str:
    """Why a test was skipped, in one line."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return " ".join(text.removeprefix("Skipped: ").split())


@dataclass(frozen=True)
class Fault:
    """A test of a fault, as its marker tells."""

    what: str
    promise: str
    test: str


def faults_below(folder: Path) -> Iterator[Fault]:
    """Every marked test below a folder, by file and place; nothing is imported.

    Raises:
        ValueError: A marker does not hold two plain strings.
    """
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
                    what, promise = _two_strings(decorator, f"{path.name}::{node.name}")
                    yield Fault(what, promise, f"{path.relative_to(folder)}::{node.name}")


def _two_strings(marker: ast.Call, test: str) -> tuple[str, str]:
    try:
        what, promise = (ast.literal_eval(argument) for argument in marker.args)
    except ValueError as fault:
        raise ValueError(
            f"{test}: give pytest.mark.fault two plain strings, what goes wrong and what is promised"
        ) from fault
    return str(what), str(promise)


def document(faults: Sequence[Fault]) -> str:
    """The page ``docs/faults.md``."""
    lines = [
        "# What can go wrong",
        "",
        f"Written by `{COMMAND}` from the tests in `{FOLDER}`; edit there.",
        "",
        "`make faults` makes every one of these happen and shows what is promised. Its last line is",
        "`faults=N survived=M lost_runs=K`; it ends well only if M is N and K is 0. A lost run is one that",
        "MLflow does not have in the end, or has twice. What this machine can't make happen (a small file",
        "system needs the right to mount one, PostgreSQL and Ray must be installed) is skipped and not",
        "counted; the line before says how many tests that were, and why.",
        "",
        "| what goes wrong | what is promised | test |",
        "|---|---|---|",
    ]
    lines += [f"| {_cell(f.what)} | {_cell(f.promise)} | `{f.test}` |" for f in faults]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def run(arguments: Sequence[str]) -> int:
    """Runs the tests, one after the other, and prints the result as the last line.

    Args:
        arguments: What pytest is told; the tests to run, options.
    """
    tally = Tally()
    status = pytest.main(list(arguments), plugins=[tally])
    if tally.skips:
        print(tally.skips)
    print(tally.line, flush=True)
    return 0 if status == pytest.ExitCode.OK and tally.good else 1


def main(arguments: Sequence[str]) -> int:
    """The command."""
    if list(arguments) == ["--write"]:
        PAGE.write_text(document(list(faults_below(ROOT / FOLDER))), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(ROOT)}")
        return 0
    return run(["-q", str(ROOT / FOLDER), "-m", "fault", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
