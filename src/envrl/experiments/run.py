"""The composition root: the one place where environment, policy, rollouts, losses and tracking meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from envrl.analysis.records import RunRecord, record_path
from envrl.envs.panels import Panel
from envrl.envs.pool import EnvPool
from envrl.experiments.config import RunConfig
from envrl.experiments.credit import advantage_function
from envrl.experiments.games import environment_factory, game_sets
from envrl.experiments.plain import as_plain
from envrl.experiments.resume import (
    alone,
    covered_by,
    existing_record,
    forget_after,
    newest_checkpoint,
    put_aside,
    warn,
)
from envrl.experiments.runner import Parts, Runner, RunPlace
from envrl.losses.dynamics import shuffled_pairing
from envrl.policy.model import Policy, load_policy
from envrl.policy.served import ServedSampler
from envrl.policy.server import connect
from envrl.rollout.collector import Collector, CollectorSettings
from envrl.rollout.credit import CreditSource
from envrl.rollout.random_play import play_at_random
from envrl.rollout.source import RolloutSource, Sampler, SourceSettings, Wanted, session_factory
from envrl.seeding import derive_seed
from envrl.tracking.runs import find_run
from envrl.training.module import EnvRLModule
from envrl.training.progress import Progress

_PANEL_WAVE = 128
"""Most games of a panel that are played at once; more are played in several waves."""


def build_pool(config: RunConfig, panel: Panel, slots: int = 1) -> EnvPool:
    """Environments for at least ``slots`` episodes at once, and for a wave of the panel."""
    slots = max(slots, min(_PANEL_WAVE, len(panel.games)))
    return EnvPool(environment_factory(config.env), slots, config.rollout.env_timeout_s)


def build_collector(config: RunConfig, policy: Policy, pool: EnvPool) -> Collector:
    """The loop over the environments of a pool."""
    settings = CollectorSettings(config.worded, config.sampling, config.rollout.layout)
    return Collector(pool, policy.chat, settings)


def build_sampler(config: RunConfig) -> Sampler:
    """What draws tokens: this process, or the server in ``sampling.server``.

    Raises:
        PolicyFault: The server can't be reached, or does not serve this model.
    """
    if config.sampling.server.url is None:
        return session_factory
    return ServedSampler(connect(config.sampling, config.base_source), config.sampling.server)


@contextmanager
def closed_in_the_end(sampler: Sampler) -> Iterator[None]:
    """Leaves no adapter on a server, however the work ends."""
    try:
        yield
    finally:
        if isinstance(sampler, ServedSampler):
            sampler.close()


def build(config: RunConfig) -> Parts:
    """Loads and connects everything a run needs; fails before any work if something is missing."""
    sampler = build_sampler(config)
    games = game_sets(config.env, config.evaluation, config.rollout.games)
    torch.manual_seed(derive_seed(config.seed, "model"))
    policy = load_policy(config.embodied)
    pool = build_pool(config, games.panel, config.rollout.games * config.rollout.episodes_per_game)
    collector = build_collector(config, policy, pool)
    module = EnvRLModule(
        policy,
        config.bounded_loss,
        config.optim,
        iterations=config.train.iterations,
        micro_batches=config.batch.micro_batches,
        diagnose_every=config.train.diagnose_every,
    )
    critic = module.critic
    source = RolloutSource(
        policy,
        collector,
        games.training,
        SourceSettings(
            config.worded,
            config.bounded_rollout,
            config.auxiliary,
            config.batch,
            config.sampling.temperature,
            config.seed,
        ),
        credit=CreditSource(
            advantage_function(config.loss),
            None if critic is None else lambda rows: critic.values(policy, rows),
            config.batch.micro_batches,
        ),
        pairing=shuffled_pairing,
        wanted=lambda iteration: _wanted(config, module, iteration),
        explore=partial(play_at_random, pool),
        schedule=games.schedule,
        sampler=sampler,
    )
    return Parts(policy, pool, collector, games, module, source, sampler)


def _wanted(config: RunConfig, module: EnvRLModule, iteration: int) -> Wanted:
    """Auxiliary rows are made to be trained on, or every few iterations to be measured."""
    weights = module.weights(iteration)
    every = config.train.diagnose_every
    measured = every > 0 and iteration % every == 0
    # An objective that reads policy rows lengthens them, so at weight 0 it leaves them as they are.
    others = tuple(
        objective
        for objective in module.objectives
        if objective.name not in ("sp", "id")
        and (weights[objective.name] > 0 or (measured and not objective.reads_policy_rows))
    )
    return Wanted(weights["sp"] > 0 or measured, weights["id"] > 0 or measured, others)


def execute_run(
    config: RunConfig, place: RunPlace, report: Callable[[Progress], None] | None = None
) -> RunRecord:
    """Trains one run to its end, from its checkpoint if there is one; an ended run is left alone.

    Args:
        config: What to run.
        place: Where it stands.
        report: Told the progress after each iteration; also written to ``progress.json``. It ends the run
            with status "pruned" by raising :class:`~envrl.experiments.runner.GivenUp`.

    Raises:
        EnvrlError: Something is missing or broken, the folder holds a run of another configuration, or
            another process is at it; nothing was written in that case.
        KeyboardInterrupt: It was stopped; the same call goes on from the last checkpoint.
    """
    torch.set_num_threads(config.train.threads)
    path = record_path(place.study_folder, place.arm, config.seed)
    record = existing_record(path, config)
    if record is not None and record.status in ("finished", "pruned"):
        return record
    parts = build(config)
    with alone(path.parent), parts.pool, closed_in_the_end(parts.sampler):
        # Read once nobody else is at it: a process that was killed may have written until then.
        record = existing_record(path, config)
        if record is not None and record.status in ("finished", "pruned"):
            return record
        found = newest_checkpoint(path.parent)
        start, completed, note = (found.path, found.completed, found.note) if found else (None, None, None)
        del found  # with all its weights, which the trainer reads again
        if record is None:
            record = RunRecord(
                arm=place.arm,
                seed=config.seed,
                status="running",
                panel_hash=parts.games.panel.panel_hash,
                config=as_plain(config),
            )
            run_id = None
        else:
            record = covered_by(record, completed)
            # A run that was killed before its id was written down is found by its name.
            run_id = record.mlflow_run_id or find_run(
                place.store, place.experiment, place.run_name(config.seed), place.parent_id
            )
        forget_after(path.parent, completed)
        if note is not None:
            warn(f"{place.run_name(config.seed)}: {note}")
            record = record.model_copy(update={"notes": (*record.notes, note)})
            put_aside(path.parent)
        return Runner(config, place, parts, record, report).run(run_id, start)
