"""One run under way: connects the trainer's events to the run's record, MLflow and progress display."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from torch import Tensor

from envrl.analysis.records import RunRecord, write_record, write_text_atomic
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
from envrl.experiments.quiet import lightning_without_notes
from envrl.experiments.resume import CHECKPOINT, read_checkpoint, without_processes
from envrl.experiments.run_place import RunPlace
from envrl.experiments.shown import Shown
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
    log_metrics,
    run_context,
    set_tag,
)
from envrl.training.callbacks import (
    CheckpointCallback,
    CheckpointFiles,
    EvaluationCallback,
    ProgressCallback,
    RandomStateCallback,
)
from envrl.training.module import EnvRLModule
from envrl.training.progress import Progress

ADAPTER = "adapter"


class GivenUp(Exception):
    """Raised by a report to end a run that is not worth going on with; it is pruned, not failed."""


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
                    with lightning_without_notes():
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
        with lightning_without_notes():
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
        shown = Shown(self._config, self._place.arm, parts.policy.chat, iteration)
        shown.log(self._place.store, self._run_id, result.trajectories)
        shown.keep(self._folder, result.trajectories)

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
