"""How many floating-point operations a model takes: counted while it runs, and worked out by hand.

Counted is what is computed, filler and what a mask hides included. Causal attention counts as half the
square of queries and keys, because kernels skip what lies above the diagonal. By hand is what has to be
computed for the rows as they are, without filler and with nothing shared between them
(:class:`ModelSize`), so it does not change with how an implementation goes about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from envrl.policy.batch import RolloutBatch
from envrl.policy.model import Policy
from envrl.types import Group

_ATEN = torch.ops.aten
_FORWARD = (
    _ATEN._scaled_dot_product_flash_attention_for_cpu,
    _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_efficient_attention,
    _ATEN._scaled_dot_product_cudnn_attention,
)
_BACKWARD = (
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward,
    _ATEN._scaled_dot_product_flash_attention_backward,
    _ATEN._scaled_dot_product_efficient_attention_backward,
    _ATEN._scaled_dot_product_cudnn_attention_backward,
)


def _formula(operator: Any, count: Callable[..., int], shapes: int) -> Callable[..., int]:
    """Operations of an attention call.

    Args:
        operator: What is called.
        count: Gives them for the whole square, from the shapes of the first arguments.
        shapes: Number of these.
    """
    place = [argument.name for argument in operator.default._schema.arguments].index("is_causal")

    def operations(*args: Any, out_shape: Any = None, **options: Any) -> int:
        # Arguments that equal their default at the end are not handed over.
        causal = args[place] if len(args) > place else options.get("is_causal", False)
        return count(*args[:shapes]) // (2 if causal else 1)

    return operations


def counter() -> FlopCounterMode:
    """Counts matrix products and attention; torch's own leaves out attention on the CPU."""
    formulas = {op: _formula(op, sdpa_flop_count, 3) for op in _FORWARD}
    formulas |= {op: _formula(op, sdpa_backward_flop_count, 4) for op in _BACKWARD}
    return FlopCounterMode(display=False, custom_mapping=formulas)


@dataclass(frozen=True)
class ModelSize:
    """What decides how many operations a model needs; its weights are not quantised.

    Attributes:
        base: Weights in the matrices of the layers, without adapters.
        passed: The same with adapters: what a token of an update goes through.
        trained: Those among them that are trained.
        head: Weights in the matrix that gives the scores.
        trained_head: The same if it is trained, else 0.
        pair: Operations of a query and a key, forward, all layers together: 4 · heads · head_dim · layers.
    """

    base: int
    passed: int
    trained: int
    head: int
    trained_head: int
    pair: int

    @staticmethod
    def of(policy: Policy) -> ModelSize:
        """Of a policy; every layer looks at all tokens before."""
        causal = policy.causal
        config = causal.config.get_text_config()
        matrices = [
            (name, p)
            for name, p in causal.get_decoder().named_parameters()
            if p.dim() > 1 and "embed" not in name
        ]
        head = causal.get_output_embeddings().weight
        heads = int(config.num_attention_heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return ModelSize(
            base=sum(p.numel() for name, p in matrices if "lora_" not in name),
            passed=sum(p.numel() for _, p in matrices),
            trained=sum(p.numel() for _, p in matrices if p.requires_grad),
            head=head.numel(),
            trained_head=head.numel() if head.requires_grad else 0,
            pair=4 * heads * width * int(config.num_hidden_layers),
        )

    def forward(self, lengths: Sequence[int], scored: int) -> float:
        """Operations to play rows: two a weight and token, attention, and scores of the tokens drawn."""
        return 2.0 * (self.base * sum(lengths) + self.head * scored) + self._attention(lengths)

    def update(self, lengths: Sequence[int], scored: int) -> float:
        """Operations to learn from rows, forward and backward.

        Backward takes twice as many as forward: as many for the gradients of states and as many for those of
        weights. The latter are not needed of weights that are not trained. Attention backward is twice
        attention forward: what kernels compute again is not counted.
        """
        tokens = sum(lengths)
        forward = 2.0 * (self.passed * tokens + self.head * scored)
        weights = 2.0 * (self.trained * tokens + self.trained_head * scored)
        return 2 * forward + weights + 3 * self._attention(lengths)

    def _attention(self, lengths: Iterable[int]) -> float:
        return self.pair * sum(n * n for n in lengths) / 2


def played_rows(groups: Sequence[Group], layout: str) -> tuple[list[int], int]:
    """Tokens of every sequence that was played, and tokens drawn in all.

    In ``transcript`` an episode is one sequence, in ``steps`` every prompt with its answer is one.
    """
    lengths, drawn = [], 0
    for trajectory in (t for group in groups for t in group.trajectories):
        generations = [t.generation for t in trajectory.transitions]
        drawn += sum(len(g.token_ids) for g in generations)
        whole = generations[-1:] if layout == "transcript" else generations
        lengths += [len(g.prompt_ids) + len(g.token_ids) for g in whole]
    return lengths, drawn


def learnt_rows(batches: Sequence[RolloutBatch], micro_batches: int) -> tuple[list[int], int]:
    """Tokens of every row of an iteration's updates, and target tokens in all."""
    rows = [r for batch in batches for r in (batch.policy, batch.questions) if r is not None]
    lengths = [int(n) for r in rows for n in r.lengths]
    # Micro-batches of an update share their counts.
    counts = [batch.denominators for batch in batches[::micro_batches]]
    return lengths, round(sum(c.taken_tokens + c.sp_tokens + c.id_tokens for c in counts))
