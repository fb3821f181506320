"""What training says to whoever started it."""

from __future__ import annotations

import sys


def warn(text: str) -> None:
    """Prints one line; standard output is left to the command."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
