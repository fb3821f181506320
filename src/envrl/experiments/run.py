"""The composition root: the one place where environment, policy, rollouts, losses and tracking meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from envrl.analysis.records import RunRecord, record_path
from envrl.envs.panels import Panel
from envrl.envs.pool import EnvPool, Pool
from envrl.envs.ray_pool import RayPool
from envrl.errors import DataFault
from envrl.experiments.config import RunConfig
from envrl.experiments.credit import advantage_function
from envrl.experiments.games import GameSets, environment_factory, game_sets
from envrl.experiments.idle_rows import leaves_out_idle_rows
from envrl.experiments.plain import as_plain
from envrl.experiments.processes import processes
from envrl.experiments.resume import (
    alone,
    covered_by,
    existing_record,
    forget_after,
    newest_checkpoint,
    put_aside,
    warn,
)
from envrl.experiments.run_place import RunPlace
from envrl.experiments.runner import Parts, Runner
from envrl.losses.dynamics import shuffled_pairing
from envrl.policy.model import Policy, load_policy
from envrl.policy.ranks import ALONE, Ranks
from envrl.policy.served import ServedSampler
from envrl.policy.server import connect
from envrl.rollout.choice import TrainingGames
from envrl.rollout.collector import Collector, CollectorSettings
from envrl.rollout.credit import CreditSource
from envrl.rollout.random_play import play_at_random
from envrl.rollout.source import Learning, RolloutSource, Sampler, SourceSettings, Wanted, session_factory
from envrl.seeding import derive_seed
from envrl.tracking.runs import find_run
from envrl.training.module import EnvRLModule
from envrl.training.progress import Progress

_DIVIDED: Mapping[str, Literal["state", "layers"]] = {"zero": "state", "fsdp": "layers"}
"""What strategies divide among the processes."""

_PANEL_AT_ONCE = 128
"""Most games of a panel that are played at once; the others begin as these end."""


def build_pool(config: RunConfig, panel: Panel, slots: int = 1, ranks: Ranks = ALONE) -> Pool:
    """Environments for ``slots`` episodes and this process's panel games at once, as far as is wanted."""
    slots = max(slots, min(_PANEL_AT_ONCE, -(-len(panel.games) // ranks.world)))
    slots = min(slots, config.rollout.at_once or slots)
    kind = RayPool if config.rollout.pool == "ray" else EnvPool
    return kind(environment_factory(config.env), slots, config.rollout.env_timeout_s)


def build_collector(config: RunConfig, policy: Policy, pool: Pool) -> Collector:
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


def build(config: RunConfig, ranks: Ranks = ALONE) -> Parts:
    """Loads and connects everything a run needs; fails before any work if something is missing."""
    ranks = replace(ranks, divides=_DIVIDED.get(config.train.strategy, "nothing"))
    sampler = build_sampler(config)
    games = _games(config, ranks)
    torch.manual_seed(derive_seed(config.seed, "model"))
    policy = load_policy(config.embodied, to_divide=ranks.divides == "layers")
    groups = -(-config.rollout.games // ranks.world)
    pool = build_pool(config, games.panel, groups * config.rollout.episodes_per_game, ranks)
    collector = build_collector(config, policy, pool)
    module = EnvRLModule(
        policy,
        config.bounded_loss,
        config.optim,
        iterations=config.train.iterations,
        micro_batches=config.batch.micro_batches,
        diagnose_every=config.train.diagnose_every,
        ranks=ranks,
    )
    if not ranks.writes:
        # Weights begin alike on all processes; from here on each has masks of its own (dropout).
        torch.manual_seed(derive_seed(config.seed, "process", ranks.rank))
    settings = SourceSettings(
        config.worded,
        config.bounded_rollout,
        config.auxiliary,
        config.batch,
        config.sampling.temperature,
        config.seed,
        config.sampling.max_context,
    )
    source = RolloutSource(
        policy,
        collector,
        TrainingGames(games.training, games.schedule),
        settings,
        _learning(config, policy, module),
        explore=partial(play_at_random, pool),
        sampler=sampler,
        ranks=ranks,
    )
    return Parts(policy, pool, collector, games, module, source, sampler, ranks)


def _games(config: RunConfig, ranks: Ranks) -> GameSets:
    """The run's games, the same on all processes."""
    # Games that are not there yet are made by one process and found by the others.
    made = ranks.first(
        lambda: game_sets(config.env, config.evaluation, config.rollout.games).panel.panel_hash
    )
    games = game_sets(config.env, config.evaluation, config.rollout.games)
    if games.panel.panel_hash != made:
        raise DataFault(
            f"process {ranks.rank} has the panel {games.panel.panel_hash}, process 0 has {made}; the "
            "processes of a run need the same files of games"
        )
    return games


def _learning(config: RunConfig, policy: Policy, module: EnvRLModule) -> Learning:
    """What the losses of the run need of its rollouts."""
    critic = module.critic
    return Learning(
        CreditSource(
            advantage_function(config.loss),
            None if critic is None else lambda rows: critic.values(policy, rows),
            config.batch.micro_batches,
        ),
        shuffled_pairing,
        lambda iteration: _wanted(config, module, iteration),
        leaves_out_idle_rows(config.loss, config.auxiliary, config.batch),
    )


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
    record = existing_record(record_path(place.study_folder, place.arm, config.seed), config)
    if record is not None and record.status in ("finished", "pruned"):
        return record
    with processes(config, place) as ranks:
        return run_as(ranks, config, place, report)


def run_as(
    ranks: Ranks,
    config: RunConfig,
    place: RunPlace,
    report: Callable[[Progress], None] | None = None,
) -> RunRecord:
    """This process's part in :func:`execute_run`; all processes of the run call it.

    Returns:
        The run's record; rank 0 has written it.
    """
    torch.set_num_threads(config.train.threads)
    if ranks.world > 1 and config.train.accelerator != "cpu" and torch.cuda.is_available():
        # Before anything is loaded: quantised weights go to the device that is current.
        torch.cuda.set_device(ranks.local_rank)
    path = record_path(place.study_folder, place.arm, config.seed)
    parts = build(config, ranks)
    lock = alone(path.parent) if ranks.writes else nullcontext()
    with lock, parts.pool, closed_in_the_end(parts.sampler):
        # Read once nobody else is at it: a process that was killed may have written until then. It is seen
        # by one process, so that all go on from the same.
        record, start, completed, note = ranks.first(lambda: _left_behind(path, config))
        if record is not None and record.status in ("finished", "pruned"):
            return record
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
            run_id = record.mlflow_run_id
            if run_id is None and ranks.writes:
                name = place.run_name(config.seed)
                run_id = find_run(place.store, place.experiment, name, place.parent_id)
        if ranks.writes:
            forget_after(path.parent, completed)
            if note is not None:
                warn(f"{place.run_name(config.seed)}: {note}")
                record = record.model_copy(update={"notes": (*record.notes, note)})
                put_aside(path.parent)
        runner = Runner(config, place, parts, record, report)
        return runner.run(run_id, start) if ranks.writes else runner.help(start)


def _left_behind(
    path: Path, config: RunConfig
) -> tuple[RunRecord | None, Path | None, int | None, str | None]:
    """A run's record, the checkpoint to go on from, its iterations, and what is to be said of it."""
    record = existing_record(path, config)
    found = newest_checkpoint(path.parent)
    if found is not None and record is None:
        raise DataFault(
            f"{path.parent} holds a checkpoint and no {path.name}, which says of what run it is; put that "
            "file back, or remove the folder to run it anew"
        )
    return (record, found.path, found.completed, found.note) if found else (record, None, None, None)
