"""One game played step by step, by a person, or by somebody who is watched and whom a person may overrule.

Nothing here reads a terminal or writes to one. A step is taken back by playing the game again up to it;
the games give the same answers to the same actions, and that is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from envrl.envs.base import was_admissible
from envrl.envs.pool import EnvPool
from envrl.errors import EnvFault, EnvrlError
from envrl.types import Game, Observation, StepResult, StopReason

if TYPE_CHECKING:
    from envrl.policy.sampler import SampledTokens


@dataclass(frozen=True, slots=True)
class Proposal:
    """What somebody who is watched would do next.

    Attributes:
        action: The command; None if none could be read from the answer, and then nothing is sent.
        text: What a policy wrote, markup left out; None for others.
        answer: The same, token by token.
        format_valid: The text followed the asked-for format.
    """

    action: str | None
    text: str | None = None
    answer: SampledTokens | None = None
    format_valid: bool = True

    @property
    def logprob(self) -> float | None:
        """Natural logarithm of the answer's probability under the model; None if no policy wrote it."""
        return None if self.answer is None else sum(self.answer.logprobs)


@dataclass(frozen=True, slots=True)
class Move:
    """One step.

    Attributes:
        seen: What it answered.
        action: The command sent.
        proposal: Whose it is; None if a person typed it.
        admissible: It was admissible there.
        step: What came of it.
    """

    seen: Observation
    action: str
    proposal: Proposal | None
    admissible: bool
    step: StepResult


@dataclass(frozen=True)
class Played:
    """An episode so far."""

    game: Game
    seed: int
    opening: Observation
    moves: tuple[Move, ...] = ()

    @property
    def current(self) -> Observation:
        """What is to be acted on."""
        return self.moves[-1].step.observation if self.moves else self.opening

    @property
    def stop(self) -> StopReason | None:
        """Why it is over; None if it goes on."""
        return self.moves[-1].step.stop if self.moves else None

    @property
    def task_score(self) -> float:
        """The environment's score after the last step, in [0, 1]."""
        return float(self.moves[-1].step.info.get("task_score", 0.0)) if self.moves else 0.0

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of rewards."""
        return sum(move.step.reward for move in self.moves)


class Proposer(Protocol):
    """Somebody to watch."""

    name: str
    """What the screen calls it."""

    def propose(self, played: Played) -> Proposal:
        """What it would do next; the same for the same episode, whatever was asked in between.

        Raises:
            EnvrlError: It can't say; the message says why, and a person may go on.
        """
        ...


class PlaySession:
    """An episode of a game that can be gone back in.

    Args:
        pool: Environments; the first slot is used.
        game: The game.
        seed: Seed of everything random in the episode.
        proposer: Who is watched; None if a person plays alone.

    Raises:
        EnvFault: The game can't be started.
    """

    def __init__(self, pool: EnvPool, game: Game, seed: int, proposer: Proposer | None = None) -> None:
        self._pool = pool
        self._proposer = proposer
        self._proposal: Proposal | None = None
        self.played = Played(game, seed, self._reset(game, seed))

    @property
    def over(self) -> bool:
        """Whether no step can be taken."""
        return self.played.stop is not None

    def propose(self) -> Proposal | None:
        """What the proposer would do now; None without one, or at the end.

        Raises:
            EnvrlError: It can't say.
        """
        if self._proposer is None or self.over:
            return None
        if self._proposal is None:
            self._proposal = self._proposer.propose(self.played)
        return self._proposal

    def accept(self) -> Move:
        """Takes the proposed step.

        Raises:
            EnvrlError: There is none, or the environment failed.
        """
        proposal = self.propose()
        if proposal is None:
            raise EnvrlError("there is no proposed action to take; type one")
        return self._take(proposal.action or "", proposal)

    def act(self, action: str) -> Move:
        """Takes a step that a person chose.

        Raises:
            EnvrlError: The game is over, or the environment failed.
        """
        return self._take(action, None)

    def undo(self, steps: int = 1) -> None:
        """Takes back the last steps; the environment is played anew up to there.

        Raises:
            EnvrlError: There are not so many.
            EnvFault: The environment failed, or does not answer as it did.
        """
        moves = self.played.moves
        if not 1 <= steps <= len(moves):
            taken = f"only {len(moves)}" if moves else "none yet"
            raise EnvrlError(f"{steps} steps can't be taken back: there are {taken}")
        self._proposal = None
        kept = moves[: len(moves) - steps]
        opening = self._reset(self.played.game, self.played.seed)
        answers = [opening, *(self._step(move.action).observation for move in kept)]
        if answers != [self.played.opening, *(move.step.observation for move in kept)]:
            raise EnvFault(
                f"game {self.played.game.game_id} does not answer as it did a moment ago, so steps can't be "
                "taken back; begin it anew"
            )
        self.played = Played(self.played.game, self.played.seed, opening, kept)

    def restart(self) -> None:
        """Begins the game anew.

        Raises:
            EnvFault: The environment failed.
        """
        self._proposal = None
        opening = self._reset(self.played.game, self.played.seed)
        self.played = Played(self.played.game, self.played.seed, opening)

    def numbered(self, number: int) -> str:
        """The admissible action of a number, from 1.

        Raises:
            EnvrlError: There is none of that number.
        """
        actions = self.played.current.admissible
        if not 1 <= number <= len(actions):
            raise EnvrlError(
                f"there is no action {number}: there are {len(actions)} now, which /actions lists with their "
                "numbers"
            )
        return actions[number - 1]

    def _take(self, action: str, proposal: Proposal | None) -> Move:
        if self.over:
            raise EnvrlError("the game is over; /undo, /restart, /next or /quit")
        seen = self.played.current
        step = self._step(action)
        move = Move(seen, action, proposal, was_admissible(action, seen, step), step)
        self._proposal = None
        played = self.played
        self.played = Played(played.game, played.seed, played.opening, (*played.moves, move))
        return move

    def _reset(self, game: Game, seed: int) -> Observation:
        result = self._pool.reset(0, game, seed)
        if result.fault is not None:
            raise result.fault
        assert result.observation is not None
        return result.observation

    def _step(self, action: str) -> StepResult:
        (result,) = self._pool.step([0], [action])
        if result.fault is not None:
            raise result.fault
        assert result.step is not None
        return result.step
