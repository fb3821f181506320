"""Updates for which memory does not suffice."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning as L
import pytest
import torch

from envrl.errors import PolicyFault
from envrl.losses.schedules import Schedule
from envrl.policy.batch import Denominators, RolloutBatch, RowBatch
from envrl.policy.memory import is_out_of_memory
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.rollout.settings import AuxiliaryRows, BatchSettings
from envrl.training.memory import FittingPasses
from envrl.training.settings import LossSettings
from small_runs import RunPlan, SmallRun, fit, small_run, weights
from support import COLOURS, IdentityEnv, game, word_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning")

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"
)
LOSSES = {
    "policy": LossSettings(),
    "both auxiliary losses": LossSettings(
        sp=Schedule("constant", 0.3), id=Schedule("constant", 0.2), kl_coefficient=0.1, aggregation="rows"
    ),
    "critic": LossSettings(algorithm="ppo"),
}


def run_of(loss: str = "policy", micro_batches: int = 2, **changes: Any) -> SmallRun:
    # Padded, so that a layer sees how many rows there are.
    policy = PolicySettings(
        model=str(word_checkpoint(COLOURS)), lora=LoraSettings(enabled=False), packed=False
    )
    settings: dict[str, Any] = {
        "auxiliary": AuxiliaryRows(sp_rows="questions"),
        "batch": BatchSettings(micro_batches=micro_batches),
        "iterations": 1,
        "diagnose_every": 1,
    }
    return small_run(
        RunPlan(
            policy,
            tuple(game(word) for word in ("red", "green", "blue")),
            lambda: IdentityEnv(turns=3),
            loss=LOSSES[loss],
            **(settings | changes),
        )
    )


class Gradients(L.Callback):
    """The first update's gradient."""

    gradient: torch.Tensor | None = None

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if self.gradient is None:
            parts = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
            self.gradient = torch.cat(parts).clone()


class Failing(torch.autograd.Function):
    """Passes values on; its backward pass fails for too many rows."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, limit: int, error: Exception) -> torch.Tensor:
        ctx.limit, ctx.error = limit, error
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        if len(gradient) > ctx.limit:
            raise ctx.error
        return gradient, None, None


def fail_forward(run: SmallRun, limit: int, error: Exception) -> None:
    """A forward pass of an update over more rows than ``limit`` runs out of memory."""

    def before(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and len(inputs[0]) > limit:
            raise error

    run.module.policy.causal.get_decoder().layers[0].register_forward_pre_hook(before)


def fail_backward(run: SmallRun, limit: int, error: Exception) -> None:
    """The backward pass runs out of memory when the weights behind the layer have their gradient."""

    def after(_: torch.nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (Failing.apply(output[0], limit, error), *output[1:])
        return Failing.apply(output, limit, error)

    run.module.policy.causal.get_decoder().layers[0].register_forward_hook(after)


@pytest.mark.fault(
    "memory, of the machine or of an accelerator, does not suffice for an update",
    "the micro-batch is halved by rows until it fits; gradient and metrics stay the same; it is said once",
)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fail", [fail_forward, fail_backward])
@pytest.mark.parametrize(("limit", "error"), [(3, CUDA), (1, CPU)], ids=["three rows", "one row"])
def test_smaller_parts_have_the_same_gradient(
    loss: str,
    fail: Callable[[SmallRun, int, Exception], None],
    limit: int,
    error: Exception,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = []
    for starved in (False, True):
        run, seen = run_of(loss), Gradients()
        if starved:
            fail(run, limit, error)
        (metrics,) = fit(run, 1, seen)
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: memory")]
        assert len(told) == int(starved)
        assert all("batch.micro_batches" in text for text in told)
        results.append((metrics, seen.gradient))
    (metrics, gradient), (parts_metrics, parts_gradient) = results
    assert gradient is not None
    assert parts_gradient is not None
    assert metrics.pop("train/oom_splits") == 0
    # Twelve episodes in two micro-batches.
    assert parts_metrics.pop("train/oom_splits") >= (2 if limit == 3 else 10)
    assert parts_metrics == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    scale = float(gradient.abs().max())
    assert scale > 1e-3
    assert float((gradient - parts_gradient).abs().max()) < 1e-5 * max(1.0, scale)


@pytest.mark.fault(
    "memory does not suffice for a single row of an update",
    "the run stops with one sentence that names the settings that make it smaller; no weight was changed",
)
@pytest.mark.parametrize("fail", [fail_forward, fail_backward])
def test_a_row_that_never_fits_stops_the_run(fail: Callable[[SmallRun, int, Exception], None]) -> None:
    run = run_of()
    start = weights(run)
    fail(run, 0, CUDA)
    with pytest.raises(PolicyFault, match=r"^iteration 0: a single row of \d+ tokens .*max_context"):
        fit(run, 1)
    assert all(torch.equal(start[name], weight) for name, weight in weights(run).items())


@pytest.mark.parametrize("loss", LOSSES)
def test_where_memory_suffices_nothing_changes_by_a_bit(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, plain = run_of(loss, iterations=2), run_of(loss, iterations=2)
    # As the trainer does it by itself: the loss of the step is the loss, and its graph is run.
    monkeypatch.setattr(plain.module._passes, "forward", lambda batch: plain.module._loss_of(batch, True))
    monkeypatch.setattr(plain.module._passes, "backward", lambda: None)
    metrics, plain_metrics = fit(run, 2), fit(plain, 2)
    assert metrics == plain_metrics
    assert all(torch.equal(weights(plain)[name], weight) for name, weight in weights(run).items())


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("shapes differ")])
@pytest.mark.parametrize("fail", [fail_forward, fail_backward])
def test_other_errors_are_not_taken_for_it(
    fail: Callable[[SmallRun, int, Exception], None], error: Exception
) -> None:
    run = run_of()
    fail(run, 0, error)
    with pytest.raises(type(error), match=str(error)):
        fit(run, 1)


@pytest.mark.parametrize(
    "error", [CUDA, CPU, MemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")]
)
def test_what_counts_as_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_failed_attempt_holds_no_memory_when_smaller_parts_are_tried(where: str) -> None:
    """Otherwise the parts would have no more room than the whole."""
    weight = torch.nn.Parameter(torch.ones(3))
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def loss(batch: RolloutBatch, report: bool) -> torch.Tensor:
        assert batch.policy is not None
        alive.append(sum(ref() is not None for ref in held))
        hidden = (weight * batch.policy.sampled_logprobs).sin()
        held.append(weakref.ref(hidden))
        if where == "forward" and len(hidden) > 1:
            # A new one: an error keeps the frames that it was raised in.
            raise torch.OutOfMemoryError("CUDA out of memory.")
        # The sine needs what it was given, and the product of both keeps the hidden state itself.
        return (Failing.apply(hidden, 1, CUDA) * hidden).sum()

    numbers = torch.arange(12.0).reshape(4, 3)
    ones = torch.zeros(4, dtype=torch.long)
    rows = RowBatch(numbers.long(), numbers.to(torch.uint8), numbers, numbers, ones, ones, ones + 3)
    batch = RolloutBatch(rows, None, Denominators(1.0, 0.0, 0.0, 0.0), 0, True)
    passes = FittingPasses(loss, lambda: iter([weight]), nullcontext)
    (passes.forward(batch) * 2).backward()
    passes.backward()
    assert max(alive) == 0
    # sin² of four rows, times two: 2 · 2 · sin(x) · cos(x) · x for weights of 1.
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, (2 * (2 * numbers).sin() * numbers).sum(0))
