"""The Lightning module: owns the policy and turns rows into one loss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor

from envrl.errors import PolicyFault
from envrl.losses.aggregation import token_weights
from envrl.losses.dynamics import inverse_dynamics, state_prediction
from envrl.losses.policy import clipped_surrogate, entropy_bonus, kl_k3, token_entropies, token_logprobs
from envrl.losses.schedules import schedule_value
from envrl.losses.terms import LossTerm, combine
from envrl.policy.batch import Denominators, RolloutBatch, RowBatch, RowKind
from envrl.policy.model import Policy
from envrl.training.critic import Critic
from envrl.training.gradients import TermGradients
from envrl.training.optimiser import adamw, clip_each_group
from envrl.training.settings import LossSettings, OptimSettings
from envrl.types import Role


class EnvRLModule(L.LightningModule):
    """L = L_policy + β·KL − c·entropy + λ_SP(t)·L_SP + λ_ID(t)·L_ID  (EnvRL, arXiv 2606.17680).

    Automatic optimisation: an update is accumulated over ``micro_batches`` training steps. Every term is
    divided by the target count of the whole update, so the sum over micro-batches is the loss of the
    whole. A term of weight 0 is not part of the graph: it is measured, if at all, without gradients.
    With PPO there is a critic beside the policy, ``critic``, and its loss.

    Args:
        policy: Model, adapters, markup.
        loss: Terms and weights.
        optim: Optimiser.
        iterations: Length of the run, what schedules refer to.
        micro_batches: Training steps an update is accumulated over.
        diagnose_every: Iterations between measurements that cost extra passes (KL to the start, each
            term's gradient norm and cosine with the policy's gradient); 0 = never.
    """

    def __init__(
        self,
        policy: Policy,
        loss: LossSettings,
        optim: OptimSettings,
        *,
        iterations: int,
        micro_batches: int,
        diagnose_every: int = 10,
    ) -> None:
        super().__init__()
        self.policy = policy
        size = policy.causal.config.get_text_config().hidden_size
        self.critic = Critic(size, loss.ppo) if loss.algorithm == "ppo" else None
        self._loss = loss
        self._optim = optim
        self._iterations = iterations
        self._micro_batches = micro_batches
        self._diagnose_every = diagnose_every
        self.updates_done = 0
        self._sums: dict[str, float] = {}
        self._gradients = TermGradients(list(self._trained()))
        self._started = 0.0
        self._ended = 0.0
        self._tokens = 0
        # Before a checkpoint is loaded: the reference of a resumed run is the start of the run.
        if loss.kl_coefficient > 0 or diagnose_every > 0:
            policy.keep_reference()
        # Loading leaves evaluation mode; dropout of adapters and gradient checkpointing need this one.
        policy.train()

    def weights(self, iteration: int) -> tuple[float, float]:
        """(λ_SP, λ_ID) of an iteration."""
        return (
            schedule_value(self._loss.sp, iteration, self._iterations),
            schedule_value(self._loss.id, iteration, self._iterations),
        )

    def on_train_epoch_start(self) -> None:
        """Starts the accounts of an iteration."""
        self._sums, self._gradients = {}, TermGradients(list(self._trained()))
        self._tokens = 0
        self._started = 0.0
        self._ended = 0.0

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """One micro-batch.

        Returns:
            The micro-batch's share of the update's loss, times the number of micro-batches, because
            Lightning divides by it.
        """
        if batch_idx == 0:
            self._started = time.perf_counter()
        self._assert_fresh(batch)
        terms = self._terms(batch)
        weights = self._term_weights(batch.iteration)
        total = combine(terms.pop("policy"), {n: (weights[n], t) for n, t in terms.items()})
        self._account(total.metrics)
        self._sums["loss"] = self._sums.get("loss", 0.0) + float(total.value.detach())
        return total.value * self._micro_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Measures the norm of the update's gradient, before clipping."""
        norms = [p.grad.detach().norm() for p in self._trained() if p.grad is not None]
        norm = float(torch.stack(norms).norm()) if norms else 0.0
        self._sums["grad_norm"] = self._sums.get("grad_norm", 0.0) + norm

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Counts updates: the version of the policy."""
        super().optimizer_step(*args, **kwargs)
        self.updates_done += 1

    def on_train_batch_end(self, outputs: object, batch: RolloutBatch, batch_idx: int) -> None:
        """Stops the clock: what callbacks do at the end of the epoch is no part of the update."""
        self._ended = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Logs the iteration: means over its updates."""
        assert self.trainer is not None
        iteration = self.trainer.current_epoch
        updates = max(1, int(self.trainer.num_training_batches) // self._micro_batches)
        metrics = {f"train/{name}": value / updates for name, value in self._sums.items()}
        lambda_sp, lambda_id = self.weights(iteration)
        seconds = self._ended - self._started
        metrics |= {
            "train/lambda_sp": lambda_sp,
            "train/lambda_id": lambda_id,
            "train/learning_rate": self._optim.lr,
            "update/seconds": seconds,
            "update/tokens_per_second": self._tokens / max(seconds, 1e-9),
        }
        metrics |= self._gradients.metrics()
        metrics["iteration"] = float(iteration)
        self.log_dict(metrics, logger=False)
        # Not left to Lightning, which logs after the checkpoint: a run killed in between would go on
        # after an iteration that nobody has logged.
        for logger in self.loggers:
            logger.log_metrics(metrics, step=iteration)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the policy's trained parameters, and over the critic's at its own learning rate."""
        if self.critic is None:
            return adamw(self._trained(), self._optim)
        policy = (p for p in self.policy.parameters() if p.requires_grad)
        return adamw(policy, self._optim, self.critic.parameters(), self._loss.ppo.value_lr)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips policy and critic apart."""
        if self.critic is None or not gradient_clip_val:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_each_group(optimizer, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the trained weights and the version; the frozen base is reloaded from its source."""
        trained = {n for n, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["updates_done"] = self.updates_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the version and completes the weights with the frozen ones."""
        self.updates_done = int(checkpoint["updates_done"])
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}

    def _trained(self) -> Iterator[torch.nn.Parameter]:
        return (p for p in self.parameters() if p.requires_grad)

    def _assert_fresh(self, batch: RolloutBatch) -> None:
        rows = batch.policy
        if batch.first_of_iteration and rows is not None:
            stale = self.updates_done - int(rows.policy_version.min())
            if stale != 0:
                raise PolicyFault(
                    f"rows of iteration {batch.iteration} were sampled {stale} updates ago; the loader must "
                    "have a length and no workers, and be reloaded every epoch"
                )

    def _term_weights(self, iteration: int) -> dict[str, float]:
        lambda_sp, lambda_id = self.weights(iteration)
        return {
            "kl": self._loss.kl_coefficient,
            "entropy": self._loss.entropy_coefficient,
            "value": self._loss.ppo.value_coefficient,
            "sp": lambda_sp,
            "id": lambda_id,
        }

    def _terms(self, batch: RolloutBatch) -> dict[str, LossTerm]:
        """All terms of a micro-batch, those of weight 0 without gradients."""
        weights = self._term_weights(batch.iteration)
        terms = self._policy_terms(batch, weights)
        self._tokens += sum(r.token_ids.numel() for r in (batch.policy, batch.questions) if r is not None)
        if batch.questions is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and (weights["sp"] > 0 or weights["id"] > 0)):
                terms |= self._question_terms(batch, batch.questions, weights, terms)
        if self._diagnosing(batch.iteration):
            self._gradients.add({n: t for n, t in terms.items() if n == "policy" or weights[n] > 0})
        return terms

    def _policy_terms(self, batch: RolloutBatch, weights: dict[str, float]) -> dict[str, LossTerm]:
        rows, counts = batch.policy, batch.denominators
        if rows is None:
            return {"policy": LossTerm(self._zero(), {})}
        hidden = self.policy.hidden_states(rows.token_ids)
        acted = rows.roles[:, 1:] == Role.ACTION
        targets = rows.token_ids[:, 1:][acted]
        logits = self.policy.logits(hidden[:, :-1][acted])
        logprobs = token_logprobs(logits, targets)
        shares = self._token_weights(acted, counts)
        terms = {
            "policy": clipped_surrogate(
                logprobs,
                rows.sampled_logprobs[:, 1:][acted],
                rows.advantages[:, 1:][acted],
                clip_low=self._loss.clip_low,
                clip_high=self._loss.clip_high,
                dual_clip=self._loss.dual_clip,
                denominator=counts.action_tokens,
                weights=shares,
            )
        }
        with torch.set_grad_enabled(weights["entropy"] > 0):
            terms["entropy"] = entropy_bonus(
                token_entropies(logits), denominator=counts.action_tokens, weights=shares
            )
        if self.critic is not None and rows.turns is not None:
            terms["value"] = self.critic.loss(hidden, rows.turns, counts.turns)
        if weights["kl"] > 0 or self._diagnosing(batch.iteration):
            with torch.set_grad_enabled(weights["kl"] > 0):
                terms["kl"] = self._kl(rows, acted, targets, logprobs, counts.action_tokens, shares)
        if counts.sp_tokens > 0 and bool((rows.roles == Role.OBSERVATION).any()):
            with torch.set_grad_enabled(weights["sp"] > 0):
                source = hidden if weights["sp"] > 0 else hidden.detach()
                terms["sp"] = self._sp(rows, source, counts.sp_tokens)
        return terms

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
            hidden = reference.hidden_states(rows.token_ids)
            reference_logprobs = token_logprobs(reference.logits(hidden[:, :-1][acted]), targets)
        return kl_k3(logprobs, reference_logprobs, denominator=denominator, weights=weights)

    def _sp(self, rows: RowBatch, hidden: Tensor, denominator: float) -> LossTerm:
        seen = (rows.roles[:, 1:] == Role.OBSERVATION) & (rows.kinds != RowKind.INVERSE_DYNAMICS)[:, None]
        targets = rows.token_ids[:, 1:][seen]
        logits = self.policy.logits(hidden[:, :-1][seen])
        return state_prediction(
            token_logprobs(logits, targets),
            argmax_correct=logits.argmax(-1) == targets,
            denominator=denominator,
        )

    def _question_terms(
        self, batch: RolloutBatch, rows: RowBatch, weights: dict[str, float], have: dict[str, LossTerm]
    ) -> dict[str, LossTerm]:
        counts = batch.denominators
        hidden = self.policy.hidden_states(rows.token_ids)
        terms = {}
        if "sp" not in have and bool((rows.kinds == RowKind.STATE_PREDICTION).any()):
            with torch.set_grad_enabled(torch.is_grad_enabled() and weights["sp"] > 0):
                terms["sp"] = self._sp(rows, hidden, counts.sp_tokens)
        asked = (rows.kinds == RowKind.INVERSE_DYNAMICS)[:, None] & (rows.roles[:, 1:] == Role.ACTION)
        if bool(asked.any()):
            with torch.set_grad_enabled(torch.is_grad_enabled() and weights["id"] > 0):
                targets = rows.token_ids[:, 1:][asked]
                logits = self.policy.logits(hidden[:, :-1][asked])
                terms["id"] = inverse_dynamics(
                    token_logprobs(logits, targets),
                    logits.argmax(-1) == targets,
                    asked.nonzero()[:, 0],
                    denominator=counts.id_tokens,
                    row_denominator=counts.id_rows,
                )
        return terms

    def _zero(self) -> Tensor:
        first = next(self._trained())
        return (first * 0).sum()

    def _account(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def _diagnosing(self, iteration: int) -> bool:
        return self._diagnose_every > 0 and iteration % self._diagnose_every == 0
