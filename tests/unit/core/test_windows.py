"""Models whose layers look at the last tokens only are sampled as they are trained; others are refused."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RecurrentGemmaConfig,
)

from envrl.errors import PolicyFault
from envrl.policy.attention import Reach, attends_to_all
from envrl.policy.cache import RaggedCache
from envrl.policy.sampler import CachedSession

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
END = 2


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """With weights large enough that what a layer looks at changes the scores by nats."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.3)
    return model


def whole_pass(model: PreTrainedModel, row: list[int]) -> torch.Tensor:
    """Log-probability of each token but the first, as transformers computes it without a cache."""
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    return scores.log_softmax(-1)[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        MistralConfig(**SMALL, sliding_window=8),
        Gemma3TextConfig(
            **SMALL, head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        Gemma3TextConfig(**SMALL, head_dim=16, sliding_window=8, layer_types=["sliding_attention"] * 2),
    ],
    ids=["qwen2", "mistral", "gemma3", "gemma3-windows-only"],
)
def test_windows_are_sampled_through(config: PretrainedConfig) -> None:
    model = random_model(config)
    assert not attends_to_all(model)
    rng = np.random.default_rng(0)
    # One row begins shorter than the window.
    rows: list[list[int]] = [[], [], []]
    session = CachedSession(model, 3, END)
    checked = 0
    for lengths in ((30, 3, 17), (1, 25, 12)):
        blocks = [[int(t) for t in rng.integers(3, 64, size=n)] for n in lengths]
        session.append(blocks)
        answers = session.sample([np.random.default_rng(n) for n in range(3)], 1.0, 6)
        for row, block, answer in zip(rows, blocks, answers, strict=True):
            row.extend(block)
            row.extend(answer.token_ids)
            true = whole_pass(model, row)[-len(answer.token_ids) :]
            assert answer.logprobs == pytest.approx(true.tolist(), abs=1e-4)
            checked += len(answer.token_ids)
    assert checked > 12


def test_the_masks_of_each_kind_and_filler_that_sees_something() -> None:
    # Two tokens are in the row. One is added, and three of filler behind it.
    cache = RaggedCache(1)
    cache.lengths = torch.tensor([2])
    positions, causal = cache.plan(torch.tensor([1]), 4)
    masks = Reach(window=2, mixed=True).masks(causal, positions)
    assert isinstance(masks, dict)
    assert masks["full_attention"].tolist() == [[[[True, True, True]] * 4]]
    assert masks["sliding_attention"].tolist() == [[[[False, True, True]] * 4]]
    alone = Reach(window=2, mixed=False).masks(causal, positions)
    assert isinstance(alone, torch.Tensor)
    assert torch.equal(alone, masks["sliding_attention"])
    assert Reach(window=None, mixed=True).masks(causal, positions) is causal


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (RecurrentGemmaConfig(**SMALL), r"policy\.model 'RecurrentGemma.*kind linear_attention.*server\.url"),
        (
            LlamaConfig(**SMALL, layer_types=["full_attention", "chunked_attention"]),
            r"policy\.model 'Llama.*kind chunked_attention",
        ),
        (LlamaConfig(**SMALL, attention_chunk_size=8), r"policy\.model 'Llama.*kind chunked_attention"),
    ],
    ids=["recurrent", "chunked", "chunked-throughout"],
)
def test_layers_of_other_kinds_are_refused(config: PretrainedConfig, words: str) -> None:
    with pytest.raises(PolicyFault, match=words):
        CachedSession(random_model(config), 1, END)


def test_a_model_that_asks_more_of_the_cache_is_refused() -> None:
    model = random_model(
        OPTConfig(
            vocab_size=64,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
        )
    )
    session = CachedSession(model, 1, END)
    session.append([[3, 4, 5]])
    with pytest.raises(PolicyFault, match=r"policy\.model.*OPTForCausalLM asks.*get_seq_length"):
        session.sample([np.random.default_rng(0)], 1.0, 2)
