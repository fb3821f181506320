"""What the commands share: errors as one sentence, progress lines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from envrl.errors import ConfigFault, EnvrlError
from envrl.training.callbacks import Progress

DEFAULT_ROOT = Path("mlruns")


def guarded(main: Callable[[], int]) -> int:
    """Runs a command; an error of this package becomes one sentence and exit code 2.

    Ctrl-C says how to go on and gives 130, the convention of shells.
    """
    try:
        return main()
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130


def parse_or_fault(parse: Callable[[], object]) -> object:
    """Calls a parser; its complaint becomes a :class:`ConfigFault` of one line."""
    try:
        return parse()
    except EnvrlError:
        raise
    except Exception as error:
        raise ConfigFault(" ".join(str(error).split())) from error


def clock(seconds: float | None) -> str:
    """Seconds as m:ss; ``–`` if unknown."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def share(value: float | None) -> str:
    """A share as per cent; ``–`` if unknown."""
    return "–" if value is None else f"{100 * value:.1f} %"


def progress_line(label: str, progress: Progress) -> str:
    """One line: iteration, success in training and on the panel, time left."""
    return (
        f"{label}  iteration {progress.iteration}/{progress.iterations}  "
        f"training {share(progress.training_success)}  panel {share(progress.evaluation_success)}  "
        f"{clock(progress.seconds)} gone, {clock(progress.seconds_left)} left"
    )


def progress_printer(label: str, console: Console) -> Callable[[Progress], None]:
    """Prints a line per iteration."""
    return lambda progress: console.print(progress_line(label, progress), highlight=False)
