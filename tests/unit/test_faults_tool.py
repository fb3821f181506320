"""What `make faults` counts, and that its page is current."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = "import pytest\nfault = pytest.mark.fault('a | b', 'c')\n"


def tool() -> ModuleType:
    """The command as a module; it stands outside the package because it needs pytest."""
    spec = importlib.util.spec_from_file_location("faults", ROOT / "tools" / "faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # its dataclasses look there for their module
    spec.loader.exec_module(module)
    return module


PASSES = "@fault\ndef test_a(): pass\n"
TEN = (
    "@fault\ndef test_b(record_property):\n"
    "    for n, v in (('faults', 10), ('survived', {}), ('lost_runs', {})): record_property(n, v)\n"
    "    assert {}\n"
)
SKIPS = (
    "@fault\ndef test_s(): pytest.skip('no  device\\nhere')\n"
    "@pytest.fixture\ndef g(): pytest.skip('no server')\n@fault\ndef test_t(g): pass\n"
    "@fault\n@pytest.mark.skipif(True, reason='no device here')\ndef test_u(): pass\n"
    "def test_no_fault(): pytest.skip('of no interest')\n"
)
BAD_END = "@pytest.fixture\ndef f():\n    yield\n    assert 0\n"

CASES = {
    "passed": (PASSES + "def test_c(): pass\n", "0 faults=1 survived=1 lost_runs=0"),
    "many": (PASSES + TEN.format(10, 0, 1), "0 faults=11 survived=11 lost_runs=0"),
    "one_not_survived": (TEN.format(9, 0, 1), "1 faults=10 survived=9 lost_runs=0"),
    "runs_lost": (TEN.format(10, 2, 1), "1 faults=10 survived=10 lost_runs=2"),
    "failed_after_all": (TEN.format(10, 0, 0), "1 faults=10 survived=9 lost_runs=0"),
    "no_more_than_faults": (TEN.format(99, 0, 1), "0 faults=10 survived=10 lost_runs=0"),
    "skipped": (PASSES + SKIPS, "0 faults=1 survived=1 lost_runs=0"),
    "all_skipped": (SKIPS, "1 faults=0 survived=0 lost_runs=0"),
    "skipped_and_failed": (SKIPS + TEN.format(10, 0, 0), "1 faults=10 survived=9 lost_runs=0"),
    "tear_down_failed_after_a_skip": (
        BAD_END + "@fault\ndef test_b(f): pytest.skip('no device')\n",
        "1 faults=1 survived=0 lost_runs=0",
    ),
    "expected_to_fail": (
        "@fault\n@pytest.mark.xfail\ndef test_b(): assert 0\n",
        "1 faults=1 survived=0 lost_runs=0",
    ),
    "tear_down_failed": (
        BAD_END + "@fault\ndef test_b(f): pass\n",
        "1 faults=1 survived=0 lost_runs=0",
    ),
    "another_test_failed": (PASSES + "def test_c(): assert 0\n", "1 faults=1 survived=1 lost_runs=0"),
    "import_failed": ("1 / 0\n", "1 faults=0 survived=0 lost_runs=0"),
    "no_faults": ("def test_c(): pass\n", "1 faults=0 survived=0 lost_runs=0"),
}
"""Tests → exit code and last line."""
SCRIPT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import faults
for path in sys.argv[1:]:
    print("code", faults.run(["-q", "-p", "no:cacheprovider", path]))
"""


def test_the_last_line_counts(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  fault: x\n")
    paths = [tmp_path / f"test_{name}.py" for name in CASES]
    for path, (tests, _) in zip(paths, CASES.values(), strict=True):
        path.write_text(HEADER + tests)
    # One process for all: most of the time is taken by its start.
    command = [sys.executable, "-c", SCRIPT, ROOT / "tools", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    ends = [
        f"{line.removeprefix('code ')} {lines[at - 1]}"
        for at, line in enumerate(lines)
        if line[:5] == "code "
    ]
    before = [lines[at - 2] for at, line in enumerate(lines) if line[:5] == "code "]
    assert dict(zip(CASES, ends, strict=True)) == {name: line for name, (_, line) in CASES.items()}
    # In the line before, and only where a test of a fault was skipped.
    skips = {name: line for name, line in zip(CASES, before, strict=True) if line[:8] == "skipped="}
    said = "skipped=3: no device here (2); no server (1)"
    assert skips == dict.fromkeys(("skipped", "all_skipped", "skipped_and_failed"), said)


def test_the_page_is_current() -> None:
    made = tool().document(list(tool().faults_below(ROOT / "tests")))
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == made, (
        "run python tools/faults.py --write"
    )


def test_the_table_is_read_from_the_markers(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.slow\n@pytest.mark.fault('a | '\n 'b', 'c')\ndef test_a(): pass\n"
        "def test_b(): pass\n"
    )
    found = list(tool().faults_below(tmp_path))
    assert [(f.what, f.promise, f.test) for f in found] == [("a | b", "c", "test_it.py::test_a")]
    assert r"| a \| b | c | `test_it.py::test_a` |" in tool().document(found)
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.fault('a')\ndef test_a(): pass\n")
    with pytest.raises(ValueError, match=r"test_it\.py::test_a: give pytest.mark.fault two plain strings"):
        list(tool().faults_below(tmp_path))
