"""The parts of a run's configuration that belong to no other room: environment, evaluation, training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from envrl.envs.alfworld.furnish import RoomSettings
from envrl.envs.alfworld.rooms import TASK_TYPES
from envrl.envs.webshop.ordering import PAPER_TEST_GOALS
from envrl.errors import ConfigFault

_MOST_STEPS = {"alfworld": 12, "webshop": 15}
"""Default limit of an episode: enough for small rooms; WebShop's published one. Own environments: 12."""
_OFFICIAL_ALFWORLD_STEPS = 50
"""Default limit in ALFWorld's own rooms, as published: few of their games can be won within 12."""


@dataclass(frozen=True)
class WebShopSettings:
    """The shop, where `env.name` is webshop."""

    products: int = 1000
    """Products of the invented catalogue (`env.games: generated`)."""
    catalogue: Literal["small", "full"] = "small"
    """Official files (`env.games: official`): the 1,000 or the 1.18 million products."""
    goals: Literal["synthetic", "human"] = "synthetic"
    """Instructions made from attributes and options, or written by people."""
    order: Literal["fixed", "workers"] = "fixed"
    """fixed: one order of the goals, training and test goals apart; workers: as in the paper's code, where
    each group of episodes has prices, goals and an order by a seed of its own."""
    test_goals: int = 500
    """Goals set apart for the panel; training goals share no wish and no wording with them."""

    def __post_init__(self) -> None:
        for name in ("products", "test_goals"):
            if getattr(self, name) < 1:
                raise ConfigFault(f"env.webshop.{name} is {getattr(self, name)}; use at least 1")
        if self.order == "workers" and self.test_goals != PAPER_TEST_GOALS:
            raise ConfigFault(
                f"env.webshop.test_goals is {self.test_goals}, but order=workers tests on the first "
                f"{PAPER_TEST_GOALS} goals of each worker; leave it out, or use order=fixed"
            )


@dataclass(frozen=True)
class EnvSettings:
    """Games to train on."""

    name: str = "alfworld"
    """Environment: alfworld, webshop, or module:class of an own one (docs/own_environment.md)."""
    backend: Literal["native", "textworld"] = "native"
    """ALFWorld. native: the built-in engine; textworld: the alfworld package's own stack (a thousand times
    slower)."""
    games: Literal["generated", "official"] = "generated"
    """generated: made on first use, no download; official: the real ones, below ALFWORLD_DATA or
    WEBSHOP_DATA."""
    train_games: int | None = 256
    """Training games, or all there are if there are fewer; null takes all of them (not of ALFWorld's
    generated games, which have no end)."""
    receptacles: int | None = 6
    """ALFWorld: pieces of furniture of generated rooms; null keeps all of a scene."""
    objects_per_receptacle: float | None = 1.2
    """ALFWorld: mean number of objects on a receptacle of generated rooms; null fills them like official
    games."""
    task_types: tuple[str, ...] = TASK_TYPES
    """ALFWorld: task types of generated games, each equally likely."""
    max_steps: int | None = None
    """Environment steps after which an episode is truncated; null: 15 on WebShop, 50 in ALFWorld's
    official games, 12 elsewhere."""
    games_seed: int = 0
    """Seed of the generated games; the run's seed does not change them."""
    webshop: WebShopSettings = field(default_factory=WebShopSettings)
    """WebShop: catalogue and goals."""

    def __post_init__(self) -> None:
        if not self.own and self.name not in _MOST_STEPS:
            raise ConfigFault(
                f"env.name is '{self.name}'; use {' or '.join(_MOST_STEPS)}, or module:class of an own "
                "environment"
            )
        if self.train_games is not None and self.train_games < 1:
            raise ConfigFault(f"env.train_games is {self.train_games}; use at least 1, or null for all")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigFault(f"env.max_steps is {self.max_steps}; use at least 1, or null for the default")
        self._refuse_settings_without_effect()
        if self.name != "alfworld":
            return
        if self.train_games is None and self.games == "generated":
            raise ConfigFault("env.train_games is null, but generated games have no end; give a number")
        self.rooms()

    def _refuse_settings_without_effect(self) -> None:
        defaults = EnvSettings.__dataclass_fields__
        idle: dict[str, tuple[object, object, str]] = {}
        if self.name != "alfworld":
            names = ("backend", "receptacles", "objects_per_receptacle", "task_types")
            idle |= {f"env.{n}": (getattr(self, n), defaults[n].default, "env.name=alfworld") for n in names}
        if self.own:
            idle["env.games"] = (self.games, "generated", "env.name=alfworld or webshop")
        if self.name == "webshop":
            official = self.games == "official"
            name, remedy = ("products", "generated") if official else ("catalogue", "official")
            usual = getattr(WebShopSettings(), name)
            idle[f"env.webshop.{name}"] = (getattr(self.webshop, name), usual, f"env.games={remedy}")
        else:
            idle |= {
                f"env.webshop.{f.name}": (getattr(self.webshop, f.name), f.default, "env.name=webshop")
                for f in fields(WebShopSettings)
            }
        for name, (value, default, remedy) in idle.items():
            if value != default:
                raise ConfigFault(
                    f"{name} is {value}, which changes nothing here; remove it, or use {remedy}"
                )

    @property
    def steps(self) -> int:
        """Environment steps after which an episode is truncated."""
        if self.max_steps is not None:
            return self.max_steps
        if (self.name, self.games) == ("alfworld", "official"):
            return _OFFICIAL_ALFWORLD_STEPS
        return _MOST_STEPS.get(self.name, 12)

    @property
    def own(self) -> bool:
        """Whether the name is that of a class outside this package."""
        return ":" in self.name

    def rooms(self) -> RoomSettings:
        """Settings of ALFWorld's generator."""
        return RoomSettings(
            receptacles=self.receptacles,
            objects_per_receptacle=self.objects_per_receptacle,
            max_steps=self.steps,
            task_types=self.task_types,
        )


@dataclass(frozen=True)
class EvaluationSettings:
    """The fixed panel and when it is played."""

    games: int = 128
    """Games of the panel, each played once per evaluation."""
    split: Literal["valid_seen", "valid_unseen", "test"] | None = None
    """Split the panel is drawn from; null: valid_seen on ALFWorld, test elsewhere (WebShop's only one)."""
    seed: int = 0
    """Seed of the panel; the same for all runs of a study, or they can't be compared."""
    every: int = 10
    """Iterations between evaluations; the first is before training, the last after it."""
    dynamics: int = 64
    """Transitions of random play on the panel's games that the policy is asked about at every evaluation:
    what follows this action, which action led there; 0 asks nothing."""
    episodes: int = 64
    """Episodes of each evaluation that are kept whole, token by token, in the run's folder, spread evenly
    over the panel; 0 keeps none."""

    def __post_init__(self) -> None:
        if self.games < 1:
            raise ConfigFault(f"evaluation.games is {self.games}: a panel needs games; use at least 1")
        if self.every < 1:
            raise ConfigFault(f"evaluation.every is {self.every}; use at least 1")
        if self.dynamics < 0:
            raise ConfigFault(f"evaluation.dynamics is {self.dynamics}; use 0 (nothing is asked) or more")
        if self.episodes < 0:
            raise ConfigFault(f"evaluation.episodes is {self.episodes}; use 0 (none are kept) or more")


@dataclass(frozen=True)
class TrainSettings:
    """Length of a run and what it runs on."""

    iterations: int = 30
    """Iterations: collect, update, now and then evaluate."""
    threads: int = 1
    """CPU threads of the process."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Lightning accelerator."""
    devices: int = 1
    """Devices of each machine that the run is spread over, each with a process of its own (devices.md)."""
    nodes: int = 1
    """Machines that the run is spread over; more than one is started by torchrun."""
    strategy: Literal["auto", "ddp", "zero", "fsdp"] = "auto"
    """How several devices share the work. auto, ddp: each holds the whole policy, plays every n-th game
    and computes its share of every update; zero: so too, with the optimiser's state divided among them;
    fsdp: the policy's layers are divided too during updates, and whole while a device plays."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    """Lightning precision of the update; for weights of 16 bits set policy.dtype=bfloat16, bf16-true is
    refused."""
    diagnose_every: int = 10
    """Iterations between measurements that cost extra passes (KL to the start, gradient alignment,
    objectives of weight 0); 0 = never."""
    checkpoint_every: int = 1
    """Iterations between checkpoints; at most this many iterations are lost to a crash."""
    transcripts: int = 4
    """Episodes per evaluation kept as readable transcripts and as traces in MLflow."""

    def __post_init__(self) -> None:
        for name in ("iterations", "threads", "checkpoint_every", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise ConfigFault(f"train.{name} is {getattr(self, name)}; use at least 1")
        if self.precision == "bf16-true":
            # Lightning would convert log-probabilities and advantages too, which need their digits.
            raise ConfigFault(
                "train.precision is bf16-true, which converts what a batch holds and not only weights; use "
                "policy.dtype=bfloat16 for weights of 16 bits, with train.precision=32-true"
            )
        if self.strategy != "auto" and self.processes == 1:
            raise ConfigFault(
                f"train.strategy is {self.strategy}, which changes nothing with train.devices=1; use auto, "
                "or more devices"
            )
        for name in ("diagnose_every", "transcripts"):
            if getattr(self, name) < 0:
                raise ConfigFault(f"train.{name} is {getattr(self, name)}; use 0 (never) or more")

    @property
    def processes(self) -> int:
        """Processes of the run, one for each device."""
        return self.devices * self.nodes
