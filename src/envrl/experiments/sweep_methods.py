"""Samplers and pruners of a sweep, made from Optuna's with seeds and steps that suit training runs."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import BasePruner, WilcoxonPruner
from optuna.trial import FrozenTrial, TrialState

from envrl.errors import ConfigFault
from envrl.experiments.sweep_file import Method, SweepSettings
from envrl.seeding import derive_seed

_SAMPLERS: dict[str, type[optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.GridSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "qmc": optuna.samplers.QMCSampler,
}
_PRUNERS: dict[str, type[BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "asha": optuna.pruners.SuccessiveHalvingPruner,
    "wilcoxon": WilcoxonPruner,
}
_P_THRESHOLD = 0.1


class PairedGames(BasePruner):
    """Gives a trial up when it wins fewer games of the panel than the best trial did at the same moment.

    Pairs are one game with one seed, each counted once: of the current seed at the evaluation just made, of
    the seeds before it at their last one. All of one evaluation is compared with the same evaluation of the
    best trial, so that a young run is never held against a trained one. Whether the difference could be
    chance says the signed-rank test of :class:`optuna.pruners.WilcoxonPruner`, with ties shared out.

    Args:
        test: The test, with the threshold for one look.
        iterations: Steps of one seed.
    """

    def __init__(self, test: WilcoxonPruner, iterations: int) -> None:
        self._test = test
        self._iterations = iterations

    @staticmethod
    def told(step: int, won: Mapping[str, bool]) -> tuple[str, str]:
        """Name and content of the trial's attribute that holds one evaluation, in the order of game ids."""
        return f"games_{step}", "".join("01"[won[game]] for game in sorted(won))

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial, which has reported its last evaluation, should be given up."""
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not done or trial.last_step is None:
            return False
        best, step = study.best_trial, trial.last_step
        steps = [*range(self._iterations, step, self._iterations), step]
        mine, theirs = self._outcomes(trial, steps), self._outcomes(best, steps)
        if mine is None or theirs is None or len(mine) != len(theirs):
            return False
        # The best trial as it was at this moment, alone in a study in memory.
        then = optuna.create_study(direction="maximize")
        then.add_trial(optuna.create_trial(value=sum(theirs), intermediate_values=dict(enumerate(theirs))))
        now = optuna.create_trial(state=TrialState.RUNNING, intermediate_values=dict(enumerate(mine)))
        return self._test.prune(then, now)

    @staticmethod
    def _outcomes(trial: FrozenTrial, steps: Sequence[int]) -> list[float] | None:
        told = [trial.user_attrs.get(f"games_{step}") for step in steps]
        if any(games is None for games in told):
            return None
        return [float(won) for games in told for won in str(games)]


def sampler(settings: SweepSettings, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for the trial of that number.

    Made anew for each trial, with a seed of its own: workers that share a seed would all propose the same,
    and a sweep that goes on would repeat its beginning.

    Raises:
        ConfigFault: An option is unknown or impossible, or a package is missing.
    """
    method = settings.sampler
    options = dict(method.options)
    root = options.pop("seed", 0)
    if not isinstance(root, int) or isinstance(root, bool) or root < 0:
        raise ConfigFault(f"sampler.seed is {root!r}; give a whole number >= 0")
    options["seed"] = derive_seed(root, "sweep", number) % 2**32
    if method.kind == "tpe":
        options = {"multivariate": True, "group": True} | options
    elif method.kind == "grid":
        # The order of the grid must stay the same for all trials, or points are repeated.
        options |= {"search_space": settings.space.grid(), "seed": root}
    elif method.kind == "qmc":
        # One sequence for all trials; what it has no place for, such as choices, is drawn for each anew.
        independent = optuna.samplers.RandomSampler(options["seed"])
        options |= {"seed": root, "independent_sampler": independent, "warn_independent_sampling": False}
    elif method.kind in ("cmaes", "gp"):
        options = {"warn_independent_sampling": False} | options
    made: optuna.samplers.BaseSampler = _made("sampler", _SAMPLERS[method.kind], Method(method.kind, options))
    return made


def pruner(settings: SweepSettings) -> BasePruner:
    """The pruner; its steps are iterations, those of a later seed after those of the ones before it.

    The threshold of ``wilcoxon`` is for a whole trial, and is shared out over its evaluations.

    Raises:
        ConfigFault: An option is unknown or impossible.
    """
    config = settings.config({}, settings.seeds[0])
    steps = config.train.iterations * len(settings.seeds)
    first = min(config.evaluation.every, config.train.iterations)
    defaults: dict[str, dict[str, Any]] = {
        "asha": {"min_resource": first},
        "hyperband": {"min_resource": first, "max_resource": steps},
    }
    method = settings.pruner
    options = defaults.get(method.kind, {}) | dict(method.options)
    if method.kind != "wilcoxon":
        made: BasePruner = _made("pruner", _PRUNERS[method.kind], Method(method.kind, options))
        return made
    looks = math.ceil(config.train.iterations / config.evaluation.every) * len(settings.seeds)
    threshold = options.get("p_threshold", _P_THRESHOLD)
    if isinstance(threshold, float) and 0 < threshold < 1:
        options["p_threshold"] = threshold / looks
    return PairedGames(_made("pruner", WilcoxonPruner, Method("wilcoxon", options)), config.train.iterations)


def _made(place: str, made_by: type[Any], method: Method) -> Any:
    known = [n for n in inspect.signature(made_by).parameters if not n.startswith("_")]
    if unknown := [name for name in method.options if name not in known]:
        raise ConfigFault(
            f"{place} {method.kind} has no option '{unknown[0]}'; it has {', '.join(known) or 'none'}"
        )
    # Optuna would find out at the second trial.
    if method.kind == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise ConfigFault(
            f"{place} cmaes needs the package cmaes, which is not installed; install it, or use tpe"
        )
    try:
        return made_by(**method.options)
    except (TypeError, ValueError) as error:
        raise ConfigFault(f"{place} {method.kind}: {error}") from error
