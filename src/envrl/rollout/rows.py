"""From trajectories to token rows.

``steps``: a row is one prompt and its answer. ``transcript``: a row is an episode, every observation of
it in the place where the policy read it, and the last one at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from envrl.policy.batch import RowKind
from envrl.policy.chat import ChatMarkup
from envrl.prompts.dynamics import inverse_dynamics_question, state_prediction_question
from envrl.prompts.render import without_banner
from envrl.prompts.settings import PromptSettings
from envrl.rollout.settings import AuxiliaryRows, RolloutSettings
from envrl.rollout.turns import Turn, answer_roles, turn_of
from envrl.types import Finish, Group, Message, Role, StopReason, Trajectory, Transition

NOOP = "Nothing happens."
Pairing = Callable[[Sequence[Hashable], np.random.Generator], list[int]]
"""Permutation of the shuffled-target control: whose target each item gets."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token row, before advantages and padding.

    Attributes:
        kind: Which losses read it.
        token_ids: Token ids.
        roles: Role of each, one byte each.
        logprobs: Sampled log-probability of each, 0 where not sampled.
        score: What the advantage is made of (policy rows).
        group: Number of the group (policy rows).
        trajectory: Number of the trajectory within the iteration.
        policy_version: Optimiser updates the sampling weights had seen.
        turns: Its environment steps in order (policy rows).
        advantages: One per turn; filled in later, as are the next two.
        values: What the critic said of each turn; empty without a critic.
        returns: What it should have said.
    """

    kind: RowKind
    token_ids: tuple[int, ...]
    roles: bytes
    logprobs: tuple[float, ...]
    score: float = 0.0
    group: int = 0
    trajectory: int = 0
    policy_version: int = 0
    turns: tuple[Turn, ...] = ()
    advantages: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    returns: tuple[float, ...] = ()

    def count(self, role: Role) -> int:
        """Tokens of that role."""
        return self.roles.count(role)


def is_sp_target(transition: Transition, last: bool, auxiliary: AuxiliaryRows) -> bool:
    """Whether the auxiliary objectives look at this transition."""
    if auxiliary.skip_terminal and last:
        return False
    unchanged = transition.next_observation.text in (NOOP, transition.observation.text)
    return not (auxiliary.skip_noops and unchanged)


def policy_rows(
    groups: Sequence[Group], chat: ChatMarkup, rollout: RolloutSettings, auxiliary: AuxiliaryRows
) -> list[TokenRow]:
    """Policy rows of an iteration, in the order of groups, trajectories and steps.

    Episodes that ended by a fault of the environment give no rows: their score would blame the policy.
    Observation tokens keep their role only where state prediction reads them off the policy rows.
    """
    rows = []
    number = 0
    for group_number, group in enumerate(groups):
        for trajectory in group.trajectories:
            if trajectory.stop is not StopReason.ENV_FAULT and trajectory.transitions:
                make = _transcript_rows if rollout.layout == "transcript" else _step_rows
                made = make(trajectory, chat, rollout, auxiliary)
                rows += [replace(r, group=group_number, trajectory=number) for r in made]
            number += 1
    return rows


def _score(trajectory: Trajectory, rollout: RolloutSettings, invalid: int) -> float:
    return rollout.win_reward * trajectory.episode_return - rollout.format_penalty * invalid


def _step_rows(
    trajectory: Trajectory, chat: ChatMarkup, rollout: RolloutSettings, auxiliary: AuxiliaryRows
) -> list[TokenRow]:
    rows = []
    for transition in trajectory.transitions:
        g = transition.generation
        rows.append(
            TokenRow(
                RowKind.POLICY,
                g.prompt_ids + g.token_ids,
                g.prompt_roles + answer_roles(g, rollout),
                (0.0,) * len(g.prompt_ids) + g.logprobs,
                score=_score(trajectory, rollout, int(not transition.format_valid)),
                policy_version=g.policy_version,
                turns=(turn_of(transition, len(g.prompt_ids), rollout),),
            )
        )
    return rows


def _transcript_rows(
    trajectory: Trajectory, chat: ChatMarkup, rollout: RolloutSettings, auxiliary: AuxiliaryRows
) -> list[TokenRow]:
    read_off = auxiliary.sp_rows == "policy" and not auxiliary.shuffle_targets
    ids: tuple[int, ...] = ()
    roles = b""
    logprobs: tuple[float, ...] = ()
    turns: tuple[Turn, ...] = ()
    transitions = trajectory.transitions
    for number, transition in enumerate(transitions):
        g = transition.generation
        given, given_roles = g.prompt_ids[len(ids) :], g.prompt_roles[len(roles) :]
        if number > 0 and not (read_off and is_sp_target(transitions[number - 1], False, auxiliary)):
            given_roles = _without_observations(given_roles)
        turns += (turn_of(transition, len(g.prompt_ids), rollout),)
        ids += given + g.token_ids
        roles += given_roles + answer_roles(g, rollout)
        logprobs += (0.0,) * len(given) + g.logprobs
    if read_off and is_sp_target(transitions[-1], True, auxiliary):
        ending = chat.last_observation(
            without_banner(transitions[-1].next_observation.text),
            answer_ended=transitions[-1].generation.finish is Finish.END,
        )
        ids, roles = ids + ending.token_ids, roles + ending.roles
        logprobs += (0.0,) * len(ending.token_ids)
    invalid = sum(not t.format_valid for t in transitions)
    version = transitions[0].generation.policy_version
    score = _score(trajectory, rollout, invalid)
    return [TokenRow(RowKind.POLICY, ids, roles, logprobs, score, policy_version=version, turns=turns)]


def _without_observations(roles: bytes) -> bytes:
    return roles.replace(bytes([Role.OBSERVATION]), bytes([Role.PROMPT]))


@dataclass(frozen=True, slots=True)
class _Asked:
    transition: Transition
    trajectory: int


def _asked(groups: Sequence[Group], auxiliary: AuxiliaryRows, rng: np.random.Generator) -> list[_Asked]:
    """Transitions the question rows are about, at most ``max_transitions`` of them."""
    found: list[_Asked] = []
    number = 0
    for group in groups:
        for trajectory in group.trajectories:
            last = len(trajectory.transitions) - 1
            found += [
                _Asked(t, number)
                for i, t in enumerate(trajectory.transitions)
                if is_sp_target(t, i == last, auxiliary)
            ]
            number += 1
    if auxiliary.max_transitions is not None and len(found) > auxiliary.max_transitions:
        picked = rng.choice(len(found), size=auxiliary.max_transitions, replace=False)
        found = [found[i] for i in sorted(picked.tolist())]
    return found


def inverse_dynamics_rows(
    groups: Sequence[Group],
    chat: ChatMarkup,
    prompt: PromptSettings,
    auxiliary: AuxiliaryRows,
    rng: np.random.Generator,
    pairing: Pairing,
) -> list[TokenRow]:
    """One row per transition: which action led from this observation to the next?

    Transitions without a parsed action have no answer and are left out. With ``shuffle_targets`` each
    row gets the action of another transition.
    """
    asked = [a for a in _asked(groups, auxiliary, rng) if a.transition.action is not None]
    targets = [a.transition.action or "" for a in asked]
    if auxiliary.shuffle_targets:
        targets = [targets[i] for i in pairing(targets, rng)]
    rows = []
    for item, target in zip(asked, targets, strict=True):
        t = item.transition
        question = inverse_dynamics_question(prompt, t.observation.text, target, t.next_observation.text)
        rows.append(
            _question_row(chat, RowKind.INVERSE_DYNAMICS, question.message, target, Role.ACTION, item)
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

    With ``shuffle_targets`` each row gets the answer of another transition.
    """
    asked = [a for a in _asked(groups, auxiliary, rng) if a.transition.action is not None]
    targets = [without_banner(a.transition.next_observation.text) for a in asked]
    if auxiliary.shuffle_targets:
        targets = [targets[i] for i in pairing(targets, rng)]
    rows = []
    for item, target in zip(asked, targets, strict=True):
        t = item.transition
        question = state_prediction_question(prompt, t.observation.text, t.action or "", target)
        rows.append(
            _question_row(chat, RowKind.STATE_PREDICTION, question.message, target, Role.OBSERVATION, item)
        )
    return rows


def _question_row(
    chat: ChatMarkup, kind: RowKind, message: Message, target: str, role: Role, item: _Asked
) -> TokenRow:
    tokens = chat.answered(message, target, role)
    return TokenRow(
        kind,
        tokens.token_ids,
        tokens.roles,
        (0.0,) * len(tokens.token_ids),
        trajectory=item.trajectory,
        policy_version=item.transition.generation.policy_version,
    )


def shuffled_transcript_rows(
    groups: Sequence[Group],
    chat: ChatMarkup,
    rollout: RolloutSettings,
    auxiliary: AuxiliaryRows,
    rng: np.random.Generator,
    pairing: Pairing,
) -> list[TokenRow]:
    """Control for state prediction read off policy rows: every observation is another transition's.

    The rows have the same prompts and actions as the policy rows and the same multiset of observation
    tokens, permuted over the batch by content; the policy rows themselves are not touched.
    """
    true_rows = policy_rows(groups, chat, rollout, replace(auxiliary, shuffle_targets=False))
    pieces = [_pieces(row) for row in true_rows]
    targets = [ids for row in pieces for role, ids in row if role == Role.OBSERVATION]
    order = iter(pairing(targets, rng))
    rows = []
    for row, parts in zip(true_rows, pieces, strict=True):
        ids: tuple[int, ...] = ()
        roles = b""
        for role, part in parts:
            content = targets[next(order)] if role == Role.OBSERVATION else part
            ids += content
            roles += bytes([role]) * len(content)
        rows.append(
            replace(
                row,
                kind=RowKind.STATE_PREDICTION,
                token_ids=ids,
                roles=roles,
                logprobs=(0.0,) * len(ids),
                turns=(),
            )
        )
    return rows


def _pieces(row: TokenRow) -> list[tuple[int, tuple[int, ...]]]:
    """Maximal runs of tokens of the same role."""
    pieces: list[tuple[int, tuple[int, ...]]] = []
    start = 0
    for end in range(1, len(row.roles) + 1):
        if end == len(row.roles) or row.roles[end] != row.roles[start]:
            pieces.append((row.roles[start], row.token_ids[start:end]))
            start = end
    return pieces
