"""What a prompt shows and which output format it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from envrl.errors import ConfigFault

PromptForm = Literal["compact", "reasoned"]
"""Wording of prompts and answers.

``compact``: observation in, command out; no instructions, no thoughts; for the embedded policy.
``reasoned``: instructions, thoughts in ``<think>`` and the command in ``<action>``; for chat models.
"""


Domain = Literal["alfworld", "webshop", "text"]
"""Environment whose wording a prompt uses; ``text`` fits any."""


@dataclass(frozen=True, slots=True)
class Wording:
    """What prompts of an environment say, and how an answer without tags is read.

    Attributes:
        role: First sentence: where the agent is and what it is to do.
        tail_characters: How much of the end of a text without action tags is sent (published
            projections: 30 in ALFWorld, 20 in WebShop).
        task_in_observations: Whether the first observation is shown with the task in it although the
            prompt states the task above (published for ALFWorld; WebShop's observations are cut).
        listed_action: An admissible action in a chat model's list (published: WebShop's has a comma).
        action_separator: What stands between two of them (published: a line each).
        most_characters: Prompts of the `steps` layout that are longer are shown without history
            (published for WebShop: 13,000); None = no limit.
    """

    role: str
    tail_characters: int
    task_in_observations: bool = True
    listed_action: str = "'{}'"
    action_separator: str = "\n "
    most_characters: int | None = None


WORDINGS: dict[Domain, Wording] = {
    "alfworld": Wording("You act in a household described in text", 30),
    "webshop": Wording(
        "You shop on a website described in text",
        20,
        task_in_observations=False,
        listed_action="'{}',",
        action_separator="\n",
        most_characters=13_000,
    ),
    "text": Wording("You act in an environment described in text", 30),
}
"""Wording of each environment."""


@dataclass(frozen=True)
class PromptSettings:
    """Settings of prompt rendering and answer parsing."""

    form: PromptForm = "compact"
    """compact (embedded policy) or reasoned (chat models: think and action tags)."""
    history: int = 2
    """(observation, action) pairs shown before the current observation; `steps` layout only."""
    show_admissible: bool = False
    """List the admissible actions in the prompt (`help` is always left out)."""
    domain: Domain | None = None
    """Wording of the prompts; null takes that of the environment that is played."""

    def __post_init__(self) -> None:
        if self.history < 0:
            raise ConfigFault(f"prompt.history is {self.history}; use 0 (none) or a positive number")

    @property
    def wording(self) -> Wording:
        """Wording of the domain; ALFWorld's where none was set."""
        return WORDINGS[self.domain or "alfworld"]
