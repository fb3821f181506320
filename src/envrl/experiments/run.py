"""The composition root: the one place where environment, policy, rollouts, losses and tracking meet."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from envrl.analysis.records import RunRecord, load_record, record_path, write_record, write_text_atomic
from envrl.envs.pool import EnvPool
from envrl.errors import ConfigFault
from envrl.experiments.config import RunConfig, as_plain
from envrl.experiments.evaluation import PanelResult, play_panel
from envrl.experiments.games import GameSets, environment_factory, game_sets
from envrl.losses.advantages import grpo_advantages
from envrl.losses.dynamics import shuffled_pairing
from envrl.policy.model import Policy, load_policy
from envrl.rollout.collector import Collector, CollectorSettings
from envrl.rollout.datamodule import RolloutDataModule
from envrl.rollout.source import Experience, RolloutSource, SourceSettings, Wanted
from envrl.seeding import derive_seed
from envrl.tracking.runs import (
    lightning_logger,
    log_artifact,
    log_config,
    log_environment,
    log_metrics,
    log_text,
    run_context,
)
from envrl.tracking.store import Store
from envrl.tracking.traces import transcripts
from envrl.training.callbacks import EvaluationCallback, Progress, ProgressCallback, RandomStateCallback
from envrl.training.module import EnvRLModule

CHECKPOINT = "last.ckpt"
ADAPTER = "adapter"


@dataclass(frozen=True)
class RunPlace:
    """Where a run stands: in which study, on disk and in MLflow.

    Attributes:
        study_folder: Folder of the study.
        experiment: MLflow experiment.
        arm: Name of the arm.
        store: MLflow store.
        parent_id: MLflow run of the study; None for a run that stands alone.
    """

    study_folder: Path
    experiment: str
    arm: str
    store: Store
    parent_id: str | None = None

    def folder(self, seed: int) -> Path:
        """Folder of the run with that seed."""
        return record_path(self.study_folder, self.arm, seed).parent


@dataclass(frozen=True)
class Parts:
    """What a run is put together from."""

    policy: Policy
    collector: Collector
    games: GameSets
    module: EnvRLModule
    source: RolloutSource


def build_collector(config: RunConfig, policy: Policy, slots: int) -> Collector:
    """Environments and the loop over them, for at most ``slots`` episodes at once."""
    pool = EnvPool(environment_factory(config.env), slots, config.rollout.env_timeout_s)
    settings = CollectorSettings(config.prompt, config.sampling, config.rollout.layout)
    return Collector(pool, policy.chat, settings)


def build(config: RunConfig) -> Parts:
    """Loads and connects everything a run needs; fails before any work if something is missing."""
    games = game_sets(config.env, config.evaluation)
    torch.manual_seed(derive_seed(config.seed, "model"))
    policy = load_policy(config.policy)
    slots = max(config.rollout.games * config.rollout.episodes_per_game, min(128, len(games.panel.games)))
    collector = build_collector(config, policy, slots)
    module = EnvRLModule(
        policy,
        config.loss,
        config.optim,
        iterations=config.train.iterations,
        micro_batches=config.batch.micro_batches,
        diagnose_every=config.train.diagnose_every,
    )
    source = RolloutSource(
        policy,
        collector,
        games.training,
        SourceSettings(
            config.prompt,
            config.rollout,
            config.auxiliary,
            config.batch,
            config.sampling.temperature,
            config.seed,
        ),
        advantages=_advantage_function(config),
        pairing=shuffled_pairing,
        wanted=lambda iteration: _wanted(config, module, iteration),
    )
    return Parts(policy, collector, games, module, source)


def _advantage_function(
    config: RunConfig,
) -> Callable[[Sequence[float], Sequence[int], Sequence[int]], Sequence[float]]:
    def advantages(
        scores: Sequence[float], groups: Sequence[int], trajectories: Sequence[int]
    ) -> Sequence[float]:
        result = grpo_advantages(
            torch.tensor(scores, dtype=torch.float64),
            torch.tensor(groups),
            torch.tensor(trajectories),
            normalisation=config.loss.normalisation,
            scale_by_std=config.loss.scale_by_std,
        )
        values: list[float] = result.tolist()
        return values

    return advantages


def _wanted(config: RunConfig, module: EnvRLModule, iteration: int) -> Wanted:
    """Auxiliary rows are made to be trained on, or every few iterations to be measured."""
    lambda_sp, lambda_id = module.weights(iteration)
    every = config.train.diagnose_every
    measured = every > 0 and iteration % every == 0
    return Wanted(lambda_sp > 0 or measured, lambda_id > 0 or measured)


def execute_run(
    config: RunConfig, place: RunPlace, report: Callable[[Progress], None] | None = None
) -> RunRecord:
    """Trains one run to its end, from its checkpoint if there is one; a finished run is left alone.

    Args:
        config: What to run.
        place: Where it stands.
        report: Told the progress after each iteration; also written to ``progress.json``.

    Raises:
        ConfigFault: The folder holds a run of another configuration.
        EnvrlError: Something is missing or broken; nothing was written in that case.
    """
    _quiet_lightning()
    torch.set_num_threads(config.train.threads)
    folder = place.folder(config.seed)
    record = _existing_record(config, place)
    if record is not None and record.status == "finished":
        return record
    parts = build(config)
    checkpoint = folder / CHECKPOINT
    if record is None:
        record = RunRecord(
            arm=place.arm,
            seed=config.seed,
            status="running",
            panel_hash=parts.games.panel.panel_hash,
            config=as_plain(config),
        )
    # The state a checkpoint does not cover is measured again, so it is dropped from the record.
    covered = _iterations_in(checkpoint)
    record = record.model_copy(
        update={
            "status": "running",
            "error": None,
            "evaluations": tuple(
                e for e in record.evaluations if e.iteration <= covered and checkpoint.is_file()
            ),
            "training_success": record.training_success[:covered],
        }
    )
    runner = _Runner(config, place, parts, record, report)
    return runner.run(checkpoint if checkpoint.is_file() else None)


def _existing_record(config: RunConfig, place: RunPlace) -> RunRecord | None:
    path = record_path(place.study_folder, place.arm, config.seed)
    if not path.is_file():
        return None
    record = load_record(path)
    require_same_config(record, config, path.parent)
    return record


def require_same_config(record: RunRecord, config: RunConfig, folder: Path) -> None:
    """Refuses to go on with a run under another configuration.

    Raises:
        ConfigFault: The configurations differ; the message names the first difference.
    """
    if record.config != json.loads(json.dumps(as_plain(config))):
        changed = _first_difference(record.config, as_plain(config))
        raise ConfigFault(
            f"{folder} holds a run of another configuration ({changed}); give the study another name, "
            "or remove that folder to run it anew"
        )


def _first_difference(old: Any, new: Any, key: str = "") -> str:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in {**old, **new}:
            if json.dumps(old.get(name), default=str) != json.dumps(new.get(name), default=str):
                return _first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    return f"{key}: was {old}, is {new}"


def _iterations_in(checkpoint: Path) -> int:
    """Iterations completed in a checkpoint; 0 without one."""
    if not checkpoint.is_file():
        return 0
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


class _Runner:
    """One run under way: connects the trainer's events to record, MLflow and progress."""

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

    def run(self, checkpoint: Path | None) -> RunRecord:
        self._save()
        tags = {
            "env": self._config.env.name,
            "algorithm": "grpo",
            "arm": self._place.arm,
            "seed": str(self._config.seed),
            "panel": self._parts.games.panel.panel_hash,
        }
        name = f"{self._place.arm}/seed_{self._config.seed}"
        context = run_context(
            self._place.store,
            self._place.experiment,
            name,
            self._place.parent_id,
            tags,
            self._record.mlflow_run_id,
        )
        try:
            with context as run_id:
                self._run_id = run_id
                self._update(mlflow_run_id=run_id)
                self._log_beginnings()
                self._fit(checkpoint)
                self._log_endings()
        except Exception as error:
            self._update(status="failed", error=f"{type(error).__name__}: {error}")
            raise
        self._update(status="finished")
        return self._record

    def _fit(self, checkpoint: Path | None) -> None:
        config = self._config
        datamodule = RolloutDataModule(
            self._parts.source, config.batch, lambda: self._parts.module.updates_done, self._collected
        )
        evaluation = EvaluationCallback(self._evaluate, config.evaluation.every)
        progress = ProgressCallback(self._progress, self._training_success, evaluation)
        saver = ModelCheckpoint(
            dirpath=self._folder,
            filename=Path(CHECKPOINT).stem,
            every_n_epochs=config.train.checkpoint_every,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        trainer = L.Trainer(
            max_epochs=config.train.iterations,
            accelerator=config.train.accelerator,
            devices=1,
            precision=config.train.precision,
            accumulate_grad_batches=config.batch.micro_batches,
            gradient_clip_val=config.optim.gradient_clip or None,
            reload_dataloaders_every_n_epochs=1,
            logger=lightning_logger(self._place.store, self._run_id),
            log_every_n_steps=1,
            callbacks=[evaluation, progress, RandomStateCallback(), saver],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=self._folder,
        )
        trainer.fit(
            self._parts.module,
            datamodule=datamodule,
            ckpt_path=str(checkpoint) if checkpoint is not None else None,
            weights_only=True,
        )
        if trainer.interrupted:
            raise KeyboardInterrupt

    def _collected(self, iteration: int, experience: Experience) -> None:
        log_metrics(self._place.store, self._run_id, experience.metrics, iteration)
        success = experience.metrics["rollout/success_rate"]
        self._update(training_success=(*self._record.training_success[:iteration], success))

    def _training_success(self) -> float | None:
        return self._record.training_success[-1] if self._record.training_success else None

    def _evaluate(self, iteration: int) -> float:
        parts, config = self._parts, self._config
        result = play_panel(
            parts.policy,
            parts.collector,
            parts.games.panel,
            temperature=config.sampling.eval_temperature,
            iteration=iteration,
        )
        log_metrics(self._place.store, self._run_id, result.metrics, iteration)
        earlier = [e for e in self._record.evaluations if e.iteration < iteration]
        self._update(evaluations=(*earlier, result.evaluation))
        self._log_transcripts(result, iteration)
        return result.evaluation.success_rate

    def _log_transcripts(self, result: PanelResult, iteration: int) -> None:
        count = self._config.train.transcripts
        if count > 0:
            sample = result.trajectories[:: max(1, len(result.trajectories) // count)][:count]
            text = transcripts(sample, f"After {iteration} iterations")
            log_text(self._place.store, self._run_id, text, f"transcripts/iteration_{iteration:04d}.md")

    def _progress(self, progress: Progress) -> None:
        write_text_atomic(self._folder / "progress.json", json.dumps(asdict(progress)) + "\n")
        if self._report is not None:
            self._report(progress)

    def _log_beginnings(self) -> None:
        store, plain = self._place.store, as_plain(self._config)
        log_config(store, self._run_id, plain)
        log_environment(store, self._run_id)
        write_text_atomic(self._folder / "config.yaml", yaml.safe_dump(plain, sort_keys=False))
        panel = self._folder / "panel.json"
        self._parts.games.panel.save(panel)
        log_artifact(store, self._run_id, panel)

    def _log_endings(self) -> None:
        adapter = self._folder / ADAPTER
        self._parts.policy.save_adapter(adapter)
        log_artifact(self._place.store, self._run_id, adapter, ADAPTER)
        log_artifact(self._place.store, self._run_id, self._folder / CHECKPOINT, "checkpoints")

    def _update(self, **changes: Any) -> None:
        seconds = self._seconds_before + time.perf_counter() - self._started
        self._record = self._record.model_copy(update={**changes, "seconds": seconds})
        self._save()

    def _save(self) -> None:
        write_record(self._place.study_folder, self._record)


def _quiet_lightning() -> None:
    """Leaves out Lightning's notes on hardware and workers: the loader has no workers on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`.*")
