"""How the losses of tokens become the loss of an update: who weighs how much."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envrl.errors import ConfigFault
from envrl.losses.terms import same_shape

Aggregation = Literal["tokens", "rows", "constant"]
"""What is averaged, see :func:`token_weights`."""


def token_weights(
    row_tokens: Int[Tensor, "target"],
    *,
    aggregation: Aggregation,
    action_tokens: float,
    rows: float,
    row_limit: int | None = None,
) -> Float[Tensor, "target"] | None:
    """Weight of every target token in a sum that is then divided by ``action_tokens``.

    With ℓ the loss of a token, N all written tokens of the update, R its rows and n_r the written tokens
    of row r:

    - ``tokens``: Σ ℓ / N. Every token counts the same, long rows more (DAPO, arXiv 2503.14476, section 3.3).
    - ``rows``: 1/R · Σ_r 1/n_r · Σ ℓ. Every row counts the same, tokens of long rows less (GRPO, arXiv
      2402.03300, eq. 3).
    - ``constant``: 1/R · Σ_r 1/L · Σ ℓ. Neither is divided by its own length, which would favour long
      wrong answers (Dr. GRPO, arXiv 2503.20783, section 3); L is one constant.

    All three denominators are those of the whole update, so micro-batches add up to one batch. Losses
    need no second denominator: a weight is what a token counts beyond 1/N.

    Args:
        row_tokens: Written tokens of the row each target belongs to, >= 1.
        aggregation: See above.
        action_tokens: N, written tokens in the whole update batch.
        rows: R, rows of the whole update batch that hold such a token.
        row_limit: L, only for ``constant``: written tokens that a row is divided by, > 0.

    Returns:
        ``None`` where every weight is 1 (``tokens``), so that nothing is multiplied. Under ``rows`` the
        weights of an update have mean 1.

    Raises:
        ConfigFault: The aggregation is unknown, or ``constant`` has no length above 0.
    """
    if aggregation not in get_args(Aggregation):
        raise ConfigFault(f"Unknown aggregation {aggregation!r}: give one of {get_args(Aggregation)}.")
    if aggregation == "tokens":
        return None
    if aggregation == "rows":
        return (action_tokens / rows) / row_tokens.float() if row_tokens.numel() else row_tokens.float()
    if row_limit is None or not row_limit > 0:
        raise ConfigFault(f"aggregation is constant and its length {row_limit}: give a number of tokens > 0.")
    share = action_tokens / (rows * row_limit) if row_tokens.numel() else 0.0
    return torch.full_like(row_tokens, share, dtype=torch.float32)


def weighted(losses: Float[Tensor, "target"], weights: Float[Tensor, "target"] | None) -> Tensor:
    """Losses of tokens times their weights; ``None`` leaves them as they are, bit by bit.

    Raises:
        ValueError: There is not one weight per loss.
    """
    if weights is None:
        return losses
    same_shape(losses=losses, weights=weights)
    return losses * weights.detach()
