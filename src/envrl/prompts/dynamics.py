"""The two questions about the environment: state prediction and inverse dynamics.

The EnvRL paper (arXiv 2606.17680) publishes neither prompt; these wordings are declared choices, as
are the targets: the next observation without the list of admissible actions, and the parsed action
without the thought.
"""

from __future__ import annotations

from dataclasses import dataclass

from envrl.prompts.render import without_banner
from envrl.prompts.settings import PromptSettings
from envrl.types import Message


@dataclass(frozen=True, slots=True)
class DynamicsQuestion:
    """A question and the text that answers it."""

    message: Message
    target: str


def state_prediction_question(
    settings: PromptSettings, observation: str, action: str, next_observation: str
) -> DynamicsQuestion:
    """What will be seen after ``action`` in ``observation``? Target: ``next_observation``."""
    before, after = without_banner(observation), without_banner(next_observation)
    if settings.form == "compact":
        text = f"{before}\n> {action}\n?"
    else:
        text = (
            "Predict what the environment answers.\n"
            f"Current observation: {before}\nAction: {action}\nNext observation:"
        )
    return DynamicsQuestion(Message("user", text), after)


def inverse_dynamics_question(
    settings: PromptSettings, observation: str, action: str, next_observation: str
) -> DynamicsQuestion:
    """Which action led from ``observation`` to ``next_observation``? Target: ``action``."""
    before, after = without_banner(observation), without_banner(next_observation)
    if settings.form == "compact":
        text = f"{before}\n> ?\n{after}"
    else:
        text = (
            "Name the action that led from the first observation to the second.\n"
            f"First observation: {before}\nSecond observation: {after}\nAction:"
        )
    return DynamicsQuestion(Message("user", text), action)
