"""Settings of different parts of a run that can't go together.

Each function raises `ConfigFault` with the value and the remedy.
"""

from __future__ import annotations

from envrl.errors import ConfigFault
from envrl.experiments.settings import EnvSettings, TrainSettings
from envrl.policy.settings import PolicySettings
from envrl.prompts.settings import PromptSettings
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.training.settings import COMPARES_EPISODES, LossSettings, OptimSettings


def check_episodes(
    env: EnvSettings, rollout: RolloutSettings, auxiliary: AuxiliaryRows, loss: LossSettings
) -> None:
    """Refuses games and groups that the layout or the algorithm can't work with."""
    if rollout.layout == "steps" and auxiliary.sp_rows == "policy" and loss.sp.weight > 0:
        raise ConfigFault(
            "auxiliary.sp_rows=policy reads state prediction off a growing conversation, which "
            "rollout.layout=steps does not have; set auxiliary.sp_rows=questions"
        )
    if env.train_games is not None and env.train_games < rollout.games:
        raise ConfigFault(
            f"env.train_games is {env.train_games}, fewer than the rollout.games={rollout.games} of an "
            "iteration; use at least as many"
        )
    if loss.algorithm in COMPARES_EPISODES and rollout.episodes_per_game == 1:
        raise ConfigFault(
            f"rollout.episodes_per_game is 1, but loss.algorithm={loss.algorithm} compares the episodes of a "
            "game with each other; use at least 2, or reinforce++ or ppo"
        )


def check_workers(env: EnvSettings, rollout: RolloutSettings) -> None:
    """Refuses what the WebShop's published order of goals has no room for."""
    if env.train_games is not None:
        raise ConfigFault(
            f"env.train_games is {env.train_games}, but env.webshop.order=workers draws from all goals; set "
            "it to null"
        )
    if rollout.refill_rounds > 0:
        raise ConfigFault(
            f"rollout.refill_rounds is {rollout.refill_rounds}, but env.webshop.order=workers has one game "
            "for each group and no others; use refill_rounds=0, or order=fixed"
        )


def check_games_left(env: EnvSettings, rollout: RolloutSettings) -> None:
    """Refuses to replace groups where each iteration plays every game."""
    if rollout.refill_rounds > 0 and env.train_games == rollout.games:
        raise ConfigFault(
            f"rollout.refill_rounds is {rollout.refill_rounds}, but each iteration plays all "
            f"env.train_games={env.train_games} games, so there are no others to play; use more training "
            "games, or refill_rounds=0"
        )


def check_processes(train: TrainSettings, batch: BatchSettings, optim: OptimSettings) -> None:
    """Refuses updates that the processes can't share."""
    if batch.micro_batches % train.processes:
        raise ConfigFault(
            f"batch.micro_batches is {batch.micro_batches}, which can't be shared out evenly to the "
            f"{train.processes} processes of train.devices={train.devices} times train.nodes={train.nodes}; "
            f"use a multiple of {train.processes}"
        )
    if train.strategy == "zero" and optim.eight_bit:
        raise ConfigFault(
            "train.strategy is zero, which divides a state of 32 bits, but optim.eight_bit is set; set it to "
            "false, or use train.strategy=ddp"
        )


def check_pieces(
    train: TrainSettings, policy: PolicySettings, loss: LossSettings, optim: OptimSettings
) -> None:
    """Refuses what a policy whose layers are in pieces can't do."""
    if policy.quantised:
        raise ConfigFault(
            "train.strategy is fsdp, but policy.load_in_4bit or policy.load_in_8bit is set, and quantised "
            "layers can't be cut; load the base in policy.dtype, or use train.strategy=ddp"
        )
    if train.diagnose_every > 0:
        raise ConfigFault(
            f"train.strategy is fsdp, but train.diagnose_every is {train.diagnose_every}, and the gradient "
            "of a single term can't be measured in pieces; set train.diagnose_every=0"
        )
    if loss.balance.kind == "gradient_norm":
        raise ConfigFault(
            "train.strategy is fsdp, but loss.balance.kind is gradient_norm, and the gradient of a single "
            "term can't be measured in pieces; use another kind of balance, or train.strategy=ddp"
        )
    if optim.eight_bit and not policy.lora.enabled:
        raise ConfigFault(
            "train.strategy is fsdp and policy.lora.enabled is false, but optim.eight_bit is set, which "
            "knows no pieces; set it to false"
        )


def check_served(policy: PolicySettings) -> None:
    """Refuses a policy that a sampling server can't follow."""
    if not policy.lora.enabled:
        raise ConfigFault(
            "policy.lora.enabled is false, but sampling.server.url is set, and a running server can only "
            "exchange adapters; set policy.lora.enabled=true, or sampling.server.url=null"
        )
    if policy.quantised:
        raise ConfigFault(
            "policy.load_in_4bit or policy.load_in_8bit is set beside sampling.server.url: the server's base "
            "would not be the quantised one that the adapters are trained on; load the base in policy.dtype, "
            "or set sampling.server.url=null"
        )


def check_lengths(loss: LossSettings, train: TrainSettings) -> None:
    """Refuses schedules that would not end within the run."""
    others = [(f"objectives[{n}].schedule", o.schedule) for n, o in enumerate(loss.objectives)]
    for name, schedule in (("sp", loss.sp), ("id", loss.id), *others):
        if schedule.length is not None and schedule.length > train.iterations:
            raise ConfigFault(
                f"loss.{name}.length is {schedule.length}, longer than the run's {train.iterations} "
                "iterations; shorten it, or use null for the whole run"
            )


def check_objectives(
    loss: LossSettings, auxiliary: AuxiliaryRows, batch: BatchSettings, prompt: PromptSettings
) -> None:
    """Refuses auxiliary objectives, controls and updates that can't work together."""
    schedules = [loss.sp, loss.id, *(objective.schedule for objective in loss.objectives)]
    weighted = any(schedule.weight > 0 for schedule in schedules)
    if batch.alternate > 0 and batch.extra == "auxiliary" and not weighted:
        raise ConfigFault(
            f"batch.alternate is {batch.alternate}, but no auxiliary objective has a weight, so the extra "
            "updates would have no loss; set loss.sp.weight, or batch.extra=policy"
        )
    if auxiliary.altered and loss.objectives:
        raise ConfigFault(
            f"loss.objectives has {loss.objectives[0].use!r}, but controls alter state prediction and "
            "inverse dynamics alone; remove it, or set auxiliary.control=none and shuffle_targets=false"
        )
    changes_actions = auxiliary.control in ("drop_action", "replace_action")
    if changes_actions and auxiliary.sp_rows == "policy" and prompt.form == "reasoned":
        raise ConfigFault(
            f"auxiliary.control={auxiliary.control} can't take the action out of the thoughts in policy "
            "rows; set auxiliary.sp_rows=questions"
        )
