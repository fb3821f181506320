"""Delivers to MLflow what runs could not while it was away: ``python -m envrl.experiments.deliver --help``.

python -m envrl.experiments.deliver mlruns/studies/quick --uri http://127.0.0.1:5000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from envrl.errors import DataFault
from envrl.experiments.console import DEFAULT_ROOT, guarded, say
from envrl.untrusted import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.experiments.deliver",
        description="Deliver to MLflow what ended runs could not log while the store was away. Given twice, "
        "nothing is doubled.",
    )
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=DEFAULT_ROOT,
        help="folder of a run or study, or of all of them (default: %(default)s)",
    )
    parser.add_argument(
        "--uri",
        help="store to deliver everything to (default: the one that MLFLOW_TRACKING_URI names, else that of "
        f"{DEFAULT_ROOT}; what was meant for another one is left alone then)",
    )
    options = parser.parse_args(arguments)

    def command() -> int:
        if not options.folder.is_dir():
            raise DataFault(f"'{options.folder}' is no folder; name that of a run or study")
        from envrl.tracking.leftovers import deliver_below
        from envrl.tracking.store import store_uri

        count = deliver_below(options.folder, options.uri or store_uri(), foreign=bool(options.uri))
        say(Console(), f"{count} log calls delivered" if count else "nothing was left to deliver")
        return 0

    return guarded(command, "interrupted; run the same command again to deliver the rest")


def deliver_left(folder: Path, uri: str, console: Console) -> None:
    """Delivers what earlier commands have left in a folder; what can't be delivered stays, and is named.

    Args:
        folder: The folder, which may come from a stranger.
        uri: The store of this command; what was meant for another one is left alone.
        console: Where to print.
    """
    from envrl.tracking.leftovers import deliver_below

    try:
        if count := deliver_below(folder, uri):
            say(console, f"{count} log calls of earlier runs delivered to MLflow")
    except DataFault as fault:
        say(console, f"not delivered to MLflow: {printable(str(fault))}", "yellow")


if __name__ == "__main__":
    sys.exit(main())
