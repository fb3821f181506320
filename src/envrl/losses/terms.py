"""What every loss returns, how terms are added up, and how their gradients compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from envrl.errors import ConfigFault

Denominator = int | float | Tensor
"""Number of targets in the whole update batch, what every sum over targets is divided by; > 0."""


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One summand of the loss, with what should be reported about it.

    Attributes:
        value: Scalar to be minimised, connected to the policy's graph.
        metrics: Detached scalars by name. Each is a sum over targets divided by the same denominator
            as the value, so the metrics of micro-batches add up to those of the whole batch.
    """

    value: Float[Tensor, ""]
    metrics: dict[str, Tensor]

    def __add__(self, other: LossTerm) -> LossTerm:
        """The term of both sets of targets, neither of which holds a target of the other."""
        names = {**self.metrics, **other.metrics}
        metrics = {
            name: sum((t.metrics[name] for t in (self, other) if name in t.metrics), torch.zeros(()))
            for name in names
        }
        return LossTerm(self.value + other.value, metrics)


@dataclass(frozen=True, slots=True)
class GradientAlignment:
    """Length of two gradients and the cosine of the angle between them.

    Attributes:
        norm_a: Euclidean norm over all parameters of the first gradient.
        norm_b: Euclidean norm over all parameters of the second gradient.
        cosine: In [-1, 1]; 0 when either gradient is zero, where no angle exists.
    """

    norm_a: float
    norm_b: float
    cosine: float


def at_least_float32(values: Tensor) -> Tensor:
    """Values in float32, or unchanged if they are float64: sums over many tokens need the mantissa."""
    return values if values.dtype == torch.float64 else values.float()


def same_shape(**tensors: Tensor) -> None:
    """Refuses tensors of different shapes, which would otherwise broadcast to a wrong loss in silence.

    Raises:
        ValueError: The shapes differ; a mistake of the calling code, hence with a traceback.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"All tensors must have one value per target, got shapes {shapes}: select targets first."
        )


def scaled_sum(values: Shaped[Tensor, "target"], denominator: Denominator) -> Float[Tensor, ""]:
    """Sum of the values divided by the denominator.

    Args:
        values: One number or flag per target of this micro-batch.
        denominator: Number of targets in the whole update batch, > 0 if there is any target here.

    Returns:
        Scalar in at least float32. Without targets it is 0 whatever the denominator, and still
        connected to the graph, so that ``backward`` gives zero gradients instead of an error or NaN.

    Raises:
        ConfigFault: There are targets but the denominator, given as a number, is not > 0.
    """
    total = at_least_float32(values).sum()
    if values.numel() == 0:
        return total
    # A tensor is not read here: that would make an accelerator wait for the device at every term.
    if not isinstance(denominator, Tensor) and not denominator > 0:
        raise ConfigFault(
            f"A loss over {values.numel()} targets got the denominator {denominator}: "
            "give the number of target tokens in the whole update batch."
        )
    return total / denominator


def combine(policy: LossTerm, auxiliary: Mapping[str, tuple[float, LossTerm]]) -> LossTerm:
    """Adds weighted auxiliary terms to the policy's term.

    L = L_policy + Σ weight_k · L_k (EnvRL, arXiv 2606.17680, the total objective). A term of weight
    exactly 0 is left out of the sum rather than multiplied by 0, so the value and every gradient are
    bitwise those of the loss without the term, even when the term is infinite. Its metrics are kept,
    which lets a run without the auxiliary losses still measure them.

    Args:
        policy: The term the auxiliary ones are added to, in weight 1.
        auxiliary: Weight and term by name. Weights are finite; a bonus such as entropy is already
            negated in its term.

    Returns:
        The sum, with all metrics and, unweighted, ``loss_policy`` and ``loss_<name>`` for each term.

    Raises:
        ConfigFault: A weight is NaN or infinite.
        ValueError: Two terms report a metric of the same name.
    """
    value = policy.value
    metrics = {**policy.metrics, "loss_policy": policy.value.detach()}
    for name, (weight, term) in auxiliary.items():
        if not math.isfinite(weight):
            raise ConfigFault(f"The weight of the loss term {name!r} is {weight}: give a finite number.")
        if weight != 0:
            value = value + weight * term.value
        added = {**term.metrics, f"loss_{name}": term.value.detach()}
        if clash := sorted(metrics.keys() & added.keys()):
            raise ValueError(
                f"The loss term {name!r} reports {clash}, which another term reports too: rename."
            )
        metrics |= added
    return LossTerm(value, metrics)


def gradient_alignment(
    gradients_a: Sequence[Tensor | None], gradients_b: Sequence[Tensor | None]
) -> GradientAlignment:
    """Norms of two gradients and their cosine, over the same parameters in the same order.

    Args:
        gradients_a: One tensor per parameter; ``None`` (as ``torch.autograd.grad`` gives for a parameter
            that the loss does not reach) counts as zero.
        gradients_b: The same for the other loss; shapes agree pairwise.

    Returns:
        Norms and cosine; without parameters all three are 0.

    Raises:
        ValueError: The sequences differ in length, or a pair of tensors in shape.
    """
    square_a = square_b = product = 0.0
    for a, b in zip(gradients_a, gradients_b, strict=True):
        if a is not None and b is not None:
            same_shape(gradient_a=a, gradient_b=b)
            product += _dot(a, b)
        square_a += 0.0 if a is None else _dot(a, a)
        square_b += 0.0 if b is None else _dot(b, b)
    norm_a, norm_b = math.sqrt(square_a), math.sqrt(square_b)
    if norm_a == 0 or norm_b == 0:
        return GradientAlignment(norm_a, norm_b, 0.0)
    # Rounding can push parallel gradients a hair beyond 1.
    return GradientAlignment(norm_a, norm_b, max(-1.0, min(1.0, product / norm_a / norm_b)))


def _dot(a: Tensor, b: Tensor) -> float:
    """Inner product in at least float32: squares of small bfloat16 gradients would vanish."""
    return float(torch.dot(at_least_float32(a.detach()).flatten(), at_least_float32(b.detach()).flatten()))
