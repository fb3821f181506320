"""The optimiser of a run: AdamW over the policy's trained weights and, with PPO, over the critic's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from envrl.errors import PolicyFault
from envrl.training.settings import OptimSettings


def adamw(
    policy: Iterable[nn.Parameter],
    settings: OptimSettings,
    critic: Iterable[nn.Parameter] = (),
    critic_lr: float = 0.0,
    *,
    divided: bool = False,
) -> torch.optim.Optimizer:
    """AdamW, optionally with 8-bit state; the critic is a group of its own with its own learning rate.

    Args:
        policy: Weights of the policy.
        settings: Learning rate and so on.
        critic: Weights of the critic.
        critic_lr: Their learning rate.
        divided: Divide the state among the processes of the run, which are connected (``divided.py``).

    Raises:
        PolicyFault: 8-bit state is asked for and not to be had here.
    """
    options: dict[str, Any] = {
        "lr": settings.lr,
        "betas": (0.9, settings.beta2),
        "weight_decay": settings.weight_decay,
    }
    groups: list[Any] = list(policy)
    if own := list(critic):
        groups = [{"params": groups}, {"params": own, "lr": critic_lr}]
    if divided:
        # Torch's distributed optimisers take more than a second to import.
        from envrl.training.divided import DividedAdamW

        return DividedAdamW(groups, optimizer_class=torch.optim.AdamW, **options)
    return eight_bit_adamw(groups, options) if settings.eight_bit else torch.optim.AdamW(groups, **options)


def clip_each_group(optimiser: torch.optim.Optimizer, norm: float) -> None:
    """Cuts the gradient of each group to a norm of its own.

    A critic's errors are far larger than the policy's gradient; in one norm they would leave it no step.
    """
    for group in optimiser.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], norm)


def eight_bit_adamw(trained: list[Any], options: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW with 8-bit state (bitsandbytes).

    Raises:
        PolicyFault: bitsandbytes has none for this machine.
    """
    try:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(trained, **options)  # type: ignore[no-any-return]
    except Exception as error:
        raise PolicyFault(
            f"optim.eight_bit is set, but bitsandbytes offers no 8-bit AdamW here ({error}); "
            "set optim.eight_bit=false"
        ) from error
