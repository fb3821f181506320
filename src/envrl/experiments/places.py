"""Where things that can be made again are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where generated games are kept: ``ENVRL_CACHE``, or ``~/.cache/envrl``."""
    return Path(os.environ.get("ENVRL_CACHE") or Path.home() / ".cache" / "envrl").expanduser()
