"""The project as a whole: what it says about itself is true, and it speaks of nothing but itself."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.-])/(?:work|home|root|farm|mnt|opt|Users)/[\w.-]+"),
    "a package registry's host": re.compile(
        r"pythonhosted\.org|pypi\.org|download\.pytorch\.org|artifac[t]ory", re.I
    ),
    "a temporary file of one machine": re.compile(r"/tmp/(?!\.{3})[\w.-]+"),
    "an index address": re.compile(r"(?:--(?:extra-)?index-url|--find-links)[= ]\s*\S+"),
    "the making instead of the thing": re.compile(
        r"\b(?:sub-?agent|this[ ]session|coding[ ]agent|as[ ]an[ ]AI)\b", re.I
    ),
}
"""What no tracked text may hold. Each is shown to be found by ``test_a_forbidden_text_is_found``."""


def tracked_texts() -> dict[str, str]:
    """Text of every file git tracks by its name, this file too: its samples are written in two parts."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: there is no list of tracked files to read")
    texts = {}
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue  # removed in the working tree, not committed yet
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights and pictures
    return texts


def findings(text: str) -> list[str]:
    """Forbidden things in a text, each as ``what: the words found``."""
    return [f"{what}: {match.group(0)}" for what, rule in FORBIDDEN.items() for match in rule.finditer(text)]


def test_tracked_files_name_no_machine_and_no_registry() -> None:
    texts = tracked_texts()
    assert "pyproject.toml" in texts
    assert [f"{name}: {found}" for name, text in texts.items() for found in findings(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "see /" + "home/someone/data",
        "cached in /" + "tmp/run42/x.json",
        "https://py" + "pi.org/simple",
        "pip install --index" + "-url somewhere",
        "found in this " + "session",
    ],
)
def test_a_forbidden_text_is_found(text: str) -> None:
    assert len(findings(text)) == 1


def makefile_targets() -> set[str]:
    """Names of the Makefile's targets that a user can type."""
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))


def test_makefile_offers_the_promised_targets() -> None:
    promised = {"ablate", "test", "lint", "types", "bench", "notebooks", "clean", "help"}
    assert promised - makefile_targets() == set()


def test_readme_commands_exist() -> None:
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("README.md is not written yet")
    blocks = "\n".join(
        re.findall(r"^```(?:bash|sh|shell|console)?\n(.*?)^```", readme.read_text(), re.M | re.S)
    )
    targets = set(re.findall(r"^\s*(?:\$ )?make ([a-z][a-z-]*)", blocks, re.M))
    modules = set(re.findall(r"python -m (envrl[\w.]*)", blocks))
    assert "ablate" in targets
    assert targets - makefile_targets() == set()
    assert [m for m in sorted(modules) if importlib.util.find_spec(m) is None] == []


def test_versions_agree() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == declared
    assert f"## {declared}" in (ROOT / "CHANGELOG.md").read_text()
    assert "2606.17680" in citation["preferred-citation"]["identifiers"][0]["value"]


def installer() -> ModuleType:
    """The installer as a module; it stands outside the package because it runs before it."""
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_declared_dependency_is_pinned() -> None:
    name_of = installer().requirement_name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    assert "torch==2.13.0" in lines
    assert [r for r in declared if re.sub(r"[-_.]+", "-", name_of(r)).lower() not in pinned] == []


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("torch>=2.13", "torch"),
        ("jsonargparse[signatures]>=4.50", "jsonargparse"),
        ("ruff", "ruff"),
        ("a-b.c ; python_version<'4'", "a-b.c"),
    ],
)
def test_requirement_name(requirement: str, name: str) -> None:
    assert installer().requirement_name(requirement) == name


def test_a_study_is_installed_without_textworld(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[project]\ndependencies = ["torch>=2", "alfworld>=0.4", "mlflow>=3", "rich"]\n')
    assert installer().runtime_requirements(pyproject) == ["mlflow>=3", "rich"]


def test_import_rule_holds() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_import_rule_catches_a_breach(tmp_path: Path) -> None:
    package = tmp_path / "src" / "envrl"
    for room in [
        "experiments",
        "analysis",
        "training",
        "rollout",
        "policy",
        "prompts",
        "envs",
        "losses",
        "tracking",
    ]:
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text("")
    for module in ["__init__", "types", "errors", "seeding"]:
        (package / f"{module}.py").write_text("")
    (package / "envs" / "__init__.py").write_text("import torch\n")
    (package / "losses" / "__init__.py").write_text("import mlflow\nimport envrl.policy\n")
    (package / "training" / "__init__.py").write_text("import envrl.envs\n")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    broken = re.findall(r"^(.*) BROKEN$", done.stdout, re.M)
    assert done.returncode == 1
    assert {"training never sees an environment", "no torch in types, envs, prompts"} <= set(broken)
    assert {
        "no lightning, transformers or mlflow in losses",
        "mlflow only in tracking, analysis, experiments",
    } <= set(broken)


def test_a_study_needs_no_textworld() -> None:
    # `make ablate` leaves TextWorld out, so no module on the way to a study may import it.
    modules = ["envrl.experiments", "envrl.envs.alfworld"]
    modules += [
        m for m in ["envrl.experiments.ablate", "envrl.envs.alfworld.games"] if importlib.util.find_spec(m)
    ]
    script = "import sys\nfor name in ('textworld', 'jericho', 'spacy', 'pytest', 'beartype'):\n"
    script += "    sys.modules[name] = None\n" + "".join(f"import {m}\n" for m in modules)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tests_run_on_one_thread_with_shape_checks() -> None:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    assert torch.get_num_threads() == 1
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    checked = [m for m in sys.meta_path if "jaxtyping" in type(m).__module__]
    assert checked, "shape annotations of losses, policy and training are not executed"
    assert not isinstance(torch.zeros(2), Float[Tensor, "batch seq"])


def test_no_two_test_files_have_one_name() -> None:
    """Tests are no packages, so a second file of a name is not collected where both run in one session."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
