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
        penalty: What a broken format cost the score; 0 if the format was kept.
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
        0.0 if transition.format_valid else rollout.format_penalty,
        transition.observation.text,
    )


def answer_roles(generation: Generation, rollout: RolloutSettings) -> bytes:
    """Roles of an answer's tokens: the policy learns from them, unless answers cut off are left out.

    Those were written by the policy too, but for every loss they are then no more than what it had read.
    """
    left_out = rollout.mask_overlong and generation.finish is Finish.LENGTH
    return bytes([Role.PROMPT if left_out else Role.ACTION]) * len(generation.token_ids)
