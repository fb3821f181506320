"""One iteration of experience: play, score, lay out as rows, and measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from envrl.errors import ConfigFault
from envrl.policy.batch import Outcome, RolloutBatch
from envrl.policy.chat import ChatMarkup
from envrl.policy.model import Policy
from envrl.policy.ranks import ALONE, Ranks
from envrl.policy.sampler import CachedSession
from envrl.prompts.settings import PromptSettings
from envrl.rollout.collate import make_batches
from envrl.rollout.collector import Collector, EpisodePlan, SessionFactory
from envrl.rollout.controls import Pairing, control_transcript_rows
from envrl.rollout.credit import CreditSource
from envrl.rollout.imagined import imagined_rate
from envrl.rollout.objectives import RowObjective, lived_transitions, marked_rows
from envrl.rollout.questions import inverse_dynamics_rows, objective_rows, state_prediction_rows
from envrl.rollout.random_play import Explorer
from envrl.rollout.rows import TokenRow, policy_rows
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.seeding import derive_seed, generator
from envrl.types import Finish, Game, Group, Role, StopReason, Trajectory

GameSchedule = Callable[[int, int], Sequence[Game]]
"""From an iteration's number and how many games it needs to these games."""

Sampler = Callable[[Policy], SessionFactory]
"""Gives what opens sampler sessions on the policy's weights as they are when it is called."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which auxiliary targets an iteration needs, to train on or to measure."""

    state_prediction: bool
    inverse_dynamics: bool
    others: tuple[RowObjective, ...] = ()
    """Objectives beside the paper's two."""


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
    """What an iteration has brought.

    Attributes:
        batches: Its micro-batches.
        groups: The episodes they are made from.
        metrics: What was measured meanwhile.
        episodes: Episodes played, those of replaced groups included.
    """

    batches: list[RolloutBatch]
    groups: tuple[Group, ...]
    metrics: dict[str, float]
    episodes: int


@dataclass(frozen=True)
class _Played:
    """Groups to learn from, and what was measured while they and replaced ones were played."""

    groups: tuple[Group, ...]
    metrics: dict[str, float]
    episodes: int


class RolloutSource:
    """Collects iterations; everything random in iteration ``i`` depends on the seed and ``i`` alone.

    Args:
        policy: Sampled from, on its current weights.
        collector: The loop.
        games: Training games.
        settings: What an iteration consists of.
        credit: Computes advantages (from loss functions, handed in so that rollouts know no loss).
        pairing: Permutation of the shuffled-target control, handed in for the same reason.
        wanted: Which auxiliary targets an iteration needs.
        explore: Plays at random, where ``auxiliary.data`` asks for that.
        schedule: Names an iteration's games, where a published order is followed instead of a draw.
        sampler: Draws the tokens; by default in this process (:func:`session_factory`).
        ranks: Processes that the games are divided among; every one of them gets all episodes.
        skip_idle: Leave rows that add nothing to the policy's loss out of updates, because no term needs
            them.
    """

    def __init__(
        self,
        policy: Policy,
        collector: Collector,
        games: Sequence[Game],
        settings: SourceSettings,
        *,
        credit: CreditSource,
        pairing: Pairing,
        wanted: Callable[[int], Wanted],
        explore: Explorer | None = None,
        schedule: GameSchedule | None = None,
        sampler: Sampler | None = None,
        ranks: Ranks = ALONE,
        skip_idle: bool = False,
    ) -> None:
        self._policy = policy
        self._collector = collector
        self._games = tuple(games)
        self._settings = settings
        self._credit = credit
        self._pairing = pairing
        self._wanted = wanted
        self._explore = explore
        self._schedule = schedule
        self._sampler = sampler or session_factory
        self._ranks = ranks
        self._skip_idle = skip_idle

    def collect(self, iteration: int, policy_version: int) -> Experience:
        """Plays an iteration's episodes and makes its micro-batches."""
        # A critic's passes come later: they are the same on all processes.
        with self._policy.whole():
            played = self._play(iteration, policy_version)
        groups, rollout = played.groups, self._settings.rollout
        wanted, auxiliary = self._wanted(iteration), self._settings.auxiliary
        readers = [objective for objective in wanted.others if objective.reads_policy_rows]
        laid_out = policy_rows(groups, self._chat, rollout, auxiliary, observe=bool(readers))
        rows, credit_metrics = self._credit(laid_out, self._chat.pad_id)
        for objective in readers:
            rows = marked_rows(rows, objective, lived_transitions(groups, auxiliary))
        questions = self._questions(self._asked_about(groups, iteration, policy_version), wanted, iteration)
        outcome = _outcome(groups, self._chat)
        batches = make_batches(
            rows,
            questions,
            self._settings.batch,
            self._chat.pad_id,
            iteration,
            generator(self._settings.seed, "iteration", iteration, "batches"),
            objectives=wanted.others,
            outcome=outcome,
            skip_idle=self._skip_idle,
        )
        metrics = played.metrics | _row_metrics(rows) | credit_metrics
        metrics["rollout/imagined_rate"] = outcome.imagined
        idle = sum(row.idle for row in rows) if self._skip_idle else 0
        metrics["rollout/left_out_share"] = idle / max(1, len(rows))
        if rollout.mask_overlong:
            metrics["rollout/overlong_share"] = _overlong_share(groups)
        return Experience(batches, groups, metrics, played.episodes)

    @property
    def _chat(self) -> ChatMarkup:
        return self._policy.chat

    def _play(self, iteration: int, version: int) -> _Played:
        """Plays the iteration's games, and others instead of those that nothing can be learnt from."""
        rollout, root = self._settings.rollout, self._settings.seed
        started = time.perf_counter()
        groups = self._play_games(self._games_of(iteration), iteration, version)
        # Measured on these alone: games that are played instead of others are no fair sample.
        metrics = episode_metrics(_trajectories(groups), "rollout")
        played = list(groups)
        for number in range(rollout.refill_rounds):
            known = {group.game.game_id for group in played}
            left = [game for game in self._games if game.game_id not in known]
            places = [n for n, group in enumerate(groups) if is_flat(group)][: len(left)]
            if not places:
                break
            picker = generator(root, "iteration", iteration, "refill", number)
            fresh = self._play_games(_pick(picker, left, len(places)), iteration, version)
            for place, group in zip(places, fresh, strict=True):
                groups[place] = group
            played += fresh
        everything = _trajectories(played)
        metrics |= _speed(everything, time.perf_counter() - started)
        if rollout.refill_rounds > 0:
            metrics["rollout/refilled_groups"] = float(len(played) - len(groups))
        return _Played(tuple(groups), metrics, len(everything))

    def _games_of(self, iteration: int) -> Sequence[Game]:
        count = self._settings.rollout.games
        if self._schedule is not None:
            return self._schedule(iteration, count)
        picker = generator(self._settings.seed, "iteration", iteration, "games")
        return _pick(picker, self._games, min(count, len(self._games)))

    def _play_games(self, games: Sequence[Game], iteration: int, version: int) -> list[Group]:
        """A group of episodes of each game; a group is never divided."""
        return self._ranks.divided(games, lambda mine: self._play_here(mine, iteration, version))

    def _play_here(self, games: Sequence[Game], iteration: int, version: int) -> list[Group]:
        """The groups that this process plays."""
        root, size = self._settings.seed, self._settings.rollout.episodes_per_game
        plans = [
            EpisodePlan(game, derive_seed(root, "iteration", iteration, game.game_id, "episode", number))
            for game in games
            for number in range(size)
        ]
        trajectories = self._collector.collect(
            plans,
            self._sampler(self._policy),
            temperature=self._settings.temperature,
            policy_version=version,
        )
        return [Group(game, tuple(trajectories[n * size : (n + 1) * size])) for n, game in enumerate(games)]

    def _asked_about(self, groups: Sequence[Group], iteration: int, version: int) -> Sequence[Group]:
        """Episodes that questions are about: those played, or as many of random actions in the same games."""
        if self._settings.auxiliary.data == "own":
            return groups
        if self._explore is None:
            raise ConfigFault("auxiliary.data is random, but nothing plays at random; hand in `explore`")
        root = self._settings.seed
        plans = [
            EpisodePlan(g.game, derive_seed(root, "iteration", iteration, g.game.game_id, "random", number))
            for g in groups
            for number in range(len(g.trajectories))
        ]
        explore = self._explore
        played = iter(self._ranks.divided(plans, lambda mine: explore(mine, version)))
        return [Group(g.game, tuple(next(played) for _ in g.trajectories)) for g in groups]

    def _questions(self, groups: Sequence[Group], wanted: Wanted, iteration: int) -> list[TokenRow]:
        s = self._settings
        rows: list[TokenRow] = []
        if wanted.state_prediction:
            rng = generator(s.seed, "iteration", iteration, "state-prediction")
            if s.auxiliary.sp_rows == "questions":
                rows += state_prediction_rows(groups, self._chat, s.prompt, s.auxiliary, rng, self._pairing)
            elif s.auxiliary.altered:
                rows += control_transcript_rows(
                    groups, self._chat, s.rollout, s.auxiliary, rng, self._pairing
                )
        if wanted.inverse_dynamics:
            rng = generator(s.seed, "iteration", iteration, "inverse-dynamics")
            rows += inverse_dynamics_rows(groups, self._chat, s.prompt, s.auxiliary, rng, self._pairing)
        for objective in wanted.others:
            rng = generator(s.seed, "iteration", iteration, "objective", objective.name)
            rows += objective_rows(groups, self._chat, s.prompt, s.auxiliary, rng, objective)
        return rows


def session_factory(policy: Policy) -> SessionFactory:
    """Opens sampler sessions on the policy's weights as they are now."""
    model = policy.sampling_model()
    return lambda rows: CachedSession(model, rows, policy.chat.end_id)


def _pick(picker: np.random.Generator, games: Sequence[Game], count: int) -> list[Game]:
    """Different ones of the games."""
    return [games[i] for i in picker.choice(len(games), size=count, replace=False).tolist()]


def _trajectories(groups: Sequence[Group]) -> list[Trajectory]:
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


def _speed(trajectories: Sequence[Trajectory], seconds: float) -> dict[str, float]:
    written = sum(len(t.generation.token_ids) for tr in trajectories for t in tr.transitions)
    return {"rollout/seconds": seconds, "rollout/tokens_per_second": written / max(seconds, 1e-9)}


def _overlong_share(groups: Sequence[Group]) -> float:
    """Share of answers that were cut off."""
    answers = [t.generation.finish for g in groups for tr in g.trajectories for t in tr.transitions]
    return sum(finish is Finish.LENGTH for finish in answers) / max(1, len(answers))


def _outcome(groups: Sequence[Group], chat: ChatMarkup) -> Outcome:
    """What the episodes that are learnt from came to."""
    episodes = _trajectories(groups)
    success = sum(t.won for t in episodes) / max(1, len(episodes))
    return Outcome(success, imagined_rate(episodes, chat.decode))


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
