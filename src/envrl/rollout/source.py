"""One iteration of experience: play, score, lay out as rows, and measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envrl.errors import ConfigFault
from envrl.policy.batch import RolloutBatch
from envrl.policy.chat import ChatMarkup
from envrl.policy.model import Policy
from envrl.policy.ranks import ALONE, Ranks
from envrl.policy.sampler import CachedSession
from envrl.prompts.settings import PromptSettings
from envrl.rollout.choice import TrainingGames, picked
from envrl.rollout.collate import by_content, by_length, make_batches
from envrl.rollout.collector import Collector, EpisodePlan, SessionFactory
from envrl.rollout.controls import Pairing, control_transcript_rows
from envrl.rollout.credit import CreditSource
from envrl.rollout.measures import (
    all_episodes,
    episode_metrics,
    is_flat,
    outcome_of,
    overlong_share,
    row_metrics,
    speed,
)
from envrl.rollout.objectives import RowObjective, lived_transitions, marked_rows
from envrl.rollout.questions import inverse_dynamics_rows, objective_rows, state_prediction_rows
from envrl.rollout.random_play import Explorer
from envrl.rollout.rows import TokenRow, policy_rows
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.seeding import derive_seed, generator
from envrl.types import Game, Group

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
class Learning:
    """What rollouts are handed of the losses, which they do not know.

    Attributes:
        credit: Computes advantages.
        pairing: Permutation of the shuffled-target control.
        wanted: Which auxiliary targets an iteration needs.
        skip_idle: Leave rows that add nothing to the policy's loss out of updates, because no term needs
            them.
    """

    credit: CreditSource
    pairing: Pairing
    wanted: Callable[[int], Wanted]
    skip_idle: bool = False


@dataclass(frozen=True)
class SourceSettings:
    """What an iteration consists of."""

    prompt: PromptSettings
    rollout: RolloutSettings
    auxiliary: AuxiliaryRows
    batch: BatchSettings
    temperature: float
    seed: int
    max_context: int | None = None
    """Most tokens of a row; None: as many as it takes."""


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
        learning: What the losses need of them.
        explore: Plays at random, where ``auxiliary.data`` asks for that.
        sampler: Draws the tokens; by default in this process (:func:`session_factory`).
        ranks: Processes that the games are divided among; every one of them gets all episodes.
    """

    def __init__(
        self,
        policy: Policy,
        collector: Collector,
        games: TrainingGames,
        settings: SourceSettings,
        learning: Learning,
        *,
        explore: Explorer | None = None,
        sampler: Sampler | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._policy = policy
        self._collector = collector
        self._games = games
        self._settings = settings
        self._learning = learning
        self._explore = explore
        self._sampler = sampler or session_factory
        self._ranks = ranks

    def collect(self, iteration: int, policy_version: int) -> Experience:
        """Plays an iteration's episodes and makes its micro-batches."""
        # A critic's passes come later: they are the same on all processes.
        with self._policy.whole():
            played = self._play(iteration, policy_version)
        groups, rollout = played.groups, self._settings.rollout
        wanted, auxiliary = self._learning.wanted(iteration), self._settings.auxiliary
        readers = [objective for objective in wanted.others if objective.reads_policy_rows]
        most = self._settings.max_context
        laid_out = policy_rows(groups, self._chat, rollout, auxiliary, observe=bool(readers), max_tokens=most)
        rows, credit_metrics = self._learning.credit(laid_out, self._chat.pad_id)
        for objective in readers:
            rows = marked_rows(rows, objective, lived_transitions(groups, auxiliary))
        questions = self._questions(self._asked_about(groups, iteration, policy_version), wanted, iteration)
        outcome = outcome_of(groups, self._chat)
        batches = make_batches(
            rows,
            questions,
            self._settings.batch,
            self._chat.pad_id,
            iteration,
            generator(self._settings.seed, "iteration", iteration, "batches"),
            objectives=wanted.others,
            outcome=outcome,
            skip_idle=self._learning.skip_idle,
            sort_by=by_content if self._policy.packs else by_length,
        )
        metrics = played.metrics | row_metrics(rows) | credit_metrics
        metrics["rollout/imagined_rate"] = outcome.imagined
        idle = sum(row.idle for row in rows) if self._learning.skip_idle else 0
        metrics["rollout/left_out_share"] = idle / max(1, len(rows))
        if rollout.mask_overlong:
            metrics["rollout/overlong_share"] = overlong_share(groups)
        return Experience(batches, groups, metrics, played.episodes)

    @property
    def _chat(self) -> ChatMarkup:
        return self._policy.chat

    def _play(self, iteration: int, version: int) -> _Played:
        """Plays the iteration's games, and others instead of those that nothing can be learnt from."""
        rollout, root = self._settings.rollout, self._settings.seed
        started = time.perf_counter()
        groups = self._play_games(self._games.of(iteration, rollout.games, root), iteration, version)
        # Measured on these alone: games that are played instead of others are no fair sample.
        metrics = episode_metrics(all_episodes(groups), "rollout")
        played = list(groups)
        for number in range(rollout.refill_rounds):
            known = {group.game.game_id for group in played}
            left = [game for game in self._games.games if game.game_id not in known]
            places = [n for n, group in enumerate(groups) if is_flat(group)][: len(left)]
            if not places:
                break
            picker = generator(root, "iteration", iteration, "refill", number)
            fresh = self._play_games(picked(picker, left, len(places)), iteration, version)
            for place, group in zip(places, fresh, strict=True):
                groups[place] = group
            played += fresh
        everything = all_episodes(played)
        metrics |= speed(everything, time.perf_counter() - started)
        if rollout.refill_rounds > 0:
            metrics["rollout/refilled_groups"] = float(len(played) - len(groups))
        return _Played(tuple(groups), metrics, len(everything))

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
        s, pairing = self._settings, self._learning.pairing
        rows: list[TokenRow] = []
        if wanted.state_prediction:
            rng = generator(s.seed, "iteration", iteration, "state-prediction")
            if s.auxiliary.sp_rows == "questions":
                rows += state_prediction_rows(groups, self._chat, s.prompt, s.auxiliary, rng, pairing)
            elif s.auxiliary.altered:
                rows += control_transcript_rows(
                    groups, self._chat, s.rollout, s.auxiliary, rng, pairing, s.max_context
                )
        if wanted.inverse_dynamics:
            rng = generator(s.seed, "iteration", iteration, "inverse-dynamics")
            rows += inverse_dynamics_rows(groups, self._chat, s.prompt, s.auxiliary, rng, pairing)
        for objective in wanted.others:
            rng = generator(s.seed, "iteration", iteration, "objective", objective.name)
            rows += objective_rows(groups, self._chat, s.prompt, s.auxiliary, rng, objective)
        return rows


def session_factory(policy: Policy) -> SessionFactory:
    """Opens sampler sessions on the policy's weights as they are now."""
    model = policy.sampling_model()
    return lambda rows: CachedSession(model, rows, policy.chat.end_id)
