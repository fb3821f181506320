"""Readable transcripts of episodes, to be kept as artifacts of a run.

Texts stand in fenced blocks, unchanged: no character is escaped, dropped or shortened. A fence is
always longer than any run of backticks in the text it encloses, so nothing can break out of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from envrl.types import Finish, Generation, Trajectory, Transition

Decode = Callable[[Sequence[int]], str]
"""Turns token ids into text, special tokens included."""


def transcript(trajectory: Trajectory, decode: Decode | None = None) -> str:
    """One episode as Markdown: what the policy saw, wrote and did, turn by turn.

    Args:
        trajectory: The episode.
        decode: Shows what the policy wrote, thoughts and end token included. Without it only the
            parsed actions are shown.
    """
    parts = [f"## {trajectory.family} · game {trajectory.game_id} · seed {trajectory.episode_seed}", ""]
    parts.append(_summary(trajectory))
    parts.append("")
    for number, turn in enumerate(trajectory.transitions, start=1):
        if number == 1:
            parts += ["**Start**", "", _fence(turn.observation.text), ""]
        parts += _turn(number, turn, decode)
    if trajectory.fault is not None:
        parts += ["**Environment fault**", "", _fence(trajectory.fault), ""]
    return "\n".join(parts)


def transcripts(trajectories: Sequence[Trajectory], title: str, decode: Decode | None = None) -> str:
    """Several episodes as one Markdown document with a title."""
    return "\n".join([f"# {title}", "", *(transcript(t, decode) for t in trajectories)])


def _summary(trajectory: Trajectory) -> str:
    turns = trajectory.transitions
    invalid = sum(not t.format_valid for t in turns)
    inadmissible = sum(t.format_valid and not t.admissible for t in turns)
    return (
        f"{'won' if trajectory.won else 'not won'} · ended by {trajectory.stop.value} · {len(turns)} turns · "
        f"return {trajectory.episode_return:g} · task score {trajectory.task_score:g} · "
        f"{invalid} format-invalid · {inadmissible} inadmissible"
    )


def _turn(number: int, turn: Transition, decode: Decode | None) -> list[str]:
    lines = [f"**Turn {number}**{''.join(f' · {mark}' for mark in _marks(turn))}", ""]
    if decode is not None:
        lines += [_fence(decode(turn.generation.token_ids)), ""]
    shown = "(no action could be parsed)" if turn.action is None else f"> {turn.action}"
    lines += [_fence(shown), "", _fence(turn.next_observation.text), ""]
    return lines


def _marks(turn: Transition) -> list[str]:
    """Everything that is not as it should be, and the reward where there is one."""
    marks = []
    if not turn.format_valid:
        marks.append("FORMAT-INVALID")
    if not turn.admissible and turn.action is not None:
        marks.append("INADMISSIBLE")
    if turn.generation.finish is Finish.LENGTH:
        marks.append("cut at the token limit")
    if turn.reward:
        marks.append(f"reward {turn.reward:g}")
    if turn.generation.logprobs:
        marks.append(f"mean log-probability {_mean_logprob(turn.generation):.2f}")
    return marks


def _mean_logprob(generation: Generation) -> float:
    return sum(generation.logprobs) / len(generation.logprobs)


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
