"""The Lightning module: owns the policy and turns rows into one loss."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from envrl.losses.terms import LossTerm, combine
from envrl.policy.batch import Phase, RolloutBatch
from envrl.policy.model import Policy
from envrl.policy.parts import is_piece
from envrl.policy.ranks import ALONE, Ranks
from envrl.training.accounts import Accounts
from envrl.training.critic import Critic
from envrl.training.freshness import assert_fresh
from envrl.training.gradients import TermGradients
from envrl.training.kept import check_weights, cut_weights, joined_weights, kept_weights
from envrl.training.memory import FittingPasses
from envrl.training.objectives.registry import WeightedObjective, objectives_of
from envrl.training.optimiser import adamw, clip_each_group, gradient_norm
from envrl.training.settings import LossSettings, OptimSettings
from envrl.training.skipping import SkippedUpdates
from envrl.training.update_terms import UpdateTerms
from envrl.training.weights import AuxiliaryWeights

if TYPE_CHECKING:
    from envrl.training.pieces import EqualPasses


class EnvRLModule(L.LightningModule):
    """L = L_policy + β·KL − c·entropy + Σ λ_k(t)·L_k over the auxiliary objectives k.

    With state prediction and inverse dynamics as objectives this is EnvRL (arXiv 2606.17680).

    Automatic optimisation: an update is accumulated over ``micro_batches`` training steps. Every term is
    divided by the target count of the whole update, so the sum over micro-batches is the loss of the
    whole. A term of weight 0 is not part of the graph: it is measured, if at all, without gradients.
    With PPO there is a critic beside the policy, ``critic``, and its loss.

    An update whose loss or gradient is not finite is left out: no weight and no number of the optimiser
    changes. A micro-batch that does not fit in memory is cut into smaller parts with the same gradient.

    Args:
        policy: Model, adapters, markup.
        loss: Terms and weights.
        optim: Optimiser.
        iterations: Length of the run, what schedules refer to.
        micro_batches: Training steps an update is accumulated over.
        objectives: Auxiliary objectives with their schedules; None takes those that ``loss`` names.
        diagnose_every: Iterations between measurements that cost extra passes (KL to the start, each
            term's gradient norm and cosine with the policy's gradient); 0 = never.
        ranks: Processes that share an update's micro-batches; their gradients are added up.
    """

    def __init__(
        self,
        policy: Policy,
        loss: LossSettings,
        optim: OptimSettings,
        *,
        iterations: int,
        micro_batches: int,
        objectives: Sequence[WeightedObjective] | None = None,
        diagnose_every: int = 10,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.policy = policy
        size = policy.causal.config.get_text_config().hidden_size
        self.critic = Critic(size, loss.ppo) if loss.algorithm == "ppo" else None
        self._loss = loss
        self._optim = optim
        self._micro_batches = micro_batches
        self._ranks = ranks
        self._diagnose_every = diagnose_every
        weighted = objectives_of(loss) if objectives is None else tuple(objectives)
        schedules = {w.objective.name: w.schedule for w in weighted}
        self._weights = AuxiliaryWeights(schedules, iterations, loss.balance, loss.stop)
        self.objectives = tuple(w.objective for w in weighted)
        self._terms = UpdateTerms(policy, self.critic, loss, self.objectives)
        self.updates_done = 0
        self._skipped = SkippedUpdates(optim.max_skipped_updates, aloud=ranks.writes)
        self._passes: FittingPasses | EqualPasses = FittingPasses(
            self._loss_of, self._trained, lambda: self.trainer.precision_plugin.train_step_context()
        )
        # Checkpoints hold the trained weights alone; the state of quantised ones couldn't be loaded at all.
        self.strict_loading = False
        self._begin_iteration()
        # Before a checkpoint is loaded: the reference of a resumed run is the start of the run.
        if loss.kl_coefficient > 0 or diagnose_every > 0:
            policy.keep_reference()
        # Loading leaves evaluation mode; dropout of adapters and gradient checkpointing need this one.
        policy.train()

    def configure_model(self) -> None:
        """Cuts the policy's layers into pieces where the run divides them among its processes."""
        if self._ranks.divides == "layers" and self.policy.pieces is None:
            # Torch's distributed modules take more than a second to import.
            from envrl.training.pieces import EqualPasses

            self.policy.divide(self.trainer.strategy.root_device)
            self._passes = EqualPasses(self._loss_of)

    def weights(self, iteration: int) -> dict[str, float]:
        """λ of every objective in an iteration by its schedule, 0 once the objectives were given up."""
        return self._weights.scheduled(iteration)

    def on_train_epoch_start(self) -> None:
        """Starts the accounts of an iteration."""
        self._begin_iteration()

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """One micro-batch.

        Returns:
            The micro-batch's share of the update's loss, times the number of micro-batches, because
            Lightning divides by it (by this process's share of it, and the mean of the processes'
            gradients by the number of processes).
        """
        if batch_idx == 0:
            self._started = time.perf_counter()
            self._weights.begin(batch.outcome)
        assert_fresh(batch, self.updates_done)
        if batch_idx % (self._micro_batches // self._ranks.world) == 0:
            self._noted.clear()
            self._gradients.begin_update()
            self._passes.begin_update()
            self._taught = False
        self._unseen = self._accounts.begin(batch.phase)
        self._idle = batch.denominators.left_out > 0 and batch.phase is not Phase.AUXILIARY
        self._tokens += sum(int(r.lengths.sum()) for r in (batch.policy, batch.questions) if r is not None)
        if self._trainer is None:
            return self._loss_of(batch, report=True) * self._micro_batches
        return self._passes.forward(batch) * self._micro_batches

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Runs the micro-batch's loss backward, in parts if memory does not suffice.

        Raises:
            PolicyFault: Not even a single row fits in memory.
        """
        super().backward(loss, *args, **kwargs)
        # Gradients are exchanged once an update, so each process may take as many passes as it needs.
        self._passes.backward()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Joins the gradients of all processes, measures the update's before clipping, and judges the update.

        Raises:
            PolicyFault: Too many updates one after the other had to be left out.
        """
        # Those of pieces were exchanged with the passes that made them.
        self._ranks.mean_gradients(p for p in self._trained() if not is_piece(p))
        self._even_out()
        norm = gradient_norm(self._trained(), self._ranks)
        sound = self._accounts.finite and math.isfinite(norm)
        if all(self._ranks.everyone(lambda: sound)):
            # The same on every process, whose accounts are added up.
            self._accounts.add({"grad_norm": norm / self._ranks.world})
            for terms in self._noted:
                self._weights.note(terms)
            self._skipped.made()
            return
        # A weight without a gradient is left alone by the optimiser, and so is what it keeps of it.
        optimizer.zero_grad(set_to_none=True)
        self._accounts.drop()
        self._gradients.drop()
        self._skipped.skip(self.trainer.current_epoch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Counts updates: the version of the policy."""
        super().optimizer_step(*args, **kwargs)
        if not self._skipped.in_a_row:
            self.updates_done += 1

    def on_train_batch_end(self, outputs: object, batch: RolloutBatch, batch_idx: int) -> None:
        """Stops the clock: what callbacks do at the end of the epoch is no part of the update."""
        self._ended = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Logs the iteration: means over its updates."""
        assert self.trainer is not None
        iteration = self.trainer.current_epoch
        self._join_ranks()
        metrics = {f"train/{name}": value for name, value in self._accounts.means().items()}
        seconds = self._ended - self._started
        metrics |= self._weights.metrics(iteration)
        metrics |= {
            "train/learning_rate": self._optim.lr,
            "update/seconds": seconds,
            "update/tokens_per_second": self._tokens / max(seconds, 1e-9),
        }
        metrics |= self._gradients.metrics()
        metrics["train/skipped_updates"] = float(self._skipped.in_iteration)
        metrics["train/oom_splits"] = float(self._passes.splits)
        metrics["iteration"] = float(iteration)
        self._weights.finish(iteration, self._gradients.norms())
        self.log_dict(metrics, logger=False)
        # Not left to Lightning, which logs after the checkpoint: a run killed in between would go on
        # after an iteration that nobody has logged.
        for logger in self.loggers:
            logger.log_metrics(metrics, step=iteration)

    def _join_ranks(self) -> None:
        """Makes what this process measured in an iteration what all of them measured."""
        found = self._ranks.everyone(
            lambda: (self._accounts, self._weights.losses, self._tokens, self._passes.splits)
        )
        accounts, losses, tokens, splits = zip(*found, strict=True)
        self._accounts = Accounts.joined(accounts)
        self._weights.join(losses)
        self._tokens, self._passes.splits = sum(tokens), sum(splits)
        self._gradients.join(self._ranks)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the policy's trained parameters, and over the critic's at its own learning rate."""
        policy = (p for p in self.policy.parameters() if p.requires_grad)
        critic = () if self.critic is None else self.critic.parameters()
        return adamw(policy, self._optim, critic, self._loss.ppo.value_lr, divided=self._ranks.divides)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips policy and critic apart."""
        if gradient_clip_val:
            clip_each_group(optimizer, gradient_clip_val, self._ranks)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps trained weights, version and adaptive weights; the frozen base comes from its source."""
        weights = kept_weights(checkpoint["state_dict"], self._named())
        if self.policy.pieces is not None:
            weights = joined_weights(weights, writes=self._ranks.writes)
        checkpoint["state_dict"] = weights
        checkpoint["updates_done"] = self.updates_done
        checkpoint["skipped_in_a_row"] = self._skipped.in_a_row
        checkpoint["auxiliary_weights"] = self._weights.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores version and adaptive weights; the frozen weights stay as they were loaded.

        Raises:
            DataFault: The checkpoint's trained weights are not those of this module.
        """
        self.updates_done = int(checkpoint["updates_done"])
        # A run begun before updates could be left out has left out none.
        self._skipped.in_a_row = int(checkpoint.get("skipped_in_a_row", 0))
        # A run begun before weights could adapt has none, and its settings let none adapt.
        if "auxiliary_weights" in checkpoint:
            self._weights.load_state_dict(checkpoint["auxiliary_weights"])
        check_weights(checkpoint["state_dict"], self._named())
        if self.policy.pieces is not None:
            checkpoint["state_dict"] = cut_weights(checkpoint["state_dict"], self._named())

    def _trained(self) -> Iterator[torch.nn.Parameter]:
        return (p for p in self.parameters() if p.requires_grad)

    def _named(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def _loss_of(self, batch: RolloutBatch, report: bool) -> Tensor:
        """Share of some rows in the update's loss.

        Args:
            batch: The rows.
            report: Take down what there is to report; it is done as the last thing, and all or nothing.
        """
        weights = {**self._loss.own_weights, **self.weights(batch.iteration)}
        terms = self._terms.of(batch, weights, measure_kl=self._diagnosing(batch.iteration))
        if report and (self._diagnosing(batch.iteration) or self._weights.needs_gradients(batch.iteration)):
            self._gradients.add({n: t for n, t in terms.items() if n == "policy" or weights[n] > 0})
        if report and self._unseen:
            # Without their graphs, which would stay in memory until the end of the update.
            # What is measured for diagnosis alone must not change the run.
            known = {
                o.name: terms[o.name] for o in self.objectives if o.name in terms and weights[o.name] > 0
            }
            self._noted.append({n: LossTerm(t.value.detach(), {}) for n, t in known.items()})
        weights |= self._weights.weights(batch.iteration)
        acted = batch.policy is not None and batch.phase is not Phase.AUXILIARY
        self._taught |= acted or any(weights[n] > 0 for n in terms if n != "policy")
        total = combine(terms.pop("policy"), {n: (weights[n], t) for n, t in terms.items()})
        if report:
            metrics = total.metrics
            if batch.phase is Phase.AUXILIARY:
                del metrics["loss_policy"]
            self._accounts.add({**metrics, "loss": total.value.detach()})
        return total.value

    def _even_out(self) -> None:
        """Has an update move all weights or none, also those that no term has a gradient of."""
        if self._idle:
            # Rows that were left out would have given 0, by which momentum and weight decay go on.
            for parameter in self._trained():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        elif not any(self._ranks.everyone(lambda: self._taught)):
            # No term has a gradient in this update; what stands for it is a 0 at a single weight.
            for parameter in self._trained():
                parameter.grad = None

    def _begin_iteration(self) -> None:
        self._accounts = Accounts(self._micro_batches // self._ranks.world)
        self._gradients = TermGradients(list(self._trained()))
        self._started = self._ended = 0.0
        self._tokens = 0
        self._noted: list[dict[str, LossTerm]] = []
        self._unseen = self._idle = self._taught = False
        self._skipped.in_iteration = self._passes.splits = 0

    def _diagnosing(self, iteration: int) -> bool:
        return self._diagnose_every > 0 and iteration % self._diagnose_every == 0
