"""One iteration of experience: play, score, lay out as rows, and measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from envrl.policy.batch import RolloutBatch
from envrl.policy.chat import ChatMarkup
from envrl.policy.model import Policy
from envrl.policy.sampler import CachedSession
from envrl.prompts.settings import PromptSettings
from envrl.rollout.collate import make_batches
from envrl.rollout.collector import Collector, EpisodePlan, SessionFactory
from envrl.rollout.rows import (
    Pairing,
    TokenRow,
    inverse_dynamics_rows,
    policy_rows,
    shuffled_transcript_rows,
    state_prediction_rows,
)
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.seeding import derive_seed, generator
from envrl.types import Game, Group, Role, StopReason, Trajectory

AdvantageFn = Callable[[Sequence[float], Sequence[int], Sequence[int]], Sequence[float]]
"""(score, group, trajectory) of every policy row -> advantage of every policy row."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which auxiliary targets an iteration needs, to train on or to measure."""

    state_prediction: bool
    inverse_dynamics: bool


@dataclass(frozen=True)
class SourceSettings:
    """What an iteration consists of."""

    prompt: PromptSettings
    rollout: RolloutSettings
    auxiliary: AuxiliaryRows
    batch: BatchSettings
    temperature: float
    seed: int


@dataclass(frozen=True)
class Experience:
    """An iteration's micro-batches, its episodes, and what was measured while they were played."""

    batches: list[RolloutBatch]
    groups: tuple[Group, ...]
    metrics: dict[str, float]


class RolloutSource:
    """Collects iterations; everything random in iteration ``i`` depends on the seed and ``i`` alone.

    Args:
        policy: Sampled from, on its current weights.
        collector: The loop.
        games: Training games.
        settings: What an iteration consists of.
        advantages: Computes advantages (a loss function, handed in so that rollouts know no loss).
        pairing: Permutation of the shuffled-target control, handed in for the same reason.
        wanted: Which auxiliary targets an iteration needs.
    """

    def __init__(
        self,
        policy: Policy,
        collector: Collector,
        games: Sequence[Game],
        settings: SourceSettings,
        *,
        advantages: AdvantageFn,
        pairing: Pairing,
        wanted: Callable[[int], Wanted],
    ) -> None:
        self._policy = policy
        self._collector = collector
        self._games = tuple(games)
        self._settings = settings
        self._advantages = advantages
        self._pairing = pairing
        self._wanted = wanted

    def collect(self, iteration: int, policy_version: int) -> Experience:
        """Plays an iteration's episodes and makes its micro-batches."""
        groups, rollout_metrics = self._play(iteration, policy_version)
        rows = policy_rows(groups, self._chat, self._settings.rollout, self._settings.auxiliary)
        # Without rows (every environment failed) there is nothing to compare, only an empty update.
        advantages = (
            self._advantages([r.score for r in rows], [r.group for r in rows], [r.trajectory for r in rows])
            if rows
            else ()
        )
        rows = [replace(r, advantage=float(a)) for r, a in zip(rows, advantages, strict=True)]
        questions = self._questions(groups, self._wanted(iteration), iteration)
        batches = make_batches(
            rows,
            questions,
            self._settings.batch,
            self._chat.pad_id,
            iteration,
            generator(self._settings.seed, "iteration", iteration, "batches"),
        )
        return Experience(batches, groups, rollout_metrics | _row_metrics(rows))

    @property
    def _chat(self) -> ChatMarkup:
        return self._policy.chat

    def _play(self, iteration: int, version: int) -> tuple[tuple[Group, ...], dict[str, float]]:
        rollout, root = self._settings.rollout, self._settings.seed
        picker = generator(root, "iteration", iteration, "games")
        count = min(rollout.games, len(self._games))
        picked = [self._games[i] for i in picker.choice(len(self._games), size=count, replace=False).tolist()]
        plans = [
            EpisodePlan(game, derive_seed(root, "iteration", iteration, game.game_id, "episode", number))
            for game in picked
            for number in range(rollout.episodes_per_game)
        ]
        started = time.perf_counter()
        trajectories = self._collector.collect(
            plans,
            session_factory(self._policy),
            temperature=self._settings.temperature,
            policy_version=version,
        )
        seconds = time.perf_counter() - started
        size = rollout.episodes_per_game
        groups = tuple(
            Group(game, tuple(trajectories[n * size : (n + 1) * size])) for n, game in enumerate(picked)
        )
        return groups, episode_metrics(trajectories, "rollout") | _speed(trajectories, seconds)

    def _questions(self, groups: Sequence[Group], wanted: Wanted, iteration: int) -> list[TokenRow]:
        s = self._settings
        rows: list[TokenRow] = []
        if wanted.state_prediction:
            rng = generator(s.seed, "iteration", iteration, "state-prediction")
            if s.auxiliary.sp_rows == "questions":
                rows += state_prediction_rows(groups, self._chat, s.prompt, s.auxiliary, rng, self._pairing)
            elif s.auxiliary.shuffle_targets:
                rows += shuffled_transcript_rows(
                    groups, self._chat, s.rollout, s.auxiliary, rng, self._pairing
                )
        if wanted.inverse_dynamics:
            rng = generator(s.seed, "iteration", iteration, "inverse-dynamics")
            rows += inverse_dynamics_rows(groups, self._chat, s.prompt, s.auxiliary, rng, self._pairing)
        return rows


def session_factory(policy: Policy) -> SessionFactory:
    """Opens sampler sessions on the policy's weights as they are now."""
    model = policy.sampling_model()
    return lambda rows: CachedSession(model, rows, policy.chat.end_id)


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


def _speed(trajectories: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    written = sum(len(t.generation.token_ids) for tr in trajectories for t in tr.transitions)
    return {"rollout/seconds": seconds, "rollout/tokens_per_second": written / max(seconds, 1e-9)}


def _row_metrics(rows: Sequence[TokenRow]) -> dict[str, float]:
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
