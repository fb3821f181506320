"""Plays a game in the terminal, or watches somebody play it: ``python -m envrl.play --help``.

The work is done in :mod:`envrl.experiments.play`; this module is only its stable address.
"""

import sys

from envrl.experiments.play import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
