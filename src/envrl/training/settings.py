"""Settings of the loss and the optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from envrl.errors import ConfigFault
from envrl.losses.schedules import Schedule


@dataclass(frozen=True)
class LossSettings:
    """The terms of L = L_policy + β·KL − c·entropy + λ_SP(t)·L_SP + λ_ID(t)·L_ID."""

    sp: Schedule = field(default_factory=lambda: Schedule(weight=0.0))
    """Weight λ_SP of state prediction over the iterations; weight 0 switches it off."""
    id: Schedule = field(default_factory=lambda: Schedule(weight=0.0))
    """Weight λ_ID of inverse dynamics over the iterations; weight 0 switches it off."""
    normalisation: Literal["rows", "episodes"] = "rows"
    """Pool of a group's advantages: every row, or one score per episode."""
    scale_by_std: bool = True
    """Divide advantages by the pool's standard deviation."""
    clip_low: float = 0.2
    """The ratio is clipped at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped at 1 + clip_high."""
    dual_clip: float | None = 3.0
    """Bound of the ratio where the advantage is negative; null = off."""
    kl_coefficient: float = 0.0
    """Weight β of the KL to the policy before training (k3 estimate)."""
    entropy_coefficient: float = 0.001
    """Weight c of the entropy bonus."""

    def __post_init__(self) -> None:
        for name in ("kl_coefficient", "entropy_coefficient"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigFault(f"loss.{name} is {getattr(self, name)}; use 0 (off) or a positive number")


@dataclass(frozen=True)
class OptimSettings:
    """AdamW."""

    lr: float = 3e-4
    """Learning rate, constant."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    beta2: float = 0.999
    """Decay of the second moment."""
    gradient_clip: float = 1.0
    """Largest norm of an update's gradient; 0 switches clipping off."""
    eight_bit: bool = False
    """Keep the optimiser's state in 8 bits (bitsandbytes)."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < 1:
            raise ConfigFault(f"optim.lr is {self.lr}; use a number between 0 and 1, e.g. 3e-4")
        if self.gradient_clip < 0:
            raise ConfigFault(f"optim.gradient_clip is {self.gradient_clip}; use 0 (off) or more")
