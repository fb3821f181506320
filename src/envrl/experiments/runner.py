"""One run under way: connects the trainer's events to the run's record, MLflow and progress display."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from torch import Tensor

from envrl.analysis.episodes import episode_of, write_episodes
from envrl.analysis.records import RunRecord, record_path, write_record, write_text_atomic
from envrl.envs.pool import Pool
from envrl.errors import DataFault
from envrl.experiments.config import RunConfig
from envrl.experiments.console import one_line
from envrl.experiments.datasets import datasets_of
from envrl.experiments.dynamics import DynamicsProbe, with_dynamics
from envrl.experiments.evaluation import PanelResult, play_panel
from envrl.experiments.full_disk import full_disk
from envrl.experiments.games import GameSets
from envrl.experiments.plain import as_plain
from envrl.experiments.resume import CHECKPOINT, read_checkpoint, without_processes
from envrl.experiments.strategy import strategy_of
from envrl.policy.model import Policy
from envrl.policy.ranks import ALONE, Ranks
from envrl.rollout.collector import Collector
from envrl.rollout.datamodule import RolloutDataModule
from envrl.rollout.source import Experience, RolloutSource, Sampler
from envrl.tracking.runs import (
    lightning_logger,
    log_artifact,
    log_config,
    log_datasets,
    log_environment,
    log_episodes,
    log_metrics,
    log_text,
    run_context,
    set_tag,
)
from envrl.tracking.store import Store
from envrl.tracking.traces import transcripts
from envrl.training.callbacks import (
    CheckpointCallback,
    CheckpointFiles,
    EvaluationCallback,
    ProgressCallback,
    RandomStateCallback,
)
from envrl.training.module import EnvRLModule
from envrl.training.progress import Progress
from envrl.types import Trajectory

ADAPTER = "adapter"
_CHATTY_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
_NOT_FOR_USERS = (
    r".*does not have many workers which may be a bottleneck",
    r".*`IterableDataset` has `__len__` defined",
    r".*`isinstance\(treespec, LeafSpec\)`",
    # What is logged at the end of an epoch was joined by the module.
    r".*when logging on epoch level in distributed setting",
)
"""Beginnings of Lightning's warnings about things that are as they should be."""


class GivenUp(Exception):
    """Raised by a report to end a run that is not worth going on with; it is pruned, not failed."""


@dataclass(frozen=True)
class RunPlace:
    """Where a run stands: in which study, on disk and in MLflow.

    Attributes:
        study_folder: Folder of the study.
        experiment: MLflow experiment.
        arm: Name of the arm.
        store: MLflow store.
        parent_id: MLflow run of the study; None for a run that stands alone.
        tags: More tags of the MLflow run.
    """

    study_folder: Path
    experiment: str
    arm: str
    store: Store
    parent_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def run_name(self, seed: int) -> str:
        """Name of the run with that seed in MLflow."""
        return f"{self.arm}/seed_{seed}"

    def folder(self, seed: int) -> Path:
        """Folder of the run with that seed."""
        return record_path(self.study_folder, self.arm, seed).parent


@dataclass(frozen=True)
class Parts:
    """What a run is put together from."""

    policy: Policy
    pool: Pool
    collector: Collector
    games: GameSets
    module: EnvRLModule
    source: RolloutSource
    sampler: Sampler
    ranks: Ranks = ALONE


class Runner:
    """Trains one run, from the beginning or from its checkpoint.

    Args:
        config: What to run.
        place: Where it stands.
        parts: What it is put together from.
        record: Its record so far, cut to what the checkpoint covers.
        report: Told the progress after each iteration.
    """

    def __init__(
        self,
        config: RunConfig,
        place: RunPlace,
        parts: Parts,
        record: RunRecord,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self._config = config
        self._place = place
        self._parts = parts
        self._record = record
        self._report = report
        self._folder = place.folder(config.seed)
        self._seconds_before = record.seconds
        self._started = time.perf_counter()
        self._run_id = ""
        asked = config.evaluation.dynamics > 0 and parts.ranks.writes
        self._probe = DynamicsProbe(config, parts.games.panel, parts.pool, parts.policy) if asked else None

    def run(self, run_id: str | None, checkpoint: Path | None) -> RunRecord:
        """Does the work.

        Args:
            run_id: MLflow run to continue; None makes a new one.
            checkpoint: State to continue from; None begins at the beginning.

        Raises:
            KeyboardInterrupt: It was stopped; record and checkpoint are there to go on from.
        """
        self._update()
        ranks = self._parts.ranks
        tags = {
            "env": self._config.env.name,
            "algorithm": self._config.loss.algorithm,
            "arm": self._place.arm,
            "seed": str(self._config.seed),
            "panel": self._parts.games.panel.panel_hash,
            **({"processes": str(ranks.world)} if ranks.world > 1 else {}),
            **self._place.tags,
        }
        place, name = self._place, self._place.run_name(self._config.seed)
        context = run_context(
            place.store, place.experiment, name, place.parent_id, tags, run_id, self._folder
        )
        try:
            with context as self._run_id:
                self._update(mlflow_run_id=self._run_id)
                self._log_beginnings()
                status, reason = "finished", None
                try:
                    with _lightning_without_notes():
                        self._fit(checkpoint)
                    self._log_endings()
                except GivenUp as given_up:
                    status, reason = "pruned", str(given_up)
                    set_tag(place.store, self._run_id, "pruned", "true")
        except Exception as error:
            full = full_disk(error, self._folder)
            # Where nothing can be written the record stays as it was, and the run can go on from it.
            with suppress(DataFault) if full is not None else nullcontext():
                told = full or error
                self._update(status="failed", error=f"{type(told).__name__}: {one_line(told)}")
            if full is not None:
                raise full from error
            raise
        self._update(status=status, error=reason)
        return self._record

    def help(self, checkpoint: Path | None) -> RunRecord:
        """Does the work of a process that writes nothing, beside rank 0 in :meth:`run`."""
        with _lightning_without_notes():
            self._fit(checkpoint)
        return self._record

    def _fit(self, checkpoint: Path | None) -> None:
        config, ranks = self._config, self._parts.ranks
        datamodule = RolloutDataModule(
            self._parts.source, config.batch, lambda: self._parts.module.updates_done, self._collected, ranks
        )
        evaluation = EvaluationCallback(self._evaluate, config.evaluation.every)
        progress = ProgressCallback(self._progress, self._training_success, evaluation)
        saver = CheckpointCallback(self._folder / CHECKPOINT, config.train.checkpoint_every)
        trainer = L.Trainer(
            max_epochs=config.train.iterations,
            accelerator=config.train.accelerator,
            devices=config.train.devices,
            num_nodes=config.train.nodes,
            strategy=strategy_of(ranks),
            use_distributed_sampler=False,
            precision=config.train.precision,
            accumulate_grad_batches=config.batch.micro_batches // ranks.world,
            gradient_clip_val=config.optim.gradient_clip or None,
            reload_dataloaders_every_n_epochs=1,
            logger=lightning_logger(self._place.store, self._run_id) if ranks.writes else False,
            log_every_n_steps=1,
            callbacks=[evaluation, progress, RandomStateCallback(ranks), saver],
            plugins=[CheckpointFiles()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=self._folder,
        )
        try:
            trainer.fit(
                self._parts.module,
                datamodule=datamodule,
                ckpt_path=str(checkpoint) if checkpoint is not None else None,
                weights_only=True,
            )
        except SystemExit:
            # What Lightning makes of Ctrl-C and of SIGTERM.
            raise KeyboardInterrupt from None

    def _collected(self, iteration: int, experience: Experience) -> None:
        if not self._parts.ranks.writes:
            return
        log_metrics(self._place.store, self._run_id, experience.metrics, iteration)
        success = experience.metrics["rollout/success_rate"]
        self._update(training_success=(*self._record.training_success[:iteration], success))

    def _training_success(self) -> float | None:
        return self._record.training_success[-1] if self._record.training_success else None

    def _evaluate(self, iteration: int) -> float:
        parts, config = self._parts, self._config
        with parts.policy.whole():
            result = play_panel(
                parts.policy,
                parts.collector,
                parts.games.panel,
                temperature=config.sampling.eval_temperature,
                iteration=iteration,
                sampler=parts.sampler,
                ranks=parts.ranks,
            )
        # Anew, because questions are not answered through merged adapters.
        with parts.policy.whole():
            parts.ranks.first(lambda: self._keep(result, iteration))
        return result.evaluation.success_rate

    def _keep(self, result: PanelResult, iteration: int) -> None:
        """Asks what the policy knows, and writes down the evaluation."""
        parts = self._parts
        known = {} if self._probe is None else self._probe.measure(parts.policy)
        log_metrics(self._place.store, self._run_id, result.metrics | known, iteration)
        earlier = [e for e in self._record.evaluations if e.iteration < iteration]
        self._update(evaluations=(*earlier, with_dynamics(result.evaluation, known)))
        self._log_transcripts(result, iteration)
        self._keep_episodes(result, iteration)

    def _log_transcripts(self, result: PanelResult, iteration: int) -> None:
        sample = _spread(result.trajectories, self._config.train.transcripts)
        if sample:
            # Where answers hold more than the action, what was written is shown beside what was done.
            decode = self._parts.policy.chat.decode if self._config.prompt.form == "reasoned" else None
            text = transcripts(sample, f"After {iteration} iterations", decode)
            log_text(self._place.store, self._run_id, text, f"transcripts/iteration_{iteration:04d}.md")
            log_episodes(
                self._place.store,
                self._run_id,
                sample,
                self._parts.policy.chat.decode_all,
                arm=self._place.arm,
                seed=self._config.seed,
                iteration=iteration,
            )

    def _keep_episodes(self, result: PanelResult, iteration: int) -> None:
        sample = _spread(result.trajectories, self._config.evaluation.episodes)
        if sample:
            decode, arm, seed = self._parts.policy.chat.decode_all, self._place.arm, self._config.seed
            told = (episode_of(t, decode, arm=arm, seed=seed, iteration=iteration) for t in sample)
            write_episodes(self._folder, iteration, told)

    def _progress(self, progress: Progress) -> None:
        self._parts.ranks.first(lambda: self._tell(progress))

    def _tell(self, progress: Progress) -> None:
        write_text_atomic(self._folder / "progress.json", json.dumps(asdict(progress)) + "\n")
        if self._report is not None:
            self._report(progress)

    def _log_beginnings(self) -> None:
        store, plain = self._place.store, as_plain(self._config)
        # A parameter of a run can't change, but the number of processes may when it goes on (a tag).
        log_config(store, self._run_id, without_processes(plain))
        log_environment(store, self._run_id)
        write_text_atomic(self._folder / "config.yaml", yaml.safe_dump(plain, sort_keys=False))
        panel = self._folder / "panel.json"
        self._parts.games.panel.save(panel)
        log_artifact(store, self._run_id, panel)
        log_datasets(store, self._run_id, *datasets_of(self._parts.games))
        if self._record.notes:
            set_tag(store, self._run_id, "notes", "; ".join(self._record.notes))

    def _log_endings(self) -> None:
        adapter = self._folder / ADAPTER
        self._parts.policy.save_adapter(adapter, self._whole_weights())
        log_artifact(self._place.store, self._run_id, adapter, ADAPTER)
        log_artifact(self._place.store, self._run_id, self._folder / CHECKPOINT, "checkpoints")

    def _whole_weights(self) -> dict[str, Tensor] | None:
        """Trained weights out of the last checkpoint, where this process holds pieces of them alone."""
        if self._parts.policy.pieces is None:
            return None
        state, prefix = read_checkpoint(self._folder / CHECKPOINT)["state_dict"], "policy.model."
        return {name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}

    def _update(self, **changes: Any) -> None:
        seconds = self._seconds_before + time.perf_counter() - self._started
        self._record = self._record.model_copy(update={**changes, "seconds": seconds})
        write_record(self._place.study_folder, self._record)


def _spread(trajectories: Sequence[Trajectory], count: int) -> Sequence[Trajectory]:
    """At most ``count`` of them, evenly spread."""
    count = min(count, len(trajectories))
    return [trajectories[number * len(trajectories) // count] for number in range(count)]


@contextmanager
def _lightning_without_notes() -> Iterator[None]:
    """Leaves out what Lightning says of hardware it found and of a loader that has no workers on purpose."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _NOT_FOR_USERS:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
