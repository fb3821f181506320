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
        if not 0 <= self.clip_low <= 1:
            raise ConfigFault(f"loss.clip_low is {self.clip_low}; use a number from 0 to 1")
        if not 0 <= self.clip_high < float("inf"):
            raise ConfigFault(f"loss.clip_high is {self.clip_high}; use 0 or a positive number")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ConfigFault(f"loss.dual_clip is {self.dual_clip}; use a ratio above 1, or null for off")


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
        if not 0 <= self.gradient_clip < float("inf"):
            raise ConfigFault(f"optim.gradient_clip is {self.gradient_clip}; use 0 (off) or more")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigFault(f"optim.weight_decay is {self.weight_decay}; use 0 (off) or more")
        if not 0 <= self.beta2 < 1:
            raise ConfigFault(f"optim.beta2 is {self.beta2}; use a number in [0, 1), e.g. 0.999")
