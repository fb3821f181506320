"""The configuration of a run, and how YAML and command line become one.

Every field is a line of ``--help``; unknown keys are refused; ``--print_config`` prints all of it as YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import NoneType
from typing import Any, Literal, cast, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

from envrl.envs.alfworld.furnish import RoomSettings
from envrl.envs.alfworld.rooms import TASK_TYPES
from envrl.envs.webshop.ordering import PAPER_TEST_GOALS
from envrl.errors import ConfigFault
from envrl.experiments.checks import check_objectives
from envrl.experiments.plain import check_yaml, merge, nested
from envrl.policy.settings import PolicySettings, SamplingSettings, embedded_policy, model_source
from envrl.prompts.settings import Domain, PromptSettings
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.training.settings import COMPARES_EPISODES, LossSettings, OptimSettings


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


_SHORT = 64
"""Characters up to which an option's value without aliases can't be a bomb."""
_MOST_STEPS = {"alfworld": 12, "webshop": 15}
"""Default limit of an episode: enough for small rooms; WebShop's published one. Own environments: 12."""


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
    """Environment steps after which an episode is truncated; null: 15 on WebShop, 12 elsewhere."""
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
        return _MOST_STEPS.get(self.name, 12) if self.max_steps is None else self.max_steps

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
    fsdp, the policy cut into pieces, is refused."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] = "32-true"
    """Lightning precision of the update."""
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
        if self.strategy == "fsdp":
            raise ConfigFault(
                "train.strategy is fsdp, but each process plays games of its own, with a number of forward "
                "passes of its own, which a policy cut into pieces can't serve; use zero, which divides the "
                "optimiser's state, or policy.load_in_4bit if the policy is too large for one device"
            )
        if self.strategy in ("ddp", "zero") and self.processes == 1:
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


@dataclass(frozen=True)
class RunConfig:
    """One run: everything its numbers depend on."""

    seed: int = 0
    """Root of every random choice of the run."""
    env: EnvSettings = field(default_factory=EnvSettings)
    """Games."""
    prompt: PromptSettings = field(default_factory=PromptSettings)
    """Prompts."""
    policy: PolicySettings = field(default_factory=PolicySettings)
    """Model and adapters."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    """Drawing tokens."""
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    """Collecting episodes."""
    auxiliary: AuxiliaryRows = field(default_factory=AuxiliaryRows)
    """What state prediction and inverse dynamics look at."""
    batch: BatchSettings = field(default_factory=BatchSettings)
    """Updates per iteration."""
    loss: LossSettings = field(default_factory=LossSettings)
    """Loss terms."""
    optim: OptimSettings = field(default_factory=OptimSettings)
    """Optimiser."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Length and hardware."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """Panel."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigFault(f"seed is {self.seed}; use 0 or a positive number")
        if self.rollout.layout == "steps" and self.auxiliary.sp_rows == "policy" and self.loss.sp.weight > 0:
            raise ConfigFault(
                "auxiliary.sp_rows=policy reads state prediction off a growing conversation, which "
                "rollout.layout=steps does not have; set auxiliary.sp_rows=questions"
            )
        if self.env.train_games is not None and self.env.train_games < self.rollout.games:
            raise ConfigFault(
                f"env.train_games is {self.env.train_games}, fewer than the rollout.games="
                f"{self.rollout.games} of an iteration; use at least as many"
            )
        if self.loss.algorithm in COMPARES_EPISODES and self.rollout.episodes_per_game == 1:
            raise ConfigFault(
                f"rollout.episodes_per_game is 1, but loss.algorithm={self.loss.algorithm} compares the "
                "episodes of a game with each other; use at least 2, or reinforce++ or ppo"
            )
        if self.env.own and self.policy.model == "tiny":
            raise ConfigFault(
                f"policy.model is tiny, but no policy is embedded for env.name={self.env.name}; name a hub "
                "model or a folder, or tiny-alfworld for one that has never seen such texts"
            )
        if self.env.webshop.order == "workers":
            self._check_workers()
        if self.rollout.refill_rounds > 0 and self.env.train_games == self.rollout.games:
            raise ConfigFault(
                f"rollout.refill_rounds is {self.rollout.refill_rounds}, but each iteration plays all "
                f"env.train_games={self.env.train_games} games, so there are no others to play; use more "
                "training games, or refill_rounds=0"
            )
        if self.batch.micro_batches % self.train.processes:
            raise ConfigFault(
                f"batch.micro_batches is {self.batch.micro_batches}, which can't be shared out evenly to the "
                f"{self.train.processes} processes of train.devices={self.train.devices} times "
                f"train.nodes={self.train.nodes}; use a multiple of {self.train.processes}"
            )
        if self.train.strategy == "zero" and self.optim.eight_bit:
            raise ConfigFault(
                "train.strategy is zero, which divides a state of 32 bits, but optim.eight_bit is set; set "
                "it to false, or use train.strategy=ddp"
            )
        if self.sampling.server.url is not None:
            self._check_served()
        _ = self.bounded_rollout  # refuses a buffer longer than an answer
        check_objectives(self.loss, self.auxiliary, self.batch, self.prompt)
        others = [(f"objectives[{n}].schedule", o.schedule) for n, o in enumerate(self.loss.objectives)]
        for name, schedule in (("sp", self.loss.sp), ("id", self.loss.id), *others):
            if schedule.length is not None and schedule.length > self.train.iterations:
                raise ConfigFault(
                    f"loss.{name}.length is {schedule.length}, longer than the run's "
                    f"{self.train.iterations} iterations; shorten it, or use null for the whole run"
                )

    def _check_workers(self) -> None:
        if self.env.train_games is not None:
            raise ConfigFault(
                f"env.train_games is {self.env.train_games}, but env.webshop.order=workers draws from all "
                "goals; set it to null"
            )
        if self.rollout.refill_rounds > 0:
            raise ConfigFault(
                f"rollout.refill_rounds is {self.rollout.refill_rounds}, but env.webshop.order=workers has "
                "one game for each group and no others; use refill_rounds=0, or order=fixed"
            )

    def _check_served(self) -> None:
        if not self.policy.lora.enabled:
            raise ConfigFault(
                "policy.lora.enabled is false, but sampling.server.url is set, and a running server can only "
                "exchange adapters; set policy.lora.enabled=true, or sampling.server.url=null"
            )
        if self.policy.quantised:
            raise ConfigFault(
                "policy.load_in_4bit or policy.load_in_8bit is set beside sampling.server.url: the server's "
                "base would not be the quantised one that the adapters are trained on; load the base in "
                "policy.dtype, or set sampling.server.url=null"
            )

    @property
    def worded(self) -> PromptSettings:
        """Prompts in the wording of the environment that is played, unless another one is asked for."""
        if self.prompt.domain is not None:
            return self.prompt
        known: dict[str, Domain] = {"alfworld": "alfworld", "webshop": "webshop"}
        return replace(self.prompt, domain=known.get(self.env.name, "text"))

    @property
    def sp_in_conversation(self) -> bool:
        """State prediction is read off the observations of a growing conversation; else it is a question."""
        return self.auxiliary.sp_rows == "policy" and self.rollout.layout == "transcript"

    @property
    def bounded_rollout(self) -> RolloutSettings:
        """Rollouts, with the limit that overlong answers are measured against."""
        if self.rollout.overlong_limit is not None:
            return self.rollout
        return replace(self.rollout, overlong_limit=self.sampling.max_new_tokens)

    @property
    def bounded_loss(self) -> LossSettings:
        """The loss, with the number of tokens that a row of this layout can hold."""
        if self.loss.row_tokens is not None:
            return self.loss
        turns = self.env.steps if self.rollout.layout == "transcript" else 1
        return replace(self.loss, row_tokens=turns * self.sampling.max_new_tokens)

    @property
    def embodied(self) -> PolicySettings:
        """The policy; ``tiny`` is the embedded policy of the environment that is played."""
        named = replace(self.policy, model=embedded_policy(self.policy.model, self.env.name))
        # A merged copy would take memory and never be sampled from.
        return replace(named, merge_for_sampling=False) if self.sampling.server.url is not None else named

    @property
    def base_source(self) -> str:
        """Folder or hub id of the base model.

        Raises:
            PolicyFault: ``policy.model`` is neither.
        """
        return model_source(self.embodied.model)


def run_parser(prog: str, description: str) -> ArgumentParser:
    """Parser with every field of :class:`RunConfig` as an option, ``--config`` and ``--print_config``."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("yaml", _option_value, (yaml.YAMLError,))
    # No abbreviations: a misspelt option must be refused, not taken for the one it begins like.
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(RunConfig, nested_key=None, as_group=False)
    return parser


_load_option = get_loader("yaml")


def _option_value(text: str) -> Any:
    """The parser's own YAML (1e-3 is a number there) under the bounds of every other file."""
    if len(text) > _SHORT or "&" in text:
        check_yaml(text)
    try:
        return _load_option(text)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise yaml.YAMLError(f"a value can't be read: {error}") from error


def run_config(parser: ArgumentParser, parsed: Namespace) -> RunConfig:
    """Builds the configuration from what :func:`run_parser` parsed.

    Raises:
        ConfigFault: A field that needs a value has none.
    """
    _refuse_empty(parsed, RunConfig, "")
    built = parser.instantiate(parsed)
    return RunConfig(**{f.name: built[f.name] for f in fields(RunConfig)})


def _refuse_empty(values: Namespace, of: type, prefix: str) -> None:
    """A key without a value (`lr:`) is null, which the parser lets through whatever the type."""
    for name, hint in get_type_hints(of).items():
        value = values.get(name)
        if isinstance(value, Namespace) and is_dataclass(hint):
            _refuse_empty(value, cast(type, hint), f"{prefix}{name}.")
        elif value is None and name in values and NoneType not in get_args(hint):
            raise ConfigFault(f"{prefix}{name} is empty; give it a value, or leave the key out")


def config_from(*layers: Mapping[str, Any]) -> RunConfig:
    """Configuration from nested mappings, later ones winning.

    Raises:
        ConfigFault: A key is unknown or a value impossible; the message names it.
    """
    parser = _silent_parser()
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, nested(layer))
    try:
        parsed = parser.parse_object(merged)
    except ConfigFault:
        raise
    except Exception as error:
        raise ConfigFault(f"the configuration is not valid: {_plain_error(error)}") from error
    return run_config(parser, parsed)


@cache
def _silent_parser() -> ArgumentParser:
    """The parser of :func:`config_from`; made once, because that takes longer than parsing."""
    return run_parser("envrl", "")


def _plain_error(error: Exception) -> str:
    return " ".join(str(error).split())
