"""The configuration of a run, and how YAML and command line become one.

Every field is a line of ``--help``; unknown keys are refused; ``--print_config`` prints all of it as YAML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import NoneType
from typing import Any, cast, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

from envrl.errors import ConfigFault
from envrl.experiments.checks import (
    check_episodes,
    check_games_left,
    check_lengths,
    check_objectives,
    check_pieces,
    check_processes,
    check_served,
    check_workers,
)
from envrl.experiments.plain import check_yaml, merge, nested
from envrl.experiments.settings import EnvSettings, EvaluationSettings, TrainSettings
from envrl.policy.settings import PolicySettings, SamplingSettings, embedded_policy, model_source
from envrl.prompts.settings import Domain, PromptSettings
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.training.settings import LossSettings, OptimSettings

_SHORT = 64
"""Characters up to which an option's value without aliases can't be a bomb."""


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
        check_episodes(self.env, self.rollout, self.auxiliary, self.loss)
        if self.env.own and self.policy.model == "tiny":
            raise ConfigFault(
                f"policy.model is tiny, but no policy is embedded for env.name={self.env.name}; name a hub "
                "model or a folder, or tiny-alfworld for one that has never seen such texts"
            )
        if self.env.webshop.order == "workers":
            check_workers(self.env, self.rollout)
        check_games_left(self.env, self.rollout)
        check_processes(self.train, self.batch, self.optim)
        if self.train.strategy == "fsdp":
            check_pieces(self.train, self.policy, self.loss, self.optim)
        if self.sampling.server.url is not None:
            check_served(self.policy)
        _ = self.bounded_rollout  # refuses a buffer longer than an answer
        check_objectives(self.loss, self.auxiliary, self.batch, self.prompt)
        check_lengths(self.loss, self.train)

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
