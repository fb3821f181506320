"""Where typed lines come from: a terminal with history and completion, or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, TextIO


class Lines(Protocol):
    """Somebody who types."""

    interactive: bool
    """A person sits there, who reads what is asked before typing."""

    def read(self, prompt: str, completions: Callable[[], Sequence[str]]) -> str | None:
        """The next line without its line break; None if there are no more.

        Args:
            prompt: What stands before it.
            completions: Lines that would make sense.
        """
        ...


class TerminalLines:
    """A person at a terminal; with readline, where Python has it, lines can be edited and completed."""

    interactive = True

    def __init__(self) -> None:
        self._completions: list[str] = []
        with suppress(ImportError):
            import readline

            readline.set_completer(self._complete)
            # Commands have blanks and brackets in them: a line is completed as a whole.
            readline.set_completer_delims("")
            editline = "libedit" in (readline.__doc__ or "")
            readline.parse_and_bind("bind ^I rl_complete" if editline else "tab: complete")

    def read(self, prompt: str, completions: Callable[[], Sequence[str]]) -> str | None:
        """See :class:`Lines`."""
        self._completions = sorted(completions())
        try:
            return input(prompt)
        except EOFError:
            print()
            return None

    def _complete(self, text: str, state: int) -> str | None:
        fitting = [line for line in self._completions if line.startswith(text)]
        return fitting[state] if state < len(fitting) else None


class PipedLines:
    """Lines of a file or a pipe; each is repeated after its prompt, so that the output tells the game.

    Args:
        source: Where they are from.
    """

    interactive = False

    def __init__(self, source: TextIO) -> None:
        self._source = source

    def read(self, prompt: str, completions: Callable[[], Sequence[str]]) -> str | None:
        """See :class:`Lines`."""
        line = self._source.readline()
        if not line:
            return None
        print(prompt + line.rstrip("\n"))
        return line.rstrip("\n")


def standard_lines() -> Lines:
    """Lines of the standard input."""
    return TerminalLines() if sys.stdin.isatty() else PipedLines(sys.stdin)
