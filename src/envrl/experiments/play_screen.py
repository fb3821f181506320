"""What somebody who plays or watches sees; no decision is taken here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from envrl.experiments.play_session import Move, Played, Proposal
from envrl.prompts.render import task_of, without_banner
from envrl.types import StopReason

_SEPARATOR = " [SEP] "
_PRODUCT = re.compile(r"[A-Z0-9]{10}")
_ENDINGS = {
    StopReason.WON: ("won", "bold green"),
    StopReason.LOST: ("not won", "bold red"),
    StopReason.STEP_LIMIT: ("out of steps", "bold yellow"),
}


def readable(text: str) -> str:
    """An observation for people: no banner, and a page of the shop with a line for each text of it.

    A product of a results page has its code, title and price on one line.
    """
    page, mark, task = without_banner(text).partition("\n\nYour task is to: ")
    if _SEPARATOR not in page:
        return without_banner(text)
    lines: list[str] = []
    words = [word.removeprefix("'").removesuffix("'") for word in page.split(_SEPARATOR)]
    while words:
        count = 3 if _PRODUCT.fullmatch(words[0]) and len(words) > 2 and words[2].startswith("$") else 1
        lines.append("  ".join(words[:count]))
        words = words[count:]
    return "\n".join(lines) + mark + task


class Screen:
    """Writes to a terminal, or without colours and line breaks of its own to wherever the output goes.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str, style: str = "") -> None:
        """One paragraph, as it is: no markup is read."""
        self._console.print(Text(text, style=style), soft_wrap=not self._console.is_terminal)

    def opening(self, played: Played, number: int, games: int, player: str) -> None:
        """Which game it is, and how it begins."""
        game = played.game
        self.line("")
        self.line(
            f"{game.env} · game {number} of {games} · {game.family} · {game.game_id} · at most "
            f"{game.max_steps} steps · {player}",
            "dim",
        )
        self.observation(played)

    def observation(self, played: Played) -> None:
        """What is to be acted on now."""
        self.line(readable(played.current.text))

    def task(self, played: Played) -> None:
        """The task, which later observations don't repeat."""
        self.line(task_of(played.opening.text) or "the game states no task")

    def echoed(self, action: str) -> None:
        """An action that stands nowhere on the screen yet."""
        self.line(f"> {action}", "bold")

    def proposal(self, proposal: Proposal, name: str) -> None:
        """What the one who is watched would do."""
        action = "nothing that can be sent" if proposal.action is None else proposal.action
        if proposal.text is not None and proposal.text.strip() != action:
            self._console.print(
                Padding(Text(proposal.text.strip(), style="italic"), (0, 0, 0, 2)),
                soft_wrap=not self._console.is_terminal,
            )
        self.line(f"{name}: {action}", "cyan")
        if proposal.answer is not None and proposal.logprob is not None:
            count = len(proposal.answer.token_ids)
            tokens = "1 token" if count == 1 else f"{count} tokens"
            form = "" if proposal.format_valid else " · not in the asked-for format"
            self.line(f"  log-probability {_minus(proposal.logprob, 3)} ({tokens}){form}", "dim")

    def move(self, move: Move, played: Played) -> None:
        """What came of a step."""
        self.line(readable(move.step.observation.text))
        kind = "admissible" if move.admissible else "not admissible"
        self.line(
            f"  step {len(played.moves)} of {played.game.max_steps} · {kind} · reward "
            f"{_minus(move.step.reward, 0 if move.step.reward.is_integer() else 2)}",
            "dim" if move.admissible else "yellow",
        )

    def end(self, played: Played) -> None:
        """How the game came out."""
        assert played.stop is not None
        self._outcome(*_ENDINGS[played.stop], played)

    def broken_off(self, played: Played) -> None:
        """How far a game came that nobody plays on."""
        self._outcome("not played to its end", "bold yellow", played)

    def _outcome(self, word: str, style: str, played: Played) -> None:
        steps = "1 step" if len(played.moves) == 1 else f"{len(played.moves)} steps"
        self.line(
            f"{word} · task score {played.task_score:.2f} · {steps} · return "
            f"{_minus(played.episode_return, 2)}",
            style,
        )

    def actions(self, actions: Sequence[str]) -> None:
        """The admissible actions with their numbers."""
        if not actions:
            self.line("the game names no admissible action")
            return
        shown = [Text(f"{n:3} {action}") for n, action in enumerate(actions, start=1)]
        self._console.print(Columns(shown, padding=(0, 2), column_first=True))

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and what they mean."""
        width = max(len(name) for name, _ in rows)
        for name, meaning in rows:
            self.line(f"  {name:<{width}}  {meaning}")

    def refusal(self, text: str) -> None:
        """Why something was not done."""
        self.line(text, "yellow")


def _minus(value: float, digits: int) -> str:
    """A number with a minus sign that is one."""
    return f"{value:.{digits}f}".replace("-", "−")
