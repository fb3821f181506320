"""What a run was made with: package versions and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "envrl", "torch", "lightning", "transformers", "peft", "bitsandbytes", "tokenizers", "alfworld",
    "textworld", "mlflow", "numpy", "scipy",
)  # fmt: skip
"""Distributions whose version can change a result."""
_GIT_TIMEOUT_S = 10.0


def environment_versions() -> dict[str, str]:
    """Version of Python, the platform and every package in :data:`PACKAGES`, ``absent`` if not there."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions


def git_commit(anchor: Path | None = None) -> str | None:
    """Commit of the code that runs, with ``-dirty`` if tracked files differ from it.

    Args:
        anchor: A file of the code; by default one of this package.

    Returns:
        Forty hex digits, or ``None`` when git is missing or doesn't track the file. The second matters
        where the package is installed inside somebody else's repository.
    """
    anchor = anchor or Path(__file__).resolve()
    if _git(anchor, "ls-files", "--error-unmatch", anchor.name) is None:
        return None
    commit = _git(anchor, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(anchor, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changes else commit


def _git(anchor: Path, *arguments: str) -> str | None:
    """Output of a git command in the folder of ``anchor``, ``None`` on any failure."""
    try:
        done = subprocess.run(
            ["git", "-C", str(anchor.parent), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
