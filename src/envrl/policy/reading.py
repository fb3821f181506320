"""Reading models and tokenizers that may come from strangers, and saying what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as hf_logging

from envrl.errors import PolicyFault
from envrl.policy.settings import LoraSettings, PolicySettings, model_source

UNTRUSTED: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
"""Weights of strangers: no pickle, and no Python file that lies beside them."""
_GENERAL_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")


def read_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder or hub id as it was saved.

    A tokenizer saved under the general class is described by its ``tokenizer.json`` alone. Asked by the
    model's type, transformers would take the class of that type (``Qwen2Tokenizer``), which splits texts
    by rules of its own: other tokens than those the model was trained on.
    """
    named = get_tokenizer_config(source).get("tokenizer_class")
    if named in _GENERAL_TOKENIZERS:
        return cast(PreTrainedTokenizerBase, PreTrainedTokenizerFast.from_pretrained(source))
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source, trust_remote_code=False))


def read_config(source: str) -> PreTrainedConfig:
    """Loads the model's configuration, with every noise that it adds in training at 0.

    A policy gradient compares the trained policy with the one that was sampled from. Dropout of the base
    model, or jitter of a router, would make them differ before anything is learned.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    _silence(config)
    return cast(PreTrainedConfig, config)


def _silence(config: PreTrainedConfig) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _silence(value)
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(config, name, 0.0)


@contextmanager
def reading(settings: PolicySettings) -> Iterator[None]:
    """Names the model in what goes wrong while it is read.

    Raises:
        PolicyFault: With the remedy, for whatever was raised inside.
    """
    try:
        with quiet():
            yield
    # Broken files raise whatever the library that reads them likes: KeyError, SafetensorError, ...
    except Exception as error:
        raise PolicyFault(
            f"policy.model '{settings.model}' can't be loaded ({first_line(error)}); {_remedy(settings)}"
        ) from error


def _remedy(settings: PolicySettings) -> str:
    """What to do about a model that can't be read: most often a hub model without a network."""
    source = model_source(settings.model)
    usual = "use tiny, a folder in Hugging Face format, or the id of a causal language model"
    try:
        known = Path(source).exists() or isinstance(try_to_load_from_cache(source, "config.json"), str)
    except HFValidationError:  # no id at all
        known = True
    if known:
        return usual
    reached = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the hub did not give it"
    return (
        f"its config.json is not in the cache {HF_HUB_CACHE}, and {reached}: download the model where there "
        f"is a network (hf download {source}) and set HF_HOME to that cache, set HF_TOKEN if it is gated, or "
        f"{usual}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, and no warning of one library about what another of them does."""
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft asks transformers for this property, under the name of earlier versions.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()


def load_dtype(settings: PolicySettings) -> torch.dtype | str:
    """Type of the weights; ``auto`` is the one they were saved in."""
    return settings.dtype if settings.dtype == "auto" else cast(torch.dtype, getattr(torch, settings.dtype))


def quantisation(settings: PolicySettings) -> BitsAndBytesConfig | None:
    """How the base is quantised; None where it is not."""
    if settings.load_in_4bit:
        compute = torch.float32 if settings.dtype == "float32" else torch.bfloat16
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if settings.load_in_8bit else None


def keep_layout(model: nn.Module) -> None:
    """Has layers of 4 bits compute alike on all processors, and in evaluation as in training.

    On processors with AVX512-BF16, bitsandbytes lays such a layer's weights out anew in its first pass of
    evaluation. From then on it multiplies in bfloat16 and passes no gradient to its input: what is sampled
    would not be what is trained, and gradients would be wrong after the first rollout. A layer whose number
    of outputs is no multiple of 32 fails an assertion.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def require_bitsandbytes(settings: PolicySettings) -> None:
    """Quantises a small matrix on the spot, so that what the hardware can't do is known at once.

    Raises:
        PolicyFault: It can't be done here.
    """
    option = "policy.load_in_4bit" if settings.load_in_4bit else "policy.load_in_8bit"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        import bitsandbytes.functional as bnb

        probe = torch.ones(64, 64, device=device)
        if settings.load_in_4bit:
            bnb.dequantize_4bit(*bnb.quantize_4bit(probe, quant_type="nf4"))
        else:
            bnb.int8_vectorwise_quant(probe.half())
    except Exception as error:
        raise PolicyFault(
            f"{option} is set, but bitsandbytes can't quantise on this machine's {device} "
            f"({first_line(error)}); set {option}=false or use a supported GPU"
        ) from error


def first_line(error: BaseException) -> str:
    """The beginning of an error's text; its kind where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def lora_config(settings: LoraSettings) -> LoraConfig:
    """The adapters as peft wants them described."""
    names = settings.targets.replace(" ", "")
    return LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=names if names == "all-linear" else names.split(","),
        task_type="CAUSAL_LM",
    )
