"""Question rows: state prediction, inverse dynamics, and those of other objectives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from envrl.policy.batch import RowKind
from envrl.policy.chat import ChatMarkup, span
from envrl.prompts.dynamics import inverse_dynamics_question, state_prediction_question
from envrl.prompts.render import without_banner
from envrl.prompts.settings import PromptSettings
from envrl.rollout.controls import Pairing, altered_actions, copied_tokens, permutation
from envrl.rollout.objectives import RowObjective, lived_transitions
from envrl.rollout.rows import TokenRow
from envrl.rollout.settings import AuxiliaryRows
from envrl.types import Group, Lived, Message, Role


def inverse_dynamics_rows(
    groups: Sequence[Group],
    chat: ChatMarkup,
    prompt: PromptSettings,
    auxiliary: AuxiliaryRows,
    rng: np.random.Generator,
    pairing: Pairing,
) -> list[TokenRow]:
    """One row per transition: which action led from this observation to the next?

    Transitions without a parsed action have no answer and are left out. The shuffling controls give each
    row the action of another transition; those that alter the action of state prediction do nothing here.
    """
    asked = [a for a in _asked(groups, auxiliary, rng) if a.transition.action is not None]
    targets = [a.transition.action or "" for a in asked]
    order = permutation(targets, [a.trajectory for a in asked], auxiliary, rng, pairing)
    rows = []
    for item, number in zip(asked, order, strict=True):
        t, target = item.transition, targets[number]
        question = inverse_dynamics_question(prompt, t.observation.text, target, t.next_observation.text)
        answer = _answer(chat, target, item, auxiliary)
        rows.append(
            _question_row(chat, RowKind.INVERSE_DYNAMICS, question.message, answer, Role.ACTION, item)
        )
    return rows


def state_prediction_rows(
    groups: Sequence[Group],
    chat: ChatMarkup,
    prompt: PromptSettings,
    auxiliary: AuxiliaryRows,
    rng: np.random.Generator,
    pairing: Pairing,
) -> list[TokenRow]:
    """One row per transition: what does the environment answer to this action?

    The shuffling controls give each row the answer of another transition, others alter its action.
    """
    asked = [a for a in _asked(groups, auxiliary, rng) if a.transition.action is not None]
    targets = [without_banner(a.transition.next_observation.text) for a in asked]
    order = permutation(targets, [a.trajectory for a in asked], auxiliary, rng, pairing)
    actions = altered_actions(
        [a.transition.action or "" for a in asked],
        [a.transition.observation.admissible for a in asked],
        auxiliary,
        rng,
    )
    rows = []
    for item, number, action in zip(asked, order, actions, strict=True):
        seen, target = item.transition.observation.text, targets[number]
        question = state_prediction_question(prompt, seen, action, target)
        answer = _answer(chat, target, item, auxiliary)
        rows.append(
            _question_row(chat, RowKind.STATE_PREDICTION, question.message, answer, Role.OBSERVATION, item)
        )
    return rows


def objective_rows(
    groups: Sequence[Group],
    chat: ChatMarkup,
    prompt: PromptSettings,
    auxiliary: AuxiliaryRows,
    rng: np.random.Generator,
    objective: RowObjective,
) -> list[TokenRow]:
    """One row per question that an objective asks, its answer marked as its target."""
    rows = []
    for item in _asked(groups, auxiliary, rng):
        question = objective.ask(item, prompt)
        if question is None:
            continue
        answer = (*chat.encode(question.target), chat.end_id)
        row = _question_row(chat, RowKind.OTHER, question.message, answer, Role.ACTION, item)
        given, each = len(row.token_ids) - len(answer), objective.spread(1.0, len(answer))
        rows.append(replace(row, marks={objective.name: (0.0,) * given + (each,) * len(answer)}))
    return rows


def _asked(groups: Sequence[Group], auxiliary: AuxiliaryRows, rng: np.random.Generator) -> list[Lived]:
    """Transitions the question rows are about, at most ``max_transitions`` of them."""
    found = lived_transitions(groups, auxiliary)
    if auxiliary.max_transitions is not None and len(found) > auxiliary.max_transitions:
        picked = rng.choice(len(found), size=auxiliary.max_transitions, replace=False)
        found = [found[i] for i in sorted(picked.tolist())]
    return found


def _answer(chat: ChatMarkup, target: str, item: Lived, auxiliary: AuxiliaryRows) -> tuple[int, ...]:
    """Tokens of the answer and its end: the target's, or as many copied from the question."""
    ids = tuple(chat.encode(target))
    if auxiliary.control == "matched_tokens":
        ids = copied_tokens(chat.encode(without_banner(item.transition.observation.text)), len(ids))
    return (*ids, chat.end_id)


def _question_row(
    chat: ChatMarkup, kind: RowKind, message: Message, answer: Sequence[int], role: Role, item: Lived
) -> TokenRow:
    """A question and the tokens that answer it."""
    tokens = chat.opening(message) + span(answer, role)
    return TokenRow(
        kind,
        tokens.token_ids,
        tokens.roles,
        (0.0,) * len(tokens.token_ids),
        trajectory=item.trajectory,
        policy_version=item.transition.generation.policy_version,
    )
