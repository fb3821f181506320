"""Small runs on fake environments, put together as the composition root does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from envrl.envs.base import TextEnv
from envrl.envs.pool import EnvPool
from envrl.experiments.credit import advantage_function
from envrl.experiments.idle_rows import leaves_out_idle_rows
from envrl.losses.dynamics import shuffled_pairing
from envrl.policy.model import load_policy
from envrl.policy.settings import PolicySettings, SamplingSettings
from envrl.prompts.settings import PromptSettings
from envrl.rollout.choice import TrainingGames
from envrl.rollout.collector import Collector, CollectorSettings
from envrl.rollout.credit import CreditSource
from envrl.rollout.datamodule import RolloutDataModule
from envrl.rollout.random_play import play_at_random
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.rollout.source import Experience, Learning, RolloutSource, SourceSettings, Wanted
from envrl.training.module import EnvRLModule
from envrl.training.settings import LossSettings, OptimSettings
from envrl.types import Game


@dataclass(frozen=True)
class RunPlan:
    """A small run on a fake environment."""

    policy: PolicySettings
    games: tuple[Game, ...]
    make_env: Callable[[], TextEnv]
    rollout: RolloutSettings = RolloutSettings(games=3, episodes_per_game=4)
    auxiliary: AuxiliaryRows = AuxiliaryRows()
    batch: BatchSettings = BatchSettings(micro_batches=2)
    loss: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings(lr=1e-2)
    max_new_tokens: int = 3
    iterations: int = 2
    diagnose_every: int = 1
    measure: bool = True
    """Make auxiliary rows of weight 0 too."""
    seed: int = 0


@dataclass
class SmallRun:
    """A run ready to fit."""

    plan: RunPlan
    module: EnvRLModule
    source: RolloutSource
    datamodule: RolloutDataModule
    collected: list[Experience]


def small_run(plan: RunPlan) -> SmallRun:
    """Connects the parts of a run as the composition root does."""
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        policy = load_policy(plan.policy)
    slots = plan.rollout.games * plan.rollout.episodes_per_game
    prompt = PromptSettings()
    sampling = SamplingSettings(max_new_tokens=plan.max_new_tokens, max_context=200)
    pool = EnvPool(plan.make_env, slots)
    collector = Collector(pool, policy.chat, CollectorSettings(prompt, sampling, plan.rollout.layout))
    module = EnvRLModule(
        policy,
        plan.loss,
        plan.optim,
        iterations=plan.iterations,
        micro_batches=plan.batch.micro_batches,
        diagnose_every=plan.diagnose_every,
    )
    critic = module.critic
    source = RolloutSource(
        policy,
        collector,
        TrainingGames(plan.games),
        SourceSettings(prompt, plan.rollout, plan.auxiliary, plan.batch, 1.0, plan.seed),
        Learning(
            CreditSource(
                advantage_function(plan.loss),
                None if critic is None else lambda rows: critic.values(policy, rows),
            ),
            shuffled_pairing,
            lambda iteration: wanted(plan, module, iteration),
            leaves_out_idle_rows(plan.loss, plan.auxiliary, plan.batch),
        ),
        explore=partial(play_at_random, pool),
    )
    collected: list[Experience] = []
    datamodule = RolloutDataModule(
        source, plan.batch, lambda: module.updates_done, lambda _, experience: collected.append(experience)
    )
    return SmallRun(plan, module, source, datamodule, collected)


def wanted(plan: RunPlan, module: EnvRLModule, iteration: int) -> Wanted:
    """The paper's two where they are measured, and the others where they have a weight."""
    weights = module.weights(iteration)
    others = tuple(o for o in module.objectives if o.name not in ("sp", "id") and weights[o.name] > 0)
    return Wanted(plan.measure, plan.measure, others)


class Recorder(Logger):
    """Keeps what every iteration logged, apart from times."""

    name = "recorder"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.iterations: list[dict[str, float]] = []

    def log_hyperparams(self, params: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.iterations.append({k: v for k, v in metrics.items() if not k.startswith("update/")})


def fit(
    run: SmallRun,
    epochs: int,
    *callbacks: L.Callback,
    checkpoint_path: Path | None = None,
) -> list[dict[str, float]]:
    """Trains with a real trainer until ``epochs`` iterations are complete; the metrics of each."""
    recorder = Recorder()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=run.plan.batch.micro_batches,
        gradient_clip_val=run.plan.optim.gradient_clip or None,
        reload_dataloaders_every_n_epochs=1,
        logger=recorder,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=checkpoint_path, weights_only=True)
    return recorder.iterations


def weights(run: SmallRun) -> dict[str, torch.Tensor]:
    """Copies of all trained weights."""
    return {n: p.detach().clone() for n, p in run.module.named_parameters() if p.requires_grad}
