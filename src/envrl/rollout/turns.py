"""The turns of a policy row: where the answers stand, and what came of each."""

from __future__ import annotations

from dataclasses import dataclass

from envrl.rollout.settings import RolloutSettings
from envrl.types import Finish, Generation, Role, Transition


@dataclass(frozen=True, slots=True)
class Turn:
    """One environment step of a policy row; a row of the ``steps`` layout has one, an episode many.

    Attributes:
        start: Place of the answer's first token in the row, at least 1. The policy knew exactly the
            tokens before it.
        length: Tokens of the answer.
        reward: The environment's reward of this step, on the scale of the row's score.
        penalty: What a broken format and an overlong answer cost the score; 0 if there was neither.
        anchor: Text of what the policy saw before it acted, without the list of actions.
    """

    start: int
    length: int
    reward: float = 0.0
    penalty: float = 0.0
    anchor: str = ""


def turn_of(transition: Transition, start: int, rollout: RolloutSettings) -> Turn:
    """The turn whose answer begins at ``start``."""
    return Turn(
        start,
        len(transition.generation.token_ids),
        rollout.win_reward * transition.reward,
        (0.0 if transition.format_valid else rollout.format_penalty) + overlong_penalty(transition, rollout),
        transition.observation.text,
    )


def overlong_penalty(transition: Transition, rollout: RolloutSettings) -> float:
    """What an answer's length costs: DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13).

    With limit L and buffer c, an answer of n tokens loses nothing for n <= L - c, then
    ``(n - (L - c)) / c`` of ``rollout.overlong_penalty``, up to all of it at the limit and
    beyond. The paper takes it off a reward of ±1.
    """
    buffer, limit = rollout.overlong_buffer, rollout.overlong_limit
    if buffer == 0 or limit is None:
        return 0.0
    excess = len(transition.generation.token_ids) - (limit - buffer)
    return rollout.overlong_penalty * min(1.0, max(0, excess) / buffer)


def answer_roles(generation: Generation, rollout: RolloutSettings) -> bytes:
    """Roles of an answer's tokens: the policy learns from them, unless answers cut off are left out.

    Those were written by the policy too, but for every loss they are then no more than what it had read.
    """
    left_out = rollout.mask_overlong and generation.finish is Finish.LENGTH
    return bytes([Role.PROMPT if left_out else Role.ACTION]) * len(generation.token_ids)
