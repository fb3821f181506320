"""Terms of all auxiliary objectives on one set of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from envrl.losses.terms import LossTerm
from envrl.policy.batch import Denominators, RowBatch
from envrl.policy.model import Policy
from envrl.policy.states import RowStates
from envrl.training.objectives.base import Objective, read_targets


def objective_terms(
    policy: Policy,
    objectives: Sequence[Objective],
    rows: RowBatch,
    states: RowStates,
    counts: Denominators,
    weights: Mapping[str, float],
) -> dict[str, LossTerm]:
    """Terms of the objectives that have targets in these rows; those of weight 0 without gradients.

    Args:
        policy: Gives logits of hidden states.
        objectives: In the order in which their terms are added up.
        rows: Rows of one kind of pass.
        states: Their hidden states.
        counts: Target counts of the whole update.
        weights: Weight of every objective.

    Returns:
        Terms by name.
    """
    terms = {}
    for objective in objectives:
        own = counts.of(objective.name)
        if not own.tokens > 0:
            continue
        mask = objective.mask(rows)
        if not bool(mask.any()):
            continue
        weighted = weights[objective.name] > 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and weighted):
            source = states if weighted else states.detach()
            terms[objective.name] = objective.term(
                read_targets(policy, rows, source, mask, objective.name), own
            )
    return terms
