"""Blocks of tokens that are added to rows of a cache, in one flat sequence without filler.

What environments answer differs in length, so blocks padded to the longest would be filler for the most
part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from jaxtyping import Int
from torch import Tensor

from envrl.policy.attention import Bucket, bucketed


@dataclass
class Blocks:
    """Where the tokens of some blocks stand in one flat sequence.

    Attributes:
        token_ids: The blocks, one after the other.
        rows: Row of the cache of each token.
        positions: Place of each in its row.
        ends: Place of every block's last token in the flat sequence.
        members: Rows of each bucket.
        buckets: See :class:`~envrl.policy.attention.FlatLayout`, as the following.
        queries: As there.
        answers: As there.
        layers: As there.
    """

    token_ids: Int[Tensor, "1 tokens"]
    rows: Int[Tensor, "1 tokens"]
    positions: Int[Tensor, "1 tokens"]
    ends: Int[Tensor, " blocks"]
    members: tuple[Tensor, ...]
    buckets: tuple[Bucket, ...]
    queries: Int[Tensor, " asked"]
    answers: Int[Tensor, " tokens"]
    layers: int = field(default=0, compare=False)

    def seen(self, states: Tensor) -> list[Tensor]:
        """As :class:`~envrl.policy.attention.FlatLayout` has it, of ``[rows, heads, seen, head_dim]``."""
        return [
            states[rows, :, : bucket.seen] for rows, bucket in zip(self.members, self.buckets, strict=True)
        ]


def lay_out(
    rows: Sequence[int], blocks: Sequence[Sequence[int]], lengths: Sequence[int], device: torch.device
) -> Blocks:
    """Lays out blocks behind what their rows hold.

    Args:
        rows: Different rows of the cache.
        blocks: Tokens for each, at least one.
        lengths: Tokens that every row of the cache holds.
        device: Where the result is needed.
    """
    sizes = list(lengths)
    firsts: dict[int, int] = {}
    used = 0
    for row, block in zip(rows, blocks, strict=True):
        sizes[row] += len(block)
        firsts[row] = used
        used += len(block)
    made = list(bucketed([(row, lengths[row]) for row in rows], sizes))
    buckets = tuple(Bucket.of(members, sizes, device) for members in made)
    queries: list[int] = []
    answers = [0] * used
    for bucket, members in zip(buckets, made, strict=True):
        for row, start in members:
            own = range(firsts[row], firsts[row] + sizes[row] - start)
            answers[own.start : own.stop] = range(len(queries), len(queries) + len(own))
            queries.extend(own)
            queries.extend([0] * (bucket.asked - len(own)))

    def tensor(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    return Blocks(
        tensor(list(chain.from_iterable(blocks)))[None],
        tensor([row for row, block in zip(rows, blocks, strict=True) for _ in block])[None],
        tensor([p for row in rows for p in range(lengths[row], sizes[row])])[None],
        tensor([firsts[row] + sizes[row] - lengths[row] - 1 for row in rows]),
        tuple(tensor([row for row, _ in members]) for members in made),
        buckets,
        tensor(queries),
        tensor(answers),
    )
