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


def counted(folder: Path, tests: str) -> tuple[int, str]:
    """Exit code and last line of the command on these tests."""
    (folder / "test_it.py").write_text(HEADER + tests)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  fault: x\n  slow: x\n")
    script = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import faults; "
    script += f"sys.exit(faults.run(['-q', '-p', 'no:cacheprovider', {str(folder)!r}]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()[-1]


PASSES = "@fault\ndef test_a(): pass\n"
TEN = (
    "@fault\ndef test_b(record_property):\n"
    "    for n, v in (('faults', 10), ('survived', {}), ('lost_runs', {})): record_property(n, v)\n"
    "    assert {}\n"
)


@pytest.mark.parametrize(
    ("tests", "code", "line"),
    [
        pytest.param(PASSES + "def test_c(): pass\n", 0, "faults=1 survived=1 lost_runs=0", id="passed"),
        pytest.param(PASSES + TEN.format(10, 0, 1), 0, "faults=11 survived=11 lost_runs=0", id="many"),
        pytest.param(TEN.format(9, 0, 1), 1, "faults=10 survived=9 lost_runs=0", id="one not survived"),
        pytest.param(TEN.format(10, 2, 1), 1, "faults=10 survived=10 lost_runs=2", id="runs lost"),
        pytest.param(TEN.format(10, 0, 0), 1, "faults=10 survived=9 lost_runs=0", id="failed after all"),
        pytest.param(TEN.format(99, 0, 1), 0, "faults=10 survived=10 lost_runs=0", id="no more than faults"),
        pytest.param(
            PASSES + "@fault\ndef test_b(): pytest.skip('no device')\n",
            *(1, "faults=2 survived=1 lost_runs=0"),
            id="skipped",
        ),
        pytest.param(
            "@fault\n@pytest.mark.xfail\ndef test_b(): assert 0\n",
            *(1, "faults=1 survived=0 lost_runs=0"),
            id="expected to fail",
        ),
        pytest.param(
            "@pytest.fixture\ndef f():\n    yield\n    assert 0\n@fault\ndef test_b(f): pass\n",
            *(1, "faults=1 survived=0 lost_runs=0"),
            id="tear-down failed",
        ),
        pytest.param(
            PASSES + "def test_c(): assert 0\n",
            *(1, "faults=1 survived=1 lost_runs=0"),
            id="another test failed",
        ),
        pytest.param("1 / 0\n", 1, "faults=0 survived=0 lost_runs=0", id="can't be imported"),
        pytest.param("def test_c(): pass\n", 1, "faults=0 survived=0 lost_runs=0", id="no faults"),
    ],
)
def test_the_last_line_counts(tests: str, code: int, line: str, tmp_path: Path) -> None:
    assert counted(tmp_path, tests) == (code, line)


def test_the_page_is_current() -> None:
    made = tool().document(list(tool().faults_below(ROOT / "tests" / "faults")))
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
    with pytest.raises(ValueError, match="test_it.py::test_a: give pytest.mark.fault two plain strings"):
        list(tool().faults_below(tmp_path))
