"""Where the processor's seconds and the floating-point operations of an iteration go.

Functions of the package are wrapped from outside, so that a run that nobody measures pays nothing.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from envrl.envs.pool import EnvPool
from envrl.policy import sampler as sampler_module
from envrl.policy.model import Policy
from envrl.policy.sampler import CachedSession
from envrl.rollout import collector as collector_module
from envrl.rollout.conversation import Conversation
from envrl.rollout.source import RolloutSource
from envrl.training.module import EnvRLModule
from flops import counter
from roofs import Clock

ROLLOUT = ("environment", "prompts, tokenising", "prefill", "decode", "drawing", "merging LoRA", "rows")
UPDATE = ("forward", "logits", "losses", "backward", "optimiser")

_WRAPPED: tuple[tuple[str, Any, str], ...] = (
    ("environment", EnvPool, "reset"),
    ("environment", EnvPool, "step"),
    ("prompts, tokenising", Conversation, "__init__"),
    ("prompts, tokenising", Conversation, "go_on"),
    ("prompts, tokenising", collector_module, "read_answer"),
    ("prefill", CachedSession, "_run"),
    ("decode", CachedSession, "_advance"),
    ("drawing", sampler_module, "draw"),
    ("drawing", CachedSession, "sample"),
    ("merging LoRA", Policy, "sampling_model"),
    ("rows", RolloutSource, "collect"),
    ("forward", Policy, "hidden_states"),
    ("forward", Policy, "states"),
    ("logits", Policy, "logits"),
    ("losses", EnvRLModule, "training_step"),
    ("backward", EnvRLModule, "backward"),
    ("optimiser", EnvRLModule, "optimizer_step"),
)
"""Span, and where its functions are. Inner spans' time is not counted for the outer one."""


class Spans:
    """Time and operations by span.

    Attributes:
        seconds: Seconds by span.
        flops: Floating-point operations by span, where they were counted (:meth:`counting_flops`).
        calls: Calls by span.
        decode_bytes: What decoding had to read: the weights once a step, and the keys and values of every
            row that still writes.

    Args:
        clock: Gives the seconds.
    """

    def __init__(self, clock: Clock = time.process_time) -> None:
        self._clock = clock
        self._weights = 0
        self.decode_bytes = 0
        self.seconds: dict[str, float] = defaultdict(float)
        self.flops: dict[str, int] = defaultdict(int)
        self.calls: dict[str, int] = defaultdict(int)
        self._open: list[list[float]] = []
        self._counter: FlopCounterMode | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wraps the functions for a while."""
        before = [(owner, name, getattr(owner, name)) for _, owner, name in _WRAPPED]
        for span, owner, name in _WRAPPED:
            setattr(owner, name, self._wrapped(span, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)

    @contextmanager
    def counting_flops(self) -> Iterator[None]:
        """Counts operations too, which slows everything down: take no times then."""
        with counter() as self._counter:
            yield
        self._counter = None

    def clear(self) -> None:
        """Forgets times and calls, not the operations."""
        self.seconds.clear()
        self.calls.clear()
        self.decode_bytes = 0

    def _wrapped(self, span: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            inner = [0.0, 0.0]
            self._open.append(inner)
            if span == "decode":
                self.decode_bytes += self._bytes_of_step(*args)
            flops, started = self._flops(), self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                seconds, flops = self._clock() - started, self._flops() - flops
                self._open.pop()
                self.seconds[span] += seconds - inner[0]
                self.flops[span] += int(flops - inner[1])
                self.calls[span] += 1
                if self._open:
                    self._open[-1][0] += seconds
                    self._open[-1][1] += flops

        return measured

    def _flops(self) -> int:
        return 0 if self._counter is None else self._counter.get_total_flops()

    def _bytes_of_step(self, session: CachedSession, drawn: Tensor, live: Tensor) -> int:
        """What a step must read: all weights but the embeddings, and the cache of the rows that write."""
        if self._weights == 0:
            layers = [p for name, p in session._decoder.named_parameters() if "embed" not in name]
            self._weights = sum(p.nbytes for p in (*layers, *session._head.parameters()))
        cache = session._cache
        token = sum(store[0, 0].nbytes for store in (*cache._keys.values(), *cache._values.values()))
        return self._weights + token * int(cache.lengths[live.to(cache.lengths.device)].sum())
