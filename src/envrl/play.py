"""Plays a game in the terminal, or watches somebody play it: ``python -m envrl.play --help``.

The work is done in :mod:`envrl.experiments.play`; this module is only its stable address.
"""

import sys

if __name__ == "__main__":
    from envrl.experiments.play import main

    sys.exit(main())
