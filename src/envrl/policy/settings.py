"""Settings of the policy and of sampling; imports no model library, so that ``--help`` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from envrl.errors import ConfigFault, PolicyFault

EMBEDDED = {
    "tiny-alfworld": Path(__file__).parent / "tiny_checkpoint",
    "tiny-webshop": Path(__file__).parent / "tiny_webshop_checkpoint",
}
"""Policies that come with the package, one for each environment: with a million parameters, one for both
would have to share its vocabulary and its weights between texts that have nothing in common."""
TINY_CHECKPOINT = EMBEDDED["tiny-alfworld"]


def embedded_policy(model: str, env: str) -> str:
    """Name of the embedded policy that ``tiny`` means on an environment; other names stay."""
    return f"tiny-{env}" if model == "tiny" else model


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (peft)."""

    enabled: bool = True
    """Train adapters; false trains every parameter."""
    rank: int = 16
    """Rank of the adapters."""
    alpha: float = 32.0
    """Scaling: the update is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout inside the adapters while training; anything but 0 makes sampler and trainer differ."""
    targets: str = "all-linear"
    """Modules that get adapters: all-linear, or names separated by commas (q_proj,v_proj)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigFault(
                f"policy.lora.rank is {self.rank}; use at least 1, or policy.lora.enabled=false"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigFault(f"policy.lora.dropout is {self.dropout}; use a number in [0, 1)")


@dataclass(frozen=True)
class PolicySettings:
    """Which model acts and how it is loaded."""

    model: str = "tiny"
    """tiny (the embedded one of the environment), a hub id (Qwen/Qwen2.5-1.5B-Instruct) or a folder in
    Hugging Face format."""
    lora: LoraSettings = LoraSettings()
    """Adapters."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Precision of the weights; auto takes the checkpoint's own."""
    load_in_4bit: bool = False
    """Quantise the base to NF4 with bitsandbytes (QLoRA); needs adapters."""
    load_in_8bit: bool = False
    """Quantise the base to 8 bit with bitsandbytes; needs adapters."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    packed: bool = True
    """Compute the rows of an update without padding, and what several rows begin with once for all of them
    (only where adapters have no dropout): the same loss from fewer tokens. false pads every row."""
    score_chunk: int = 134_217_728
    """Most scores (target tokens of an update, times words of the vocabulary) that are computed at once; more
    are computed in parts, and again in the backward pass: the same loss from less memory. The default is
    512 MiB in float32, 883 tokens of Qwen2.5."""
    merge_for_sampling: bool = True
    """Sample from a copy of the base with the adapters merged in (faster, one copy more in memory);
    false samples through the adapters. Quantised bases are never merged, and with train.strategy=fsdp
    there is no copy."""

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise ConfigFault("policy.load_in_4bit and policy.load_in_8bit are both set; choose one")
        if (self.load_in_4bit or self.load_in_8bit) and not self.lora.enabled:
            raise ConfigFault("a quantised base can't be trained itself; set policy.lora.enabled=true")
        if self.score_chunk < 1:
            raise ConfigFault(
                f"policy.score_chunk is {self.score_chunk}; use a positive number, e.g. 134217728 (512 MiB)"
            )

    @property
    def quantised(self) -> bool:
        """Whether the base weights are stored in 4 or 8 bits."""
        return self.load_in_4bit or self.load_in_8bit


@dataclass(frozen=True)
class ServerSettings:
    """A vLLM server that draws the tokens in place of the built-in sampler; docs/serving.md says how."""

    url: str | None = None
    """Address of the server (http://localhost:8000); null samples in this process."""
    model: str | None = None
    """Name under which the server offers the base model; null: the name or folder in policy.model."""
    adapters: str = "mlruns/adapters"
    """Folder for the current adapters; the server must see it under the same absolute path."""
    timeout_s: float = 120.0
    """Seconds until a request that has no answer counts as failed."""
    retries: int = 3
    """Repetitions of a request that failed without being refused, each after a longer pause."""
    max_gap: float = 0.05
    """Largest mean difference, in nats, between the server's log-probabilities and those of the trained
    model on the same tokens; measured whenever new weights are first sampled from."""

    def __post_init__(self) -> None:
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.username is not None or parts.password is not None:
                raise ConfigFault(
                    "sampling.server.url holds a user or password, which would be written to logs; put a "
                    "key into the environment variable ENVRL_SERVER_API_KEY"
                )
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ConfigFault(
                    f"sampling.server.url is '{self.url}'; use an address such as http://localhost:8000"
                )
        if not self.adapters:
            raise ConfigFault("sampling.server.adapters is empty; name a folder that the server sees")
        for name in ("timeout_s", "max_gap"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigFault(f"sampling.server.{name} is {value}; use a positive number")
        if self.retries < 0:
            raise ConfigFault(f"sampling.server.retries is {self.retries}; use 0 (none) or more")


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn."""

    max_new_tokens: int = 24
    """Most tokens of one answer, the end-of-turn token included."""
    temperature: float = 1.0
    """Softmax temperature while training; 0 means greedy."""
    eval_temperature: float = 0.4
    """Softmax temperature while evaluating; 0 means greedy."""
    max_context: int = 2048
    """Longest sequence in tokens; an episode whose conversation outgrows it is truncated."""
    server: ServerSettings = ServerSettings()
    """Drawing them on a vLLM server."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigFault(f"sampling.max_new_tokens is {self.max_new_tokens}; use at least 1")
        for name in ("temperature", "eval_temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigFault(f"sampling.{name} is {value}; use 0 (greedy) or a positive number")
        if self.max_context <= self.max_new_tokens:
            raise ConfigFault(
                f"sampling.max_context is {self.max_context}, which leaves no room for a prompt beside an "
                f"answer of sampling.max_new_tokens={self.max_new_tokens}; use a larger number"
            )


def model_source(model: str) -> str:
    """What transformers is told to load: the embedded checkpoint's folder, a folder, or a hub id.

    Raises:
        PolicyFault: The name is none of these; needs no model library to find out.
    """
    name = embedded_policy(model, "alfworld")
    embedded = EMBEDDED.get(name)
    if embedded is not None:
        if not (embedded / "config.json").is_file():
            raise PolicyFault(
                f"the embedded checkpoint is missing from {embedded}; reinstall the package or "
                f"rebuild it with `python -m envrl.policy.tiny --env {name.removeprefix('tiny-')}`"
            )
        return str(embedded)
    path = Path(model).expanduser()
    if path.exists() and not (path / "config.json").is_file():
        raise PolicyFault(
            f"policy.model '{model}' exists but holds no config.json; give a folder that "
            "save_pretrained wrote"
        )
    if path.exists() and not [*path.glob("*.safetensors")]:
        raise PolicyFault(
            f"policy.model '{model}' holds a config.json and no weights in safetensors format, the only one "
            "that is read; give a folder that save_pretrained wrote"
        )
    if not path.exists() and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise PolicyFault(
            f"policy.model '{model}' is neither `tiny`, an existing folder nor a hub id (owner/name)"
        )
    return str(path) if path.exists() else model
