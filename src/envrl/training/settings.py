"""Settings of the loss and the optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from envrl.errors import ConfigFault
from envrl.losses.schedules import Schedule

Algorithm = Literal["grpo", "gigpo", "rloo", "reinforce++", "ppo"]
"""How advantages are made."""

COMPARES_EPISODES: tuple[Algorithm, ...] = ("grpo", "gigpo", "rloo")
"""Algorithms that learn from what tells the episodes of one game apart."""


@dataclass(frozen=True)
class GigpoSettings:
    """GiGPO's own numbers; scale_by_std stands for both of its levels."""

    gamma: float = 0.95
    """Discount of an environment step in step returns, 0 to 1."""
    omega: float = 1.0
    """Weight ω of the step level beside the episode level; 0 is GRPO."""
    similarity: float | None = None
    """Least similarity (difflib's ratio, up to 1) of observations that are compared with each other; null
    = equal ones only."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ConfigFault(f"loss.gigpo.gamma is {self.gamma}; use a number from 0 to 1, e.g. 0.95")
        if not 0 <= self.omega < float("inf"):
            raise ConfigFault(f"loss.gigpo.omega is {self.omega}; use 0 (plain GRPO) or a positive number")
        if self.similarity is not None and not 0 < self.similarity <= 1:
            raise ConfigFault(
                f"loss.gigpo.similarity is {self.similarity}; use a ratio above 0 and up to 1, or null for "
                "equal observations only"
            )


@dataclass(frozen=True)
class PpoSettings:
    """PPO's own numbers: a value head on the policy's hidden states, and what it is trained on."""

    gamma: float = 0.95
    """Discount of an environment step, 0 to 1."""
    gae_lambda: float = 0.95
    """0 trusts the value after one step, 1 never (generalised advantage estimation)."""
    value_coefficient: float = 0.5
    """Weight of the value head's loss, above 0; its gradient reaches the policy's weights too."""
    value_clip: float | None = 0.5
    """Farthest a value may profitably move in an iteration, in units of the score; null = any distance."""
    value_lr: float = 1e-3
    """Learning rate of the value head, constant; the policy's is optim.lr."""

    def __post_init__(self) -> None:
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigFault(f"loss.ppo.{name} is {getattr(self, name)}; use a number from 0 to 1")
        if not 0 < self.value_coefficient < float("inf"):
            raise ConfigFault(
                f"loss.ppo.value_coefficient is {self.value_coefficient}: PPO has no baseline if its value "
                "is not trained; use a positive number, or another loss.algorithm"
            )
        if self.value_clip is not None and not self.value_clip > 0:
            raise ConfigFault(
                f"loss.ppo.value_clip is {self.value_clip}; use a positive number, or null for off"
            )
        if not 0 < self.value_lr < 1:
            raise ConfigFault(f"loss.ppo.value_lr is {self.value_lr}; use a number between 0 and 1")


@dataclass(frozen=True)
class ObjectiveSettings:
    """One auxiliary objective beside state prediction and inverse dynamics."""

    use: str
    """Which one: paw, echo, or module:class of an own one (docs/new_objective.md)."""
    schedule: Schedule = field(default_factory=Schedule)
    """Its weight over the iterations."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its own numbers, e.g. {share: 0.5} of paw; those left out have their defaults."""


@dataclass(frozen=True)
class BalanceSettings:
    """How the weights of auxiliary objectives adapt to training, as factors on their schedules."""

    kind: Literal["none", "gradient_norm", "uncertainty", "reward"] = "none"
    """gradient_norm: the weight is the length of the objective's gradient in units of the policy's;
    uncertainty: a learnt log-variance (Kendall et al.); reward: times 1 - success of the iteration."""
    every: int = 1
    """gradient_norm: iterations between measurements; each costs a backward pass per term."""
    keep: float = 0.7
    """gradient_norm: share of the running average of norms that a measurement leaves, 0 to below 1."""
    rate: float = 0.1
    """uncertainty: learning rate of the log-variances, one step an iteration."""
    most: float = 10.0
    """Largest factor."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigFault(f"loss.balance.every is {self.every}; use at least 1")
        if not 0 <= self.keep < 1:
            raise ConfigFault(f"loss.balance.keep is {self.keep}; use 0 (the last alone) up to below 1")
        if not 0 < self.rate <= 1:
            raise ConfigFault(f"loss.balance.rate is {self.rate}; use a number above 0, up to 1, e.g. 0.1")
        if not 0 < self.most < float("inf"):
            raise ConfigFault(f"loss.balance.most is {self.most}; use a positive number, e.g. 10")


@dataclass(frozen=True)
class StopSettings:
    """When auxiliary objectives are given up because they harm."""

    window: int = 0
    """Iterations of each of the two windows that are compared; 0 = never give up."""
    success_drop: float = 0.05
    """Fall of training success between the windows, with the objectives' loss falling, that is harm."""
    imagined_rise: float = 0.05
    """Rise of the rate of imagined observations between the windows that is harm."""

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ConfigFault(f"loss.stop.window is {self.window}; use 0 (never) or a number of iterations")
        for name in ("success_drop", "imagined_rise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigFault(f"loss.stop.{name} is {getattr(self, name)}; use a share from 0 to 1")


@dataclass(frozen=True)
class LossSettings:
    """The terms of L = L_policy + β·KL − c·entropy + Σ λ_k(t)·L_k over the auxiliary objectives k."""

    sp: Schedule = field(default_factory=lambda: Schedule(weight=0.0))
    """Weight λ_SP of state prediction over the iterations; weight 0 switches it off."""
    id: Schedule = field(default_factory=lambda: Schedule(weight=0.0))
    """Weight λ_ID of inverse dynamics over the iterations; weight 0 switches it off."""
    algorithm: Algorithm = "grpo"
    """Whom advantages compare an episode with. grpo: the others of its game; gigpo: also each step with
    others in the same place; rloo: the others, itself left out; reinforce++: the whole iteration; ppo: a
    learnt value of each step."""
    gigpo: GigpoSettings = field(default_factory=GigpoSettings)
    """Only for gigpo."""
    ppo: PpoSettings = field(default_factory=PpoSettings)
    """Only for ppo."""
    objectives: tuple[ObjectiveSettings, ...] = ()
    """Further auxiliary objectives, e.g. [{use: echo, schedule: {kind: constant, weight: 0.05}}]."""
    balance: BalanceSettings = field(default_factory=BalanceSettings)
    """How the weights of auxiliary objectives adapt."""
    stop: StopSettings = field(default_factory=StopSettings)
    """When auxiliary objectives are given up."""
    normalisation: Literal["rows", "episodes"] = "rows"
    """Pool of advantages: every row, or one score per episode. ppo: every step in both cases."""
    scale_by_std: bool = True
    """Divide advantages by the pool's standard deviation; rloo never does. ppo and reinforce++ centre and
    scale over the iteration."""
    aggregation: Literal["tokens", "rows", "constant"] = "tokens"
    """tokens: mean over all written tokens; rows: of each row, then over rows; constant: sums of rows by a
    constant, then over rows (Dr. GRPO, with scale_by_std=false). Auxiliary terms have their own."""
    row_tokens: int | None = None
    """Only for aggregation=constant: the constant; null = sampling.max_new_tokens, in the transcript layout
    times the environment steps."""
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
        if self.row_tokens is not None and self.row_tokens < 1:
            raise ConfigFault(f"loss.row_tokens is {self.row_tokens}; use at least 1, or null for the most")
        if not 0 <= self.clip_low <= 1:
            raise ConfigFault(f"loss.clip_low is {self.clip_low}; use a number from 0 to 1")
        if not 0 <= self.clip_high < float("inf"):
            raise ConfigFault(f"loss.clip_high is {self.clip_high}; use 0 or a positive number")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ConfigFault(f"loss.dual_clip is {self.dual_clip}; use a ratio above 1, or null for off")

    @property
    def own_weights(self) -> dict[str, float]:
        """Weights of the terms beside the policy's that are no auxiliary objectives."""
        return {
            "kl": self.kl_coefficient,
            "entropy": self.entropy_coefficient,
            "value": self.ppo.value_coefficient,
        }


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
    max_skipped_updates: int = 5
    """Most updates one after the other that are left out because their loss or gradient is not finite; one
    more ends the run. 0 = the first ends it."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < 1:
            raise ConfigFault(f"optim.lr is {self.lr}; use a number between 0 and 1, e.g. 3e-4")
        if not 0 <= self.gradient_clip < float("inf"):
            raise ConfigFault(f"optim.gradient_clip is {self.gradient_clip}; use 0 (off) or more")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigFault(f"optim.weight_decay is {self.weight_decay}; use 0 (off) or more")
        if not 0 <= self.beta2 < 1:
            raise ConfigFault(f"optim.beta2 is {self.beta2}; use a number in [0, 1), e.g. 0.999")
        if self.max_skipped_updates < 0:
            raise ConfigFault(
                f"optim.max_skipped_updates is {self.max_skipped_updates}; use 0 (stop at the first) or more"
            )
