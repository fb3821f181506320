"""Plays a panel with a policy: each game once, total and per task type."""

from __future__ import annotations

import time
from dataclasses import dataclass

from envrl.analysis.records import Evaluation, GameOutcome
from envrl.envs.panels import Panel, episode_seed
from envrl.errors import EnvFault
from envrl.policy.model import Policy
from envrl.policy.ranks import ALONE, Ranks
from envrl.rollout.collector import Collector, EpisodePlan
from envrl.rollout.imagined import imagined_rate
from envrl.rollout.measures import episode_metrics
from envrl.rollout.source import Sampler, session_factory
from envrl.types import StopReason, Trajectory


@dataclass(frozen=True)
class PanelResult:
    """An evaluation, its metrics by name, and the episodes it consists of."""

    evaluation: Evaluation
    metrics: dict[str, float]
    trajectories: tuple[Trajectory, ...]


def play_panel(
    policy: Policy,
    collector: Collector,
    panel: Panel,
    *,
    temperature: float,
    iteration: int,
    sampler: Sampler = session_factory,
    ranks: Ranks = ALONE,
) -> PanelResult:
    """Plays every game of the panel once, divided among the processes of a run; all get the result.

    The draws of a game depend on the game alone, so two policies are compared on common random numbers.

    Raises:
        EnvFault: No game could be played to an end.
        PolicyFault: The sampler can't draw tokens from these weights.
    """
    plans = [EpisodePlan(game, episode_seed(game)) for game in panel.games]
    started = time.perf_counter()
    trajectories = ranks.divided(
        plans,
        lambda mine: collector.collect(mine, sampler(policy), temperature=temperature, policy_version=0),
    )
    if all(t.stop is StopReason.ENV_FAULT for t in trajectories):
        raise EnvFault(
            f"every game of the panel ended by a fault of its environment, the first one by this: "
            f"{trajectories[0].fault}; repair that first"
        )
    outcomes = tuple(
        GameOutcome(
            game_id=t.game_id,
            family=t.family,
            won=t.won,
            steps=len(t.transitions),
            task_score=min(1.0, max(0.0, t.task_score)),
        )
        for t in trajectories
    )
    metrics = episode_metrics(trajectories, "eval")
    for family in sorted({t.family for t in trajectories}):
        mine = [t for t in trajectories if t.family == family]
        metrics[f"eval/success_rate/{family}"] = sum(t.won for t in mine) / len(mine)
        metrics[f"eval/imagined_rate/{family}"] = imagined_rate(mine, policy.chat.decode)
    metrics["eval/imagined_rate"] = imagined_rate(trajectories, policy.chat.decode)
    metrics["eval/seconds"] = time.perf_counter() - started
    return PanelResult(Evaluation(iteration=iteration, outcomes=outcomes), metrics, tuple(trajectories))
