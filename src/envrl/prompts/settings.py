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


@dataclass(frozen=True)
class PromptSettings:
    """Settings of prompt rendering and answer parsing."""

    form: PromptForm = "compact"
    """compact (embedded policy) or reasoned (chat models: think and action tags)."""
    history: int = 2
    """(observation, action) pairs shown before the current observation; `steps` layout only."""
    show_admissible: bool = False
    """List the admissible actions in the prompt (`help` is always left out)."""

    def __post_init__(self) -> None:
        if self.history < 0:
            raise ConfigFault(f"prompt.history is {self.history}; use 0 (none) or a positive number")
