"""From trajectories to token rows.

``steps``: a row is one prompt and its answer. ``transcript``: a row is an episode, every observation of
it in the place where the policy read it, and the last one at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from envrl.policy.batch import RowKind
from envrl.policy.chat import ChatMarkup, TokenSpan
from envrl.prompts.render import without_banner
from envrl.rollout.settings import AuxiliaryRows, RolloutSettings
from envrl.rollout.turns import Turn, answer_roles, overlong_penalty, turn_of
from envrl.types import Finish, Group, Role, StopReason, Trajectory, Transition

NOOP = "Nothing happens."

_Ending = Callable[[Transition, int], TokenSpan]
"""What follows the last action of a row that has so many tokens."""


@dataclass(frozen=True, slots=True)
class ObservedSpan:
    """Where a row holds what the environment answered to a transition.

    Attributes:
        start: First token of the observation.
        end: One past its last token.
        number: Environment step of the transition within its trajectory, from 0.
    """

    start: int
    end: int
    number: int


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
        observed: Observations in the row (policy rows made with ``observe``).
        marks: By objective, the weight of each token as its target.
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
    observed: tuple[ObservedSpan, ...] = ()
    marks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def count(self, role: Role) -> int:
        """Tokens of that role."""
        return self.roles.count(role)

    @property
    def idle(self) -> bool:
        """Whether all of its action tokens have advantage 0, so that it adds nothing to the policy's loss."""
        return not any(
            advantage != 0 and Role.ACTION in self.roles[turn.start : turn.start + turn.length]
            for turn, advantage in zip(self.turns, self.advantages, strict=bool(self.advantages))
        )


def is_sp_target(transition: Transition, last: bool, auxiliary: AuxiliaryRows) -> bool:
    """Whether the auxiliary objectives look at this transition."""
    if auxiliary.skip_terminal and last:
        return False
    unchanged = transition.next_observation.text in (NOOP, transition.observation.text)
    return not (auxiliary.skip_noops and unchanged)


def policy_rows(
    groups: Sequence[Group],
    chat: ChatMarkup,
    rollout: RolloutSettings,
    auxiliary: AuxiliaryRows,
    *,
    observe: bool = False,
    max_tokens: int | None = None,
) -> list[TokenRow]:
    """Policy rows of an iteration, in the order of groups, trajectories and steps.

    With ``observe`` every row also holds the observations that followed its actions, the one after its
    last action appended, and says where (``TokenRow.observed``); they stand behind all that the policy
    wrote, or where it read them, so nothing it did is seen differently.

    The observation after the last action, which the policy never read, is left out where the row would have
    more than ``max_tokens`` tokens with it.

    Episodes that ended by a fault of the environment give no rows: their score would blame the policy.
    Observation tokens keep their role only where state prediction reads them off the policy rows.
    """
    rows = []
    number = 0
    for group_number, group in enumerate(groups):
        for trajectory in group.trajectories:
            if trajectory.stop is not StopReason.ENV_FAULT and trajectory.transitions:
                make = _transcript_rows if rollout.layout == "transcript" else _step_rows
                ending = partial(_ending, chat=chat, max_tokens=max_tokens)
                made = make(trajectory, ending, rollout, auxiliary, observe)
                rows += [replace(r, group=group_number, trajectory=number) for r in made]
            number += 1
    return rows


def _score(trajectory: Trajectory, rollout: RolloutSettings, own: Sequence[Transition]) -> float:
    """The episode's return minus what the form of a row's own answers costs."""
    invalid = sum(not transition.format_valid for transition in own)
    overlong = sum(overlong_penalty(transition, rollout) for transition in own)
    return rollout.win_reward * trajectory.episode_return - rollout.format_penalty * invalid - overlong


def _step_rows(
    trajectory: Trajectory,
    ending: _Ending,
    rollout: RolloutSettings,
    auxiliary: AuxiliaryRows,
    observe: bool,
) -> list[TokenRow]:
    rows = []
    for number, transition in enumerate(trajectory.transitions):
        g = transition.generation
        row = TokenRow(
            RowKind.POLICY,
            g.prompt_ids + g.token_ids,
            g.prompt_roles + answer_roles(g, rollout),
            (0.0,) * len(g.prompt_ids) + g.logprobs,
            score=_score(trajectory, rollout, [transition]),
            policy_version=g.policy_version,
            turns=(turn_of(transition, len(g.prompt_ids), rollout),),
        )
        rows.append(_with_ending(row, ending(transition, len(row.token_ids)), number) if observe else row)
    return rows


def _ending(transition: Transition, length: int, *, chat: ChatMarkup, max_tokens: int | None) -> TokenSpan:
    """What the environment answered, as it follows the policy's own tokens; nothing if it does not fit."""
    answered = chat.last_observation(
        without_banner(transition.next_observation.text),
        answer_ended=transition.generation.finish is Finish.END,
    )
    fits = max_tokens is None or length + len(answered.token_ids) <= max_tokens
    return answered if fits else TokenSpan((), b"")


def _with_ending(row: TokenRow, ending: TokenSpan, number: int) -> TokenRow:
    """The row with an observation behind it that is a target of marks only, not of its role."""
    length = len(row.token_ids)
    return replace(
        row,
        token_ids=row.token_ids + ending.token_ids,
        roles=row.roles + _without_observations(ending.roles),
        logprobs=row.logprobs + (0.0,) * len(ending.token_ids),
        observed=(*row.observed, *_observed(ending.roles, length, number)),
    )


def _observed(roles: bytes, offset: int, number: int) -> list[ObservedSpan]:
    """Where the observation stands among tokens of these roles; nothing if it is empty."""
    size = roles.count(Role.OBSERVATION)
    start = offset + roles.find(Role.OBSERVATION)
    return [ObservedSpan(start, start + size, number)] if size else []


def _transcript_rows(
    trajectory: Trajectory,
    ending: _Ending,
    rollout: RolloutSettings,
    auxiliary: AuxiliaryRows,
    observe: bool,
) -> list[TokenRow]:
    read_off = auxiliary.sp_rows == "policy" and not auxiliary.altered
    ids: tuple[int, ...] = ()
    roles = b""
    logprobs: tuple[float, ...] = ()
    turns: tuple[Turn, ...] = ()
    observed: list[ObservedSpan] = []
    transitions = trajectory.transitions
    for number, transition in enumerate(transitions):
        g = transition.generation
        given, given_roles = g.prompt_ids[len(ids) :], g.prompt_roles[len(roles) :]
        if observe and number > 0:
            observed += _observed(given_roles, len(ids), number - 1)
        if number > 0 and not (read_off and is_sp_target(transitions[number - 1], False, auxiliary)):
            given_roles = _without_observations(given_roles)
        turns += (turn_of(transition, len(g.prompt_ids), rollout),)
        ids += given + g.token_ids
        roles += given_roles + answer_roles(g, rollout)
        logprobs += (0.0,) * len(given) + g.logprobs
    last_is_target = read_off and is_sp_target(transitions[-1], True, auxiliary)
    if last_is_target or observe:
        last = ending(transitions[-1], len(ids))
        if observe:
            observed += _observed(last.roles, len(ids), len(transitions) - 1)
        ids += last.token_ids
        roles += last.roles if last_is_target else _without_observations(last.roles)
        logprobs += (0.0,) * len(last.token_ids)
    version = transitions[0].generation.policy_version
    score = _score(trajectory, rollout, transitions)
    row = TokenRow(RowKind.POLICY, ids, roles, logprobs, score, policy_version=version, turns=turns)
    return [replace(row, observed=tuple(observed))]


def _without_observations(roles: bytes) -> bytes:
    return roles.replace(bytes([Role.OBSERVATION]), bytes([Role.PROMPT]))
