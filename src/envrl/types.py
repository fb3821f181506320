"""Frozen records that cross rooms. Needs numpy only; no torch, so environments and prompts stay light.

Axis words used in shape annotations across the package:

- ``batch``: rows of a batch, one row is one token sequence
- ``seq``: token positions of a row, right-padded
- ``vocab``: entries of the tokenizer
- ``rows``: rows of one GRPO group pool
- ``groups``: groups of episodes of one game
- ``turns``: environment steps of policy rows, in the order of rows
- ``hidden``: numbers of a hidden state
- ``target``: positions at which a loss has a target token
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any


class Role(IntEnum):
    """What a token is, decided once when the token is made."""

    PAD = 0
    """Filler to the right of a row; never attended to, never trained on."""
    PROMPT = 1
    """Given to the policy: instructions, the first observation, chat markup."""
    ACTION = 2
    """Sampled by the policy (or, in an inverse-dynamics row, the true action)."""
    OBSERVATION = 3
    """Written by the environment in answer to an action: the target of state prediction."""


class StopReason(Enum):
    """Why an episode ended."""

    WON = "won"
    """The environment terminated the episode with the goal reached."""
    LOST = "lost"
    """The environment terminated the episode without the goal reached."""
    STEP_LIMIT = "step_limit"
    """The game's limit of environment steps was used up (truncation)."""
    TOKEN_LIMIT = "token_limit"
    """The conversation no longer fits the policy's context (truncation)."""
    ENV_FAULT = "env_fault"
    """The environment raised or hung; ``Trajectory.fault`` says what."""


class Finish(Enum):
    """Why the sampler stopped writing."""

    END = "end"
    """The end-of-turn token was sampled."""
    LENGTH = "length"
    """The limit of response tokens was reached."""


@dataclass(frozen=True, slots=True)
class Game:
    """One game that can be played again and again.

    Attributes:
        game_id: Hash of the game's content; equal content has an equal id wherever it is stored.
        env: Name of the environment that plays it, e.g. ``alfworld``.
        split: Split it belongs to, e.g. ``train``, ``valid_seen``.
        family: Task type, e.g. ``pick_and_place_simple``.
        spec: What the environment needs to load it (for ALFWorld: the path of the game file).
        max_steps: Environment steps after which an episode is truncated.
    """

    game_id: str
    env: str
    split: str
    family: str
    spec: str
    max_steps: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What the environment shows: its text, and the commands that would do something now."""

    text: str
    admissible: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of one environment step.

    ``terminated``: the game itself ended. ``truncated``: a limit ended it. ``info`` holds at least
    ``won: bool`` and ``task_score: float`` in [0, 1]. An environment whose list of admissible commands
    can't name them all (a search takes any words) says by ``admissible: bool`` whether this one was.
    """

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stop(self) -> StopReason | None:
        """Why the episode is over after this step; None if it goes on."""
        if self.terminated:
            return StopReason.WON if self.info.get("won") else StopReason.LOST
        return StopReason.STEP_LIMIT if self.truncated else None


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; ``role`` is ``user`` or ``assistant`` in the chat template's sense."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A later user turn of a transcript: the observation proper, and what is said after it.

    Only ``observation`` is a state-prediction target; ``appendix`` (the admissible actions and the
    reminder of the format) is prompt.
    """

    observation: str
    appendix: str


@dataclass(frozen=True, slots=True)
class Generation:
    """Tokens the sampler wrote after a prompt, with their log-probabilities.

    Attributes:
        prompt_ids: Every token the policy had seen when it began to write.
        prompt_roles: The :class:`Role` of each of them, one byte each.
        token_ids: Tokens written, the end-of-turn token included when it was sampled.
        logprobs: Natural logarithm of each written token's probability under the sampling
            distribution at temperature 1 (the model's own, whatever temperature was sampled at).
        finish: Why writing stopped.
        policy_version: Number of optimiser updates the sampling weights had seen.
    """

    prompt_ids: tuple[int, ...]
    prompt_roles: bytes
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    policy_version: int


@dataclass(frozen=True, slots=True)
class Transition:
    """One environment step as the policy lived it.

    Attributes:
        observation: What the policy saw before it acted.
        generation: What it wrote.
        action: The command sent to the environment; ``None`` if nothing could be parsed.
        format_valid: The text followed the asked-for output format.
        admissible: The action was one of ``observation.admissible``.
        reward: Environment reward of this step.
        next_observation: What the environment answered.
    """

    observation: Observation
    generation: Generation
    action: str | None
    format_valid: bool
    admissible: bool
    reward: float
    next_observation: Observation


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One episode. ``fault`` tells what failed when ``stop`` is ``ENV_FAULT``."""

    game_id: str
    family: str
    episode_seed: int
    transitions: tuple[Transition, ...]
    stop: StopReason
    won: bool
    task_score: float
    fault: str | None = None

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of environment rewards."""
        return float(sum(t.reward for t in self.transitions))


@dataclass(frozen=True, slots=True)
class Group:
    """Episodes of the same game under the same policy: the pool of a group-relative advantage."""

    game: Game
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True)
class Lived:
    """A transition with what its episode and group came to: what an auxiliary objective chooses by.

    Attributes:
        transition: The environment step.
        last: It ended its episode.
        won: Its episode was won.
        number: Environment step within its trajectory, from 0.
        trajectory: Number of its trajectory within the iteration.
        group: Number of its group within the iteration.
        group_success: Share of its group's episodes that were won, in [0, 1].
    """

    transition: Transition
    last: bool
    won: bool
    number: int
    trajectory: int
    group: int
    group_success: float
