"""Samplers whose log-probabilities are none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from envrl.errors import PolicyFault
from envrl.policy.model import Policy
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.rollout.source import session_factory
from small_runs import RunPlan, SmallRun, fit, small_run, weights
from support import IdentityEnv, game, word_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning")


def run_of() -> SmallRun:
    policy = PolicySettings(model=str(word_checkpoint()), lora=LoraSettings(enabled=False))
    games = tuple(game(word) for word in ("go", "key", "room"))
    return small_run(RunPlan(policy, games, lambda: IdentityEnv(turns=3), diagnose_every=0))


def spoilt(change: Callable[[tuple[float, ...]], Any], after: int) -> Callable[[Policy], Any]:
    """The built-in sampler, apart from the first row's log-probabilities from some turn on."""
    turns = iter(range(10_000))

    class Session:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def append(self, blocks: Any) -> None:
            self._inner.append(blocks)

        def keep(self, rows: Any) -> None:
            self._inner.keep(rows)

        def sample(self, *arguments: Any) -> list[Any]:
            first, *others = self._inner.sample(*arguments)
            if next(turns) >= after:
                # No SampledTokens: a sampler of somebody else's needs not know what its fields may hold.
                first = SimpleNamespace(**{**asdict(first), "logprobs": change(first.logprobs)})
            return [first, *others]

    def sampler(policy: Policy) -> Callable[[int], Session]:
        open_session = session_factory(policy)
        return lambda rows: Session(open_session(rows))

    return sampler


@pytest.mark.fault(
    "a sampler of any kind gives NaN, None, infinite, positive or missing log-probabilities",
    "the run stops before an update is made with them, with one sentence",
)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: (math.nan, *p[1:]), r"gives nan as a log-probability .*lower optim\.lr"),
        (lambda p: (*p[:-1], None), "gives None as a log-probability"),
        (lambda p: (-math.inf, *p[1:]), "gives -inf as a log-probability"),
        (lambda p: (0.5, *p[1:]), r"gives 0\.5 as a log-probability"),
        (lambda p: p[:-1], r"gives \d log-probabilities for \d tokens"),
    ],
    ids=["nan", "None", "infinite", "positive", "missing"],
)
@pytest.mark.parametrize("after", [0, 1])
def test_impossible_log_probabilities_stop_before_an_update(change: Any, words: str, after: int) -> None:
    run = run_of()
    start = weights(run)
    run.source._sampler = spoilt(change, after)
    with pytest.raises(PolicyFault, match=words):
        fit(run, 1)
    assert run.module.updates_done == 0
    assert all(torch.equal(start[name], weight) for name, weight in weights(run).items())


@pytest.mark.fault(
    "a weight of the policy is NaN, so that the sampler in this process has no scores",
    "the run stops before an update, with one sentence",
)
def test_scores_that_are_not_numbers_stop_before_an_update() -> None:
    run = run_of()
    with torch.no_grad():
        next(p for p in run.module.policy.parameters() if p.requires_grad)[0] = math.nan
    with pytest.raises(PolicyFault, match=r"scores are not finite.*lower optim\.lr"):
        fit(run, 1)
    assert run.module.updates_done == 0
