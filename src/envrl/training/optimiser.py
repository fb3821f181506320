"""The optimiser of a run: AdamW over the policy's trained weights and, with PPO, over the critic's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from envrl.errors import PolicyFault
from envrl.policy.parts import is_piece, local
from envrl.policy.ranks import Ranks
from envrl.training.settings import OptimSettings


def adamw(
    policy: Iterable[nn.Parameter],
    settings: OptimSettings,
    critic: Iterable[nn.Parameter] = (),
    critic_lr: float = 0.0,
    *,
    divided: Literal["nothing", "state", "layers"] = "nothing",
) -> torch.optim.Optimizer:
    """AdamW, optionally with 8-bit state; the critic is a group of its own with its own learning rate.

    Args:
        policy: Weights of the policy.
        settings: Learning rate and so on.
        critic: Weights of the critic.
        critic_lr: Their learning rate.
        divided: What is divided among the processes of the run, which are connected: the state
            (``divided.py``), or the weights themselves and their state with them (``pieces.py``).

    Raises:
        PolicyFault: 8-bit state is asked for and not to be had here.
    """
    options: dict[str, Any] = {
        "lr": settings.lr,
        "betas": (0.9, settings.beta2),
        "weight_decay": settings.weight_decay,
    }
    groups: list[Any] = list(policy)
    own = list(critic)
    every = [*groups, *own]
    if own:
        groups = [{"params": groups}, {"params": own, "lr": critic_lr}]
    if divided == "state":
        # Torch's distributed optimisers take more than a second to import.
        from envrl.training.divided import DividedAdamW

        return DividedAdamW(groups, optimizer_class=torch.optim.AdamW, **options)
    if divided == "layers" and any(map(is_piece, every)):
        from envrl.training.pieces import PiecesAdamW

        return PiecesAdamW(groups, **options)
    return eight_bit_adamw(groups, options) if settings.eight_bit else torch.optim.AdamW(groups, **options)


def gradient_norm(parameters: Iterable[nn.Parameter], ranks: Ranks) -> float:
    """Norm of the gradient of some parameters, of pieces that of the whole; all processes call it."""
    chosen = list(parameters)
    whole = [p.grad.detach().norm() for p in chosen if p.grad is not None and not is_piece(p)]
    norm = float(torch.stack(whole).norm()) if whole else 0.0
    if not any(map(is_piece, chosen)):
        return norm
    pieces = [local(p.grad.detach()).norm() for p in chosen if p.grad is not None and is_piece(p)]
    square = torch.stack(pieces).square().sum() if pieces else torch.zeros(())
    everywhere = square.double().cpu()
    ranks.add_up(everywhere)
    return float((everywhere + norm**2).sqrt())


def clip_each_group(optimiser: torch.optim.Optimizer, norm: float, ranks: Ranks) -> None:
    """Cuts the gradient of each group to a norm of its own.

    A critic's errors are far larger than the policy's gradient; in one norm they would leave it no step.
    """
    for group in optimiser.param_groups:
        if not any(map(is_piece, group["params"])):
            torch.nn.utils.clip_grad_norm_(group["params"], norm)
            continue
        # Torch's own is told of pieces and other tensors at once, which it can't work on.
        factor = norm / (gradient_norm(group["params"], ranks) + 1e-6)
        for parameter in group["params"] if factor < 1 else ():
            if parameter.grad is not None:
                local(parameter.grad).mul_(factor)


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
