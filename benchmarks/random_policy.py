"""Writes a randomly initialised Qwen2 of a given shape: as slow as a trained one, and made on the spot.

It speaks with the embedded policy's tokenizer. Its answers mean nothing, so episodes are as long as they may
be.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from envrl.policy.reading import quiet, read_tokenizer
from envrl.policy.settings import model_source

SHAPES: dict[str, dict[str, int]] = {
    # For tests.
    "small": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 4096,
    },
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151_936,
    },
}


def write_random(shape: str, folder: Path, dtype: torch.dtype, env: str = "alfworld") -> Path:
    """Writes configuration, weights in safetensors and tokenizer.

    Args:
        shape: One of :data:`SHAPES`.
        folder: Where to.
        dtype: Of the weights.
        env: Whose embedded policy's tokenizer is taken.
    """
    tokenizer = read_tokenizer(model_source(f"tiny-{env}"))
    config = Qwen2Config(
        **SHAPES[shape],
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with quiet():
        Qwen2ForCausalLM(config).to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
