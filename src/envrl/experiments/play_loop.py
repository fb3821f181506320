"""The dialogue of ``envrl.play``: what a typed line does."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envrl.envs.webshop.actions import SEARCH_PLACEHOLDER
from envrl.errors import DataFault, EnvrlError
from envrl.experiments.play_games import GameList
from envrl.experiments.play_lines import Lines
from envrl.experiments.play_screen import Screen
from envrl.experiments.play_session import Move, PlaySession, Proposer
from envrl.types import Game

COMMANDS = {
    "/help": "this list",
    "/actions": "the admissible actions; typing the number of one takes it",
    "/task": "the task again",
    "/look": "the last observation again, which costs no step",
    "/undo [N]": "take back the last step, or the last N",
    "/restart": "begin this game anew",
    "/next": "go on to the next game",
    "/game GAME": "go to a game, by its number or the beginning of its id",
    "/expert": "what the expert would do here",
    "/all": "let the one you watch play to the end",
    "/quit": "leave; Ctrl-D does too",
}
"""What can be typed beside actions; a colon will do for the slash."""


@dataclass(frozen=True)
class Stage:
    """What is played on.

    Attributes:
        games: The games to choose from.
        begin: Starts a game.
        proposer: Who is watched; None if a person plays alone.
        expert: Who is asked by ``/expert``.
    """

    games: GameList
    begin: Callable[[Game], PlaySession]
    proposer: Proposer | None
    expert: Proposer


class Dialogue:
    """One sitting, over as many games as one likes.

    Args:
        stage: Games and players.
        screen: What is written to.
        lines: What is read from.
        auto: Play to the end of the game at once and stop there.
    """

    def __init__(self, stage: Stage, screen: Screen, lines: Lines, auto: bool = False) -> None:
        self._stage = stage
        self._screen = screen
        self._lines = lines
        self._auto = auto
        self._running = auto
        self._done = False
        self._session: PlaySession
        self._handlers: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/actions": lambda _: self._screen.actions(self._session.played.current.admissible),
            "/task": lambda _: self._screen.task(self._session.played),
            "/look": lambda _: self._screen.observation(self._session.played),
            "/undo": self._undo,
            "/restart": self._restart,
            "/next": lambda _: self._go_to(self._stage.games.after(self._session.played.game)),
            "/game": lambda name: self._go_to(self._stage.games.find(name)),
            "/expert": self._expert,
            "/all": self._all,
            "/quit": self._quit,
        }

    def run(self, first: Game) -> None:
        """Plays until somebody leaves, the lines end, or with ``auto`` the game ends.

        Raises:
            EnvFault: The first game can't be started.
        """
        self._begin(first)
        if not self._auto:
            self._screen.line(self._hint(), "dim")
        self._offer()
        while not self._done:
            if self._running and not self._session.over:
                self._attempt(self._accept)
            elif self._auto:
                if not self._session.over:
                    self._screen.broken_off(self._session.played)
                return
            else:
                self._running = False
                self._read()

    def _read(self) -> None:
        line = self._lines.read("> ", self._completions)
        if line is not None:
            self._attempt(lambda: self._obey(line.strip()))
        elif self._stage.proposer is not None and not self._lines.interactive:
            self._auto = self._running = True
        else:
            self._done = True

    def _attempt(self, do: Callable[[], None]) -> None:
        """Does something; what can't be done is told and changes nothing."""
        try:
            do()
        except EnvrlError as error:
            self._running = False
            self._screen.refusal(str(error))

    def _obey(self, line: str) -> None:
        if not line:
            self._enter()
        elif line[0] in "/:":
            name, _, rest = line[1:].partition(" ")
            self._handler(f"/{name}")(rest.strip())
        elif line.isdecimal():
            self._act(self._session.numbered(int(line)), typed=False)
        else:
            self._act(line, typed=True)

    def _handler(self, name: str) -> Callable[[str], None]:
        if name in self._handlers:
            return self._handlers[name]
        near = difflib.get_close_matches(name, self._handlers, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise DataFault(f"{name} is no command: {meant}/help lists them all")

    def _enter(self) -> None:
        if self._stage.proposer is None:
            self._screen.line("type an action, the number of one in /actions, or /help", "dim")
        elif self._session.over:
            self._screen.line("the game is over: /undo, /restart, /next or /quit", "dim")
        else:
            self._accept()

    def _accept(self) -> None:
        move = self._session.accept()
        self._screen.echoed(move.action)
        self._show(move)

    def _act(self, action: str, *, typed: bool) -> None:
        if action == SEARCH_PLACEHOLDER:
            raise DataFault("a search needs words: type for example search[red shoes]")
        move = self._session.act(action)
        if not typed:
            self._screen.echoed(action)
        self._show(move)

    def _show(self, move: Move) -> None:
        played = self._session.played
        self._screen.move(move, played)
        if played.stop is not None:
            self._screen.end(played)
        self._offer()

    def _offer(self) -> None:
        """Shows what the one who is watched would do next."""
        if self._stage.proposer is None or self._session.over:
            return

        def show() -> None:
            proposal = self._session.propose()
            if proposal is not None and self._stage.proposer is not None:
                self._screen.proposal(proposal, self._stage.proposer.name)

        self._attempt(show)

    def _begin(self, game: Game) -> None:
        self._session = self._stage.begin(game)
        games, proposer = self._stage.games, self._stage.proposer
        player = "you play" if proposer is None else f"you watch {proposer.name}"
        self._screen.opening(self._session.played, games.number(game), games.total, player)

    def _go_to(self, game: Game) -> None:
        self._begin(game)
        self._offer()

    def _help(self, rest: str) -> None:
        self._screen.table([*COMMANDS.items(), ("anything else", "is sent to the game as it stands")])
        self._screen.line(self._hint(), "dim")

    def _hint(self) -> str:
        if self._stage.proposer is None:
            return "Type an action or /help."
        return "Enter takes the step, /all goes to the end, anything else typed is played instead; /help."

    def _undo(self, rest: str) -> None:
        if rest and not (rest.isdecimal() and int(rest) > 0):
            raise DataFault(f"/undo {rest}: give the number of steps, or nothing for one")
        self._session.undo(int(rest or 1))
        self._again()

    def _restart(self, rest: str) -> None:
        self._session.restart()
        self._again()

    def _again(self) -> None:
        played = self._session.played
        self._screen.line(f"  back at step {len(played.moves)} of {played.game.max_steps}", "dim")
        self._screen.observation(played)
        self._offer()

    def _expert(self, rest: str) -> None:
        if self._session.over:
            raise DataFault("the game is over: /undo, /restart, /next or /quit")
        self._screen.proposal(self._stage.expert.propose(self._session.played), self._stage.expert.name)

    def _all(self, rest: str) -> None:
        if self._stage.proposer is None:
            raise DataFault("/all is for watching: start with --policy expert, random, embedded or a run")
        self._running = True

    def _quit(self, rest: str) -> None:
        self._done = True

    def _completions(self) -> Sequence[str]:
        actions = self._session.played.current.admissible
        offered = ["search[" if action == SEARCH_PLACEHOLDER else action for action in actions]
        return [*offered, *self._handlers]
