"""What a policy is asked to learn how much it knows of an environment: fixed questions on held-out games."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envrl.envs.webshop.actions import SEARCH_PLACEHOLDER
from envrl.policy.chat import ChatMarkup
from envrl.prompts.dynamics import inverse_dynamics_question, state_prediction_question
from envrl.prompts.parse import written_answer
from envrl.prompts.render import follow_up, opening_message, shown_actions, task_of, without_banner
from envrl.prompts.settings import PromptSettings
from envrl.rollout.random_play import random_query
from envrl.types import Role, Trajectory, Transition


@dataclass(frozen=True, slots=True)
class ProbeItem:
    """One transition, as token rows whose last tokens are to be predicted.

    Attributes:
        family: Task type of its game.
        predicted: State and true action, then the next observation.
        other_action: The same with another admissible action in place of the true one; None where the
            environment names no other.
        inverse: Both observations, then the action.
        observation_tokens: Tokens to be predicted at the end of the first two.
        action_tokens: The same of ``inverse``.
    """

    family: str
    predicted: tuple[int, ...]
    other_action: tuple[int, ...] | None
    inverse: tuple[int, ...]
    observation_tokens: int
    action_tokens: int


def probe_items(
    trajectories: Sequence[Trajectory],
    chat: ChatMarkup,
    prompt: PromptSettings,
    *,
    count: int,
    rng: np.random.Generator,
    in_conversation: bool,
) -> list[ProbeItem]:
    """Draws transitions of episodes and writes them down.

    All transitions are drawn alike, whichever of them the objectives are trained on (``skip_terminal``,
    ``skip_noops``): the same episodes, count and generator give the same questions.

    Args:
        trajectories: Episodes on held-out games, played by whomever; what was written in them is not read.
        chat: Markup.
        prompt: Wording.
        count: Number of transitions; fewer if there are fewer.
        rng: Source of the draws.
        in_conversation: Ask for state prediction within the conversation so far; else as a question.
            Whichever it is trained in.
    """
    places = [
        (trajectory, number)
        for trajectory in trajectories
        for number, transition in enumerate(trajectory.transitions)
        if transition.action is not None
    ]
    picked = sorted(rng.choice(len(places), size=min(count, len(places)), replace=False).tolist())
    chosen = (places[n] for n in picked)
    return [_item(t, number, chat, prompt, rng, in_conversation) for t, number in chosen]


def _item(
    trajectory: Trajectory,
    number: int,
    chat: ChatMarkup,
    prompt: PromptSettings,
    rng: np.random.Generator,
    in_conversation: bool,
) -> ProbeItem:
    transition = trajectory.transitions[number]
    assert transition.action is not None
    other = _another_action(trajectory, transition, rng)
    target = len(chat.encode(without_banner(transition.next_observation.text)))
    if in_conversation:
        rows = [_conversation(trajectory, number, action, chat, prompt) for action in (None, other)]
    else:
        rows = [_question(transition, action, chat, prompt) for action in (transition.action, other)]
        target += 1  # the end of the answer
    asked = inverse_dynamics_question(
        prompt, transition.observation.text, transition.action, transition.next_observation.text
    )
    inverse = chat.answered(asked.message, asked.target, Role.ACTION)
    return ProbeItem(
        trajectory.family,
        rows[0],
        None if other is None else rows[1],
        inverse.token_ids,
        target,
        len(chat.encode(asked.target)) + 1,
    )


def _another_action(trajectory: Trajectory, transition: Transition, rng: np.random.Generator) -> str | None:
    """Another admissible action, a search with words of the task; None if there is none."""
    task = task_of(trajectory.transitions[0].observation.text)
    others = [a for a in shown_actions(transition.observation) if a != transition.action]
    if not others:
        return None
    other = others[int(rng.integers(len(others)))]
    return random_query(task, rng) if other == SEARCH_PLACEHOLDER and task else other


def _question(
    transition: Transition, action: str | None, chat: ChatMarkup, prompt: PromptSettings
) -> tuple[int, ...]:
    after = without_banner(transition.next_observation.text)
    asked = state_prediction_question(prompt, transition.observation.text, action or "", after)
    return chat.answered(asked.message, asked.target, Role.OBSERVATION).token_ids


def _conversation(
    trajectory: Trajectory, number: int, other: str | None, chat: ChatMarkup, prompt: PromptSettings
) -> tuple[int, ...]:
    """The episode up to the answer of a step, with another action in that step if one is given."""
    steps = trajectory.transitions[: number + 1]
    ids = list(chat.opening(opening_message(prompt, steps[0].observation)).token_ids)
    for step in steps[:-1]:
        turn = follow_up(prompt, step.next_observation)
        ids += _acted(step.action or "", chat, prompt)
        ids += chat.later_turn(turn, answer_ended=True).token_ids
    last = steps[-1]
    ids += _acted(other or last.action or "", chat, prompt)
    text = without_banner(last.next_observation.text)
    return (*ids, *chat.last_observation(text, answer_ended=True).token_ids)


def _acted(action: str, chat: ChatMarkup, prompt: PromptSettings) -> list[int]:
    """Tokens of a turn in which that action is taken and nothing is thought."""
    return [*chat.encode(written_answer(action, prompt.form)), chat.end_id]
