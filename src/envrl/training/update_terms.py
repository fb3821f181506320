"""The terms of a micro-batch: from rows to the loss of policy, entropy, KL, critic and objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from envrl.losses.aggregation import token_weights
from envrl.losses.policy import clipped_surrogate, entropy_bonus, kl_k3
from envrl.losses.terms import LossTerm
from envrl.policy.batch import Denominators, Phase, RolloutBatch, RowBatch
from envrl.policy.model import Policy
from envrl.policy.parts import is_piece
from envrl.policy.states import RowStates
from envrl.training.critic import Critic
from envrl.training.objectives.base import Objective
from envrl.training.objectives.evaluate import objective_terms
from envrl.training.scores import target_scores
from envrl.training.settings import LossSettings
from envrl.types import Role


class UpdateTerms:
    """Computes the terms of the loss on some rows of an update.

    Args:
        policy: What is trained.
        critic: Gives values of turns (PPO); None without one.
        loss: Clipping, aggregation and so on.
        objectives: Auxiliary objectives, in the order in which their terms are added up.
    """

    def __init__(
        self, policy: Policy, critic: Critic | None, loss: LossSettings, objectives: Sequence[Objective]
    ) -> None:
        self.policy = policy
        self.critic = critic
        self.objectives = objectives
        self._loss = loss
        self._anchor: Tensor | None = None

    def of(
        self, batch: RolloutBatch, weights: Mapping[str, float], *, measure_kl: bool
    ) -> dict[str, LossTerm]:
        """All terms of a micro-batch, those of weight 0 without gradients.

        Args:
            batch: Its rows; every term is divided by the target count of the whole update.
            weights: Weight of kl, entropy, value and every objective.
            measure_kl: Measure KL to the start also where its weight is 0.

        Returns:
            Terms by name, ``policy`` among them.
        """
        self._anchor = None
        terms = self._policy_terms(batch, weights, measure_kl)
        if batch.questions is not None and batch.phase is not Phase.POLICY:
            asked = any(weights[objective.name] > 0 for objective in self.objectives)
            with torch.set_grad_enabled(torch.is_grad_enabled() and asked):
                states = self._states(batch.questions)
                terms = self._objective_terms(batch, weights, batch.questions, states, terms)
        if self._anchor is not None:
            loss = terms["policy"]
            terms["policy"] = replace(loss, value=loss.value + self._anchor)
        return terms

    def _states(self, rows: RowBatch) -> RowStates:
        """Hidden states of rows, whose pass is run backward even if nothing in it is a target.

        Of a policy in pieces every process must run the passes backward that it ran forward: the others
        do.
        """
        states = self.policy.states(rows)
        if self.policy.pieces is not None and states.flat.requires_grad:
            nothing = 0.0 * states.flat.float().sum()
            self._anchor = nothing if self._anchor is None else self._anchor + nothing
        return states

    def _policy_terms(
        self, batch: RolloutBatch, weights: Mapping[str, float], measure_kl: bool
    ) -> dict[str, LossTerm]:
        rows, counts = batch.policy, batch.denominators
        if rows is None:
            return {"policy": LossTerm(self._zero(), {})}
        states = self._states(rows)
        if batch.phase is Phase.AUXILIARY:
            return self._objective_terms(batch, weights, rows, states, {"policy": LossTerm(self._zero(), {})})
        acted = rows.roles[:, 1:] == Role.ACTION
        targets = rows.token_ids[:, 1:][acted]
        told = target_scores(
            self.policy, states.before(acted), targets, entropy=True, entropy_gradient=weights["entropy"] > 0
        )
        logprobs = told.logprobs
        # Rows are left out only where entropy and KL have no weight: then these are measured on the others.
        taken = replace(counts, action_tokens=counts.taken_tokens, policy_rows=counts.taken_rows)
        shares, own_shares = self._token_weights(acted, counts), self._token_weights(acted, taken)
        terms = {
            "policy": clipped_surrogate(
                logprobs,
                rows.sampled_logprobs[:, 1:][acted],
                rows.advantages[:, 1:][acted],
                clip_low=self._loss.clip_low,
                clip_high=self._loss.clip_high,
                dual_clip=self._loss.dual_clip,
                denominator=counts.action_tokens,
                measured=counts.taken_tokens,
                weights=shares,
            )
        }
        terms["entropy"] = entropy_bonus(told.entropies, denominator=taken.action_tokens, weights=own_shares)
        if self.critic is not None and rows.turns is not None:
            terms["value"] = self.critic.loss(states, rows.turns, counts.turns)
        if weights["kl"] > 0 or measure_kl:
            with torch.set_grad_enabled(weights["kl"] > 0):
                terms["kl"] = self._kl(rows, acted, targets, logprobs, taken.action_tokens, own_shares)
        return (
            terms
            if batch.phase is Phase.POLICY
            else self._objective_terms(batch, weights, rows, states, terms)
        )

    def _objective_terms(
        self,
        batch: RolloutBatch,
        weights: Mapping[str, float],
        rows: RowBatch,
        states: RowStates,
        have: dict[str, LossTerm],
    ) -> dict[str, LossTerm]:
        """The terms there are, with those of objectives that have targets in these rows added to them."""
        found = objective_terms(self.policy, self.objectives, rows, states, batch.denominators, weights)
        return have | {name: have[name] + term if name in have else term for name, term in found.items()}

    def _token_weights(self, acted: Tensor, counts: Denominators) -> Tensor | None:
        """Weights of the written tokens of some rows; a row is never split over micro-batches."""
        return token_weights(
            acted.sum(1, keepdim=True).expand_as(acted)[acted],
            aggregation=self._loss.aggregation,
            action_tokens=counts.action_tokens,
            rows=counts.policy_rows,
            row_limit=self._loss.row_tokens,
        )

    def _kl(
        self,
        rows: RowBatch,
        acted: Tensor,
        targets: Tensor,
        logprobs: Tensor,
        denominator: float,
        weights: Tensor | None,
    ) -> LossTerm:
        with self.policy.reference() as reference:
            known = reference.states(rows).before(acted)
            told = target_scores(reference, known, targets)
        return kl_k3(logprobs, told.logprobs, denominator=denominator, weights=weights)

    def _zero(self) -> Tensor:
        first = next(p for p in self.policy.parameters() if p.requires_grad and not is_piece(p))
        return (first * 0).sum()
