"""Weights of auxiliary objectives in a run: the schedule, times what training has shown, until it harms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envrl.losses.balance import (
    gradient_norm_factor,
    next_log_variance,
    reward_factor,
    uncertainty_factor,
)
from envrl.losses.schedules import Schedule, schedule_value
from envrl.losses.terms import LossTerm
from envrl.policy.batch import Outcome
from envrl.training.settings import BalanceSettings, StopSettings


class AuxiliaryWeights:
    """λ_k(t) · factor_k of every objective k.

    The factor is 1 without balancing. It is fixed within an iteration; what an iteration shows changes the
    next one's (except for the reward, which is known before its updates). All state is numbers in
    ``state_dict``, so that a resumed run weighs as the uninterrupted one.

    Args:
        schedules: λ by objective.
        iterations: Length of the run.
        balance: How factors adapt.
        stop: When the objectives are given up.
    """

    def __init__(
        self,
        schedules: Mapping[str, Schedule],
        iterations: int,
        balance: BalanceSettings,
        stop: StopSettings,
    ) -> None:
        self._schedules = dict(schedules)
        self._iterations = iterations
        self._balance = balance
        self._stop = StopRule(stop)
        self._norms: dict[str, float] = {}
        self._log_variances = dict.fromkeys(self._schedules, 0.0)
        self._outcome = Outcome()
        self._losses: dict[str, float] = {}

    def scheduled(self, iteration: int) -> dict[str, float]:
        """λ of every objective in an iteration, all 0 once they were given up."""
        return {
            name: 0.0 if self._stop.stopped else schedule_value(schedule, iteration, self._iterations)
            for name, schedule in self._schedules.items()
        }

    def weights(self, iteration: int) -> dict[str, float]:
        """What every objective's term is multiplied by in an iteration."""
        return {name: value * self.factor(name) for name, value in self.scheduled(iteration).items()}

    def needs_gradients(self, iteration: int) -> bool:
        """Whether this iteration's gradients are to be measured term by term."""
        return self._balance.kind == "gradient_norm" and iteration % self._balance.every == 0

    def begin(self, outcome: Outcome) -> None:
        """Takes note of what the iteration's episodes came to, before its updates."""
        self._outcome, self._losses = outcome, {}

    def note(self, terms: Mapping[str, LossTerm]) -> None:
        """Takes note of objectives' losses in a micro-batch of rows they were not trained on yet.

        Over an update they add up to a held-out loss of the iteration's episodes.
        """
        for name, term in terms.items():
            self._losses[name] = self._losses.get(name, 0.0) + float(term.value.detach())

    @property
    def losses(self) -> dict[str, float]:
        """What was noted in this iteration, by objective."""
        return dict(self._losses)

    def join(self, parts: Sequence[Mapping[str, float]]) -> None:
        """Makes the notes of all processes, each on its share of the rows, those of this one."""
        names = dict.fromkeys(name for part in parts for name in part)
        self._losses = {name: sum(part.get(name, 0.0) for part in parts) for name in names}

    def factor(self, name: str) -> float:
        """Factor of an objective in this iteration.

        With balancing of gradients it is 0 until the first measurement: a first update with gradients of
        unknown size could undo what the policy knows.
        """
        kind, most = self._balance.kind, self._balance.most
        if kind == "gradient_norm":
            return gradient_norm_factor(self._norms.get("policy", 0.0), self._norms.get(name, 0.0), most)
        if kind == "uncertainty":
            return uncertainty_factor(self._log_variances[name], most)
        return reward_factor(self._outcome.success) if kind == "reward" else 1.0

    def finish(self, iteration: int, norms: Mapping[str, float]) -> None:
        """Learns from an iteration, after its updates, for the next one.

        Args:
            iteration: Number of the iteration.
            norms: Norm of every measured term's gradient, ``policy`` among them; empty if not measured.
        """
        keep = self._balance.keep
        # What was measured for diagnosis alone must not change the run.
        for name, norm in norms.items() if self.needs_gradients(iteration) else ():
            self._norms[name] = keep * self._norms.get(name, norm) + (1 - keep) * norm
        for name, loss in self._losses.items():
            before = self._log_variances[name]
            self._log_variances[name] = next_log_variance(before, loss, self._balance.rate)
        if self._losses:
            self._stop.watch(self._outcome, sum(self._losses.values()) / len(self._losses))

    def metrics(self, iteration: int) -> dict[str, float]:
        """Weights; factors, if they adapt; whether the objectives were given up, if they may be."""
        found = {_weight_metric(name): value for name, value in self.weights(iteration).items()}
        if self._balance.kind != "none":
            found |= {f"train/weight_factor/{name}": self.factor(name) for name in self._schedules}
        if self._stop.watching:
            found["train/auxiliary_stopped"] = float(self._stop.stopped)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything that was learnt, as plain numbers."""
        return {
            "norms": dict(self._norms),
            "log_variances": dict(self._log_variances),
            "stop": self._stop.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it."""
        self._norms = {str(k): float(v) for k, v in state["norms"].items()}
        self._log_variances = {str(k): float(v) for k, v in state["log_variances"].items()}
        self._stop.load_state_dict(state["stop"])


def _weight_metric(objective: str) -> str:
    """Name of an objective's weight among the metrics; the paper's two have one of their own."""
    return f"train/lambda_{objective}" if objective in ("sp", "id") else f"train/lambda/{objective}"


class StopRule:
    """Gives the auxiliary objectives up for the rest of the run when they harm.

    Two windows of iterations are compared, the last one and the one before it, on averages. They harm if
    the held-out loss falls while success falls by more than ``success_drop`` (the model of the world gets
    better and the policy worse), or if the rate of imagined observations rises by more than
    ``imagined_rise``.

    Args:
        settings: Length of a window and both limits.
    """

    def __init__(self, settings: StopSettings) -> None:
        self._settings = settings
        self._seen: list[tuple[float, float, float]] = []
        self.stopped = False

    @property
    def watching(self) -> bool:
        """There is a rule."""
        return self._settings.window > 0

    def watch(self, outcome: Outcome, loss: float) -> None:
        """Takes note of an iteration.

        Args:
            outcome: What its episodes came to.
            loss: Mean loss of the objectives on rows not trained on yet.
        """
        window = self._settings.window
        if not self.watching or self.stopped:
            return
        self._seen = [*self._seen, (outcome.success, outcome.imagined, loss)][-2 * window :]
        if len(self._seen) < 2 * window:
            return
        before, after = (
            [sum(values) / window for values in zip(*part, strict=True)]
            for part in (self._seen[:window], self._seen[window:])
        )
        success_fell = before[0] - after[0] > self._settings.success_drop
        imagined_rose = after[1] - before[1] > self._settings.imagined_rise
        self.stopped = (success_fell and after[2] < before[2]) or imagined_rose

    def state_dict(self) -> dict[str, Any]:
        """What was seen, and the verdict."""
        return {"seen": [list(one) for one in self._seen], "stopped": self.stopped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it."""
        self._seen = [(float(a), float(b), float(c)) for a, b, c in state["seen"]]
        self.stopped = bool(state["stopped"])
