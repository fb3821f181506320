"""Controls of the auxiliary objectives: what is altered to learn which part of an effect comes from what.

``shuffle_targets`` and ``shuffle_episode`` leave every token in the batch and break the link between
question and answer, over the iteration or within the episode. ``drop_action`` and ``replace_action`` break
the link between action and answer alone. ``matched_tokens`` keeps the number of target tokens and takes
away what they tell.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from envrl.envs.webshop.actions import SEARCH_PLACEHOLDER
from envrl.policy.batch import RowKind
from envrl.policy.chat import ChatMarkup
from envrl.prompts.render import without_banner
from envrl.rollout.rows import TokenRow, policy_rows
from envrl.rollout.settings import AuxiliaryRows, RolloutSettings
from envrl.types import Group, Role, Trajectory

Pairing = Callable[[Sequence[Hashable], np.random.Generator], list[int]]
"""Permutation of the shuffled-target control: whose target each item gets."""


def permutation(
    targets: Sequence[Hashable],
    episodes: Sequence[int],
    auxiliary: AuxiliaryRows,
    rng: np.random.Generator,
    pairing: Pairing,
) -> list[int]:
    """Whose target each item gets: its own, unless a control shuffles them.

    Args:
        targets: Content of each item's target.
        episodes: Episode each item is of; an episode of a single item keeps its target under
            ``shuffle_episode``.
        auxiliary: Which control.
        rng: Source of the draw.
        pairing: Permutes items so that contents differ wherever possible.
    """
    if auxiliary.shuffle_targets:
        return pairing(targets, rng)
    order = list(range(len(targets)))
    if auxiliary.control == "shuffle_episode":
        for episode in sorted(set(episodes)):
            places = [n for n, number in enumerate(episodes) if number == episode]
            for place, other in zip(places, pairing([targets[n] for n in places], rng), strict=True):
                order[place] = places[other]
    return order


def altered_actions(
    actions: Sequence[str],
    admissible: Sequence[Sequence[str]],
    auxiliary: AuxiliaryRows,
    rng: np.random.Generator,
) -> list[str]:
    """The action each state-prediction question shows: the true one, none, or another one.

    ``replace_action`` draws from the other admissible actions of the same observation that are real ones:
    no ``help``, which no prompt lists, and no placeholder of a search. Where there is no other, it draws
    from the actions done elsewhere in the iteration; if all are the same, the true one stays.
    """
    if auxiliary.control == "drop_action":
        return [""] * len(actions)
    if auxiliary.control != "replace_action":
        return list(actions)
    done = sorted(set(actions))
    found = []
    for action, offered in zip(actions, admissible, strict=True):
        real = [a for a in offered if a not in ("help", SEARCH_PLACEHOLDER)]
        others = [a for a in real if a != action] or [a for a in done if a != action] or [action]
        found.append(others[int(rng.integers(len(others)))])
    return found


def copied_tokens(source: Sequence[int], count: int) -> tuple[int, ...]:
    """``count`` tokens copied from the source, from its beginning and again where it is too short.

    Args:
        source: Tokens that the question shows.
        count: Tokens of the true target.
    """
    return tuple(source[n % len(source)] for n in range(count)) if source else ()


def control_transcript_rows(
    groups: Sequence[Group],
    chat: ChatMarkup,
    rollout: RolloutSettings,
    auxiliary: AuxiliaryRows,
    rng: np.random.Generator,
    pairing: Pairing,
    max_tokens: int | None = None,
) -> list[TokenRow]:
    """Rows of a control for state prediction that is read off policy rows.

    They are the policy's rows with observations or actions altered, count for state prediction alone, and
    leave the policy rows themselves as they are. Shuffled, they hold the same multiset of observation
    tokens, permuted by content.
    """
    plain = replace(auxiliary, shuffle_targets=False, control="none")
    true_rows = policy_rows(groups, chat, rollout, plain, max_tokens=max_tokens)
    trajectories = [t for group in groups for t in group.trajectories]
    if auxiliary.control in ("drop_action", "replace_action"):
        edits = _action_edits(true_rows, trajectories, chat, auxiliary, rng)
    else:
        edits = _observation_edits(true_rows, trajectories, chat, auxiliary, rng, pairing)
    return [_edited(row, own) for row, own in zip(true_rows, edits, strict=True)]


@dataclass(frozen=True, slots=True)
class _Edit:
    """Tokens ``start`` to ``end`` of a row become ``token_ids``, in the role of the first of them."""

    start: int
    end: int
    token_ids: tuple[int, ...]


def _edited(row: TokenRow, edits: Sequence[_Edit]) -> TokenRow:
    ids: tuple[int, ...] = ()
    roles, done = b"", 0
    for edit in edits:
        ids += row.token_ids[done : edit.start] + edit.token_ids
        roles += row.roles[done : edit.start] + row.roles[edit.start : edit.start + 1] * len(edit.token_ids)
        done = edit.end
    ids, roles = ids + row.token_ids[done:], roles + row.roles[done:]
    kind, logprobs = RowKind.STATE_PREDICTION, (0.0,) * len(ids)
    return replace(row, kind=kind, token_ids=ids, roles=roles, logprobs=logprobs, turns=())


def _observation_edits(
    rows: Sequence[TokenRow],
    trajectories: Sequence[Trajectory],
    chat: ChatMarkup,
    auxiliary: AuxiliaryRows,
    rng: np.random.Generator,
    pairing: Pairing,
) -> list[list[_Edit]]:
    """Every observation becomes another one, or a copy of the episode's first as long as itself."""
    places = [_runs(row.roles, Role.OBSERVATION) for row in rows]
    targets = [row.token_ids[a:b] for row, own in zip(rows, places, strict=True) for a, b in own]
    episodes = [row.trajectory for row, own in zip(rows, places, strict=True) for _ in own]
    order = permutation(targets, episodes, auxiliary, rng, pairing)
    contents = iter([targets[n] for n in order])
    edits = []
    for row, own in zip(rows, places, strict=True):
        mine = [_Edit(a, b, next(contents)) for a, b in own]
        if auxiliary.control == "matched_tokens":
            first = trajectories[row.trajectory].transitions[0].observation.text
            shown = chat.encode(without_banner(first))
            mine = [replace(e, token_ids=copied_tokens(shown, e.end - e.start)) for e in mine]
        edits.append(mine)
    return edits


def _action_edits(
    rows: Sequence[TokenRow],
    trajectories: Sequence[Trajectory],
    chat: ChatMarkup,
    auxiliary: AuxiliaryRows,
    rng: np.random.Generator,
) -> list[list[_Edit]]:
    """Every answer becomes empty or another action; its end-of-turn token stays if it had one."""
    lived = [trajectories[row.trajectory].transitions for row in rows]
    flat = [t for transitions in lived for t in transitions]
    shown = iter(
        altered_actions(
            [t.action or "" for t in flat], [t.observation.admissible for t in flat], auxiliary, rng
        )
    )
    edits = []
    for row in rows:
        mine = []
        for turn in row.turns:
            end = turn.start + turn.length
            ending = (chat.end_id,) if row.token_ids[end - 1] == chat.end_id else ()
            mine.append(_Edit(turn.start, end, (*chat.encode(next(shown)), *ending)))
        edits.append(mine)
    return edits


def _runs(roles: bytes, role: Role) -> list[tuple[int, int]]:
    """Beginning and end of every maximal run of tokens of a role."""
    runs, start = [], None
    for place, found in enumerate([*roles, -1]):
        if found == role and start is None:
            start = place
        elif found != role and start is not None:
            runs.append((start, place))
            start = None
    return runs
