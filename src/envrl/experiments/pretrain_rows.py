"""Rows for training an embedded policy: what was played as conversations, and questions about it."""

from __future__ import annotations

import numpy as np

from envrl.experiments.played import PlayedEpisode
from envrl.experiments.shop_corpus import PRODUCT_CLICK
from envrl.policy.chat import ChatMarkup
from envrl.policy.pretraining import (
    WeightedRow,
)
from envrl.prompts.dynamics import inverse_dynamics_question, state_prediction_question
from envrl.prompts.render import follow_up, opening_message
from envrl.prompts.settings import PromptSettings
from envrl.types import Role

_PROMPTS = PromptSettings()


def transcript_row(
    chat: ChatMarkup, episode: PlayedEpisode, action: float, other: float, choice: float = 1.0
) -> WeightedRow:
    """An episode as one conversation.

    Args:
        chat: Markup.
        episode: What was played.
        action: Target weight of the expert's commands.
        other: Target weight of observations and of random commands.
        choice: Factor on the first for clicks on products.
    """
    opened = chat.opening(opening_message(_PROMPTS, episode.opening))
    ids, weights = list(opened.token_ids), [other] * len(opened.token_ids)
    for step in episode.steps:
        command = [*chat.encode(step.command), chat.end_id]
        ids += command
        # A random command is never imitated, only survived.
        weight = action * choice if PRODUCT_CLICK.fullmatch(step.command) else action
        weights += [weight if step.expert else 0.0] * len(command)
        turn = chat.later_turn(follow_up(_PROMPTS, step.answer), answer_ended=True)
        ids += turn.token_ids
        weights += [other if role == Role.OBSERVATION else 0.0 for role in turn.roles]
    return WeightedRow(tuple(ids), tuple(weights))


def question_rows(
    chat: ChatMarkup, episode: PlayedEpisode, count: int, weight: float, rng: np.random.Generator
) -> list[WeightedRow]:
    """State-prediction and inverse-dynamics questions about ``count`` random steps of an episode."""
    rows = []
    picked = rng.choice(len(episode.steps), size=min(count, len(episode.steps)), replace=False)
    for index in picked.tolist():
        before = episode.opening if index == 0 else episode.steps[index - 1].answer
        step = episode.steps[index]
        for ask, role in (
            (state_prediction_question, Role.OBSERVATION),
            (inverse_dynamics_question, Role.ACTION),
        ):
            question = ask(_PROMPTS, before.text, step.command, step.answer.text)
            tokens = chat.answered(question.message, question.target, role)
            weights = tuple(weight if r == role else 0.0 for r in tokens.roles)
            rows.append(WeightedRow(tokens.token_ids, weights))
    return rows
