"""How long the gradient of each loss term is, and whether it pulls the policy's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from envrl.losses.terms import LossTerm, gradient_alignment
from envrl.policy.ranks import Ranks


class TermGradients:
    """Each term's own gradient, unweighted, summed over the micro-batches of an iteration.

    Args:
        parameters: What is trained.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._sums: dict[str, list[Tensor]] = {}
        self._before: dict[str, list[Tensor]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Terms that have a gradient."""
        return tuple(self._sums)

    def begin_update(self) -> None:
        """What :meth:`drop` goes back to is what was added so far."""
        self._before = dict(self._sums)

    def drop(self) -> None:
        """Takes back what was added for the update under way, because it isn't made."""
        self._sums = dict(self._before)

    def add(self, terms: Mapping[str, LossTerm]) -> None:
        """Adds the gradients of a micro-batch, all or none; the graph stays, for the update itself."""
        sums = dict(self._sums)
        for name, term in terms.items():
            if not term.value.requires_grad:
                continue
            found = torch.autograd.grad(term.value, self._parameters, retain_graph=True, allow_unused=True)
            dense = [
                torch.zeros_like(p) if g is None else g for p, g in zip(self._parameters, found, strict=True)
            ]
            have = sums.get(name)
            sums[name] = dense if have is None else [a + b for a, b in zip(have, dense, strict=True)]
        self._sums = sums

    def join(self, ranks: Ranks) -> None:
        """Adds the gradients of all processes, each of its share of the micro-batches."""
        if ranks.world == 1:
            return
        known = ranks.everyone(lambda: self.names)
        # In the order of a single process's sums, as far as there is one.
        for name in dict.fromkeys(name for names in known for name in names):
            mine = self._sums.setdefault(name, [torch.zeros_like(p) for p in self._parameters])
            for gradient in mine:
                ranks.add_up(gradient)

    def norms(self) -> dict[str, float]:
        """Norm of every term's gradient; empty if nothing was added."""
        return {name: gradient_alignment(gradient, gradient).norm_a for name, gradient in self._sums.items()}

    def metrics(self) -> dict[str, float]:
        """Norm of every term's gradient and its cosine with the policy's; empty if nothing was added."""
        policy = self._sums.get("policy")
        if policy is None:
            return {}
        metrics = {}
        for name, gradient in self._sums.items():
            result = gradient_alignment(gradient, policy)
            metrics[f"train/grad_norm/{name}"] = result.norm_a
            if name != "policy":
                metrics[f"train/grad_cosine/{name}"] = result.cosine
        return metrics
