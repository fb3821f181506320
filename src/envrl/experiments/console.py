"""What the commands share: errors as one sentence, progress lines."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from envrl.errors import ConfigFault, EnvrlError
from envrl.experiments.full_disk import full_disk
from envrl.training.progress import Progress
from envrl.untrusted import printable

DEFAULT_ROOT = Path("mlruns")
T = TypeVar("T")


def guarded(main: Callable[[], int], on_interrupt: str = "interrupted") -> int:
    """Runs a command; an error of this package, or a full disk, becomes one sentence and exit code 2.

    Ctrl-C and SIGTERM say how to go on and give 130, the convention of shells.
    """
    try:
        with _terminated_as_interrupted():
            return main()
    except EnvrlError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except Exception as error:
        full = full_disk(error, Path.cwd())
        if full is None:
            raise
        print(f"error: {full}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{on_interrupt}", file=sys.stderr)
        return 130


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Has SIGTERM end a command as Ctrl-C does: in order, runs marked as stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Signal handler that does what Ctrl-C does."""
    raise KeyboardInterrupt


GO_ON = "interrupted; run the same command again to go on from the last checkpoint"
"""What :func:`guarded` shall say where work is kept."""


def parse_or_fault(parse: Callable[[], T]) -> T:
    """Calls a parser; its complaint becomes a :class:`ConfigFault` of one line."""
    try:
        return parse()
    except EnvrlError:
        raise
    except Exception as error:
        raise ConfigFault(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The text of an error without line breaks."""
    return " ".join(str(error).split())


def say(console: Console, text: str, style: str = "") -> None:
    """Prints one line as it is: no markup is read, and nothing is wrapped where nobody sets a width."""
    console.print(Text(text, style=style), soft_wrap=True)


def clock(seconds: float | None) -> str:
    """Seconds as m:ss, from an hour on h:mm:ss; ``–`` if unknown."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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
    return lambda progress: say(console, progress_line(label, progress))
