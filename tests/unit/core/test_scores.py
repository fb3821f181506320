"""Scores in parts: the same losses and gradients, from no more scores at once than allowed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from envrl.errors import ConfigFault
from envrl.losses.schedules import Schedule
from envrl.policy.batch import Denominators, RolloutBatch, RowBatch, RowKind, TargetCounts
from envrl.policy.model import Policy
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.training.module import EnvRLModule
from envrl.training.scores import target_scores
from envrl.training.settings import LossSettings, ObjectiveSettings, OptimSettings
from envrl.types import Role
from support import WORDS, adapters, nudge, policy_of, word_chat, word_checkpoint

SMALL = len(WORDS) * 7
"""Seven tokens at a time."""
HALF = Schedule("constant", 0.5)
ALL = LossSettings(
    sp=HALF,
    id=HALF,
    entropy_coefficient=0.1,
    kl_coefficient=0.1,
    objectives=(ObjectiveSettings("paw", HALF), ObjectiveSettings("echo", HALF)),
)


def rows(kinds: list[RowKind], generator: torch.Generator) -> RowBatch:
    """Rows of 24 tokens whose roles alternate, all observations marked."""
    shape = (len(kinds), 24)
    kind = torch.tensor([int(k) for k in kinds])
    pattern = torch.tensor([Role.PROMPT, Role.ACTION, Role.OBSERVATION] * 8, dtype=torch.uint8)
    roles = pattern.repeat(len(kinds), 1)
    marks = ((roles == Role.OBSERVATION) & (kind == RowKind.POLICY)[:, None]).float() * 0.5
    return RowBatch(
        torch.randint(2, len(WORDS), shape, generator=generator),
        roles,
        -2.0 + 0.3 * torch.randn(shape, generator=generator),
        torch.randn(shape, generator=generator) * (roles == Role.ACTION),
        kind,
        torch.zeros(len(kinds), dtype=torch.long),
        torch.full((len(kinds),), 24),
        marks={"paw": marks, "echo": marks},
    )


def batch() -> RolloutBatch:
    generator = torch.Generator().manual_seed(0)
    others = {name: TargetCounts(24.0, 3.0, 12.0) for name in ("paw", "echo")}
    counts = Denominators(24.0, 24.0, 16.0, 2.0, 3.0, others=others)
    policy = rows([RowKind.POLICY] * 3, generator)
    return RolloutBatch(policy, rows([RowKind.INVERSE_DYNAMICS] * 2, generator), counts, 0, False)


def measured(
    loss: LossSettings, lora: LoraSettings, **settings: Any
) -> tuple[dict[str, float], torch.Tensor]:
    """Everything an update reports, and its gradient; gradients of each term are measured before."""
    policy = policy_of(word_checkpoint(), lora=lora, **settings)
    module = EnvRLModule(policy, loss, OptimSettings(), iterations=5, micro_batches=1, diagnose_every=1)
    nudge(policy)
    module.training_step(batch(), 0).backward()
    found = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    return dict(module._accounts.sums) | module._gradients.metrics(), torch.cat(found)


@pytest.mark.parametrize("lora", [LoraSettings(enabled=False), adapters()], ids=["full", "adapters"])
@pytest.mark.parametrize(
    "loss",
    [
        LossSettings(entropy_coefficient=0.0),
        LossSettings(entropy_coefficient=0.1),
        LossSettings(entropy_coefficient=0.0, kl_coefficient=0.1),
        *(LossSettings(entropy_coefficient=0.0, **{name: HALF}) for name in ("sp", "id")),
        *(
            LossSettings(entropy_coefficient=0.0, objectives=(ObjectiveSettings(name, HALF),))
            for name in ("paw", "echo")
        ),
        ALL,
    ],
    ids=["policy", "entropy", "kl", "sp", "id", "paw", "echo", "all"],
)
def test_losses_and_gradients_are_those_of_one_part(loss: LossSettings, lora: LoraSettings) -> None:
    metrics, gradient = measured(loss, lora)
    in_parts, gradient_in_parts = measured(loss, lora, score_chunk=SMALL)
    assert in_parts == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    assert {"sp_ce", "id_token_accuracy", "entropy", "kl"} <= metrics.keys()
    scale = float(gradient.abs().max())
    assert scale > 1e-3
    torch.testing.assert_close(gradient_in_parts, gradient, rtol=1e-4, atol=1e-6 * max(1.0, scale))


def test_with_gradient_checkpointing_too() -> None:
    """Parts are computed again inside a backward pass that computes layers again."""
    _, gradient = measured(ALL, adapters())
    _, twice = measured(ALL, adapters(), score_chunk=SMALL, gradient_checkpointing=True)
    torch.testing.assert_close(twice, gradient, rtol=1e-4, atol=1e-6 * max(1.0, float(gradient.abs().max())))


def test_where_one_part_is_enough_not_a_bit_changes() -> None:
    whole = measured(ALL, adapters())
    just = measured(ALL, adapters(), score_chunk=24 * len(WORDS))
    assert just[0] == whole[0]
    assert torch.equal(just[1], whole[1])


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__.split(".")[0] not in ("t", "detach", "view", "transpose", "alias"):
            sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            self.numbers = max([self.numbers, *sizes])
        return result


def wide_policy(words: int, **settings: Any) -> Policy:
    """A random Qwen2 with a vocabulary far wider than its hidden states."""
    config = Qwen2Config(
        vocab_size=words,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return Policy(Qwen2ForCausalLM(config), word_chat(), PolicySettings(lora=adapters(), **settings))


@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_only_one_part_is_in_memory(entropy_gradient: bool) -> None:
    """Of 400 targets in a vocabulary of 50,000 words: 20 million scores, or 40 tokens' at a time."""
    words, targets = 50_000, torch.arange(400)
    kept: dict[int, int] = {}
    largest: dict[int, int] = {}
    gradients = []
    for chunk in (1_000_000_000, 40 * words):
        policy = wide_policy(words, score_chunk=chunk)
        hidden = torch.randn(400, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
        saved: list[int] = []
        watch = Largest()

        def keep(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel())
            return tensor

        with watch, saved_tensors_hooks(keep, lambda tensor: tensor):
            told = target_scores(
                policy, hidden, targets, entropy=True, entropy_gradient=entropy_gradient, ranks=True
            )
            (told.logprobs.sum() + 0.1 * told.entropies.sum()).backward()
        assert told.entropies.requires_grad == entropy_gradient
        # The transposed weights of the head are saved with the inputs of its product.
        kept[chunk], largest[chunk] = max(n for n in saved if n != words * 8), watch.numbers
        assert hidden.grad is not None
        gradients.append(hidden.grad)
    whole, parts = sorted(kept, reverse=True)
    assert (kept[whole], largest[whole]) == (400 * words, 400 * words)
    assert kept[parts] <= 400 * 8
    assert largest[parts] == 40 * words
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_size_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ConfigFault, match="score_chunk is 0; use a positive number"):
        replace(PolicySettings(), score_chunk=0)
