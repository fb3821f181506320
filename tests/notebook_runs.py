"""Executes notebooks where they lie, as Jupyter would."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient


def executed(path: Path) -> list[nbformat.NotebookNode]:
    """Runs a notebook from beginning to end; returns the outputs of its code cells."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(outputs: list[nbformat.NotebookNode]) -> str:
    """What the cells show as text and as HTML."""
    kinds = ("text/plain", "text/html")
    return "\n".join(str(o.get("data", {}).get(kind, "")) for o in outputs for kind in kinds)


def pictures(outputs: list[nbformat.NotebookNode]) -> int:
    """Number of figures."""
    return sum("image/png" in output.get("data", {}) for output in outputs)
