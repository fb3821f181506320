"""What is measured on an iteration's episodes and rows."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.policy.batch import Outcome
from envrl.policy.chat import ChatMarkup
from envrl.rollout.imagined import imagined_rate
from envrl.rollout.rows import TokenRow
from envrl.types import Finish, Group, Role, StopReason, Trajectory


def all_episodes(groups: Sequence[Group]) -> list[Trajectory]:
    """The episodes of all groups, group by group."""
    return [trajectory for group in groups for trajectory in group.trajectories]


def is_flat(group: Group) -> bool:
    """Whether all episodes of a group have the same return, so that none is better than another.

    Episodes that an environment fault ended don't count, as they give no rows. A broken format may still
    cost some of them a little: that alone is no reason to keep a group (declared choice; DAPO, arXiv
    2503.14476, section 3.2, drops groups whose answers are all right or all wrong).
    """
    returns = {t.episode_return for t in group.trajectories if t.stop is not StopReason.ENV_FAULT}
    return len(returns) < 2


def episode_metrics(trajectories: Sequence[Trajectory], prefix: str) -> dict[str, float]:
    """Means over episodes; faulted ones count as lost (and in ``fault_rate``)."""
    count = max(1, len(trajectories))
    transitions = [t for trajectory in trajectories for t in trajectory.transitions]
    turns = max(1, len(transitions))
    return {
        f"{prefix}/success_rate": sum(t.won for t in trajectories) / count,
        f"{prefix}/task_score": sum(t.task_score for t in trajectories) / count,
        f"{prefix}/episode_length": len(transitions) / count,
        f"{prefix}/return": sum(t.episode_return for t in trajectories) / count,
        f"{prefix}/fault_rate": sum(t.stop is StopReason.ENV_FAULT for t in trajectories) / count,
        f"{prefix}/format_invalid_rate": sum(not t.format_valid for t in transitions) / turns,
        f"{prefix}/inadmissible_rate": sum(t.format_valid and not t.admissible for t in transitions) / turns,
    }


def speed(trajectories: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    """Wall time of some episodes, and tokens that the policy wrote in a second of it."""
    written = sum(len(t.generation.token_ids) for tr in trajectories for t in tr.transitions)
    return {"rollout/seconds": seconds, "rollout/tokens_per_second": written / max(seconds, 1e-9)}


def overlong_share(groups: Sequence[Group]) -> float:
    """Share of answers that were cut off."""
    answers = [t.generation.finish for g in groups for tr in g.trajectories for t in tr.transitions]
    return sum(finish is Finish.LENGTH for finish in answers) / max(1, len(answers))


def outcome_of(groups: Sequence[Group], chat: ChatMarkup) -> Outcome:
    """What the episodes that are learnt from came to."""
    episodes = all_episodes(groups)
    success = sum(t.won for t in episodes) / max(1, len(episodes))
    return Outcome(success, imagined_rate(episodes, chat.decode))


def row_metrics(rows: Sequence[TokenRow]) -> dict[str, float]:
    """Share of groups in which every row has the same score, so that nothing can be learnt from it."""
    scores: dict[int, set[float]] = {}
    for row in rows:
        scores.setdefault(row.group, set()).add(row.score)
    flat = sum(len(found) == 1 for found in scores.values())
    acted = sum(r.count(Role.ACTION) for r in rows)
    return {
        "rollout/zero_variance_share": flat / max(1, len(scores)),
        "rollout/action_tokens": float(acted),
    }
