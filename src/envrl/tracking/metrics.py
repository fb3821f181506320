"""Every metric the project logs: its name, unit, formula and direction.

The table in ``docs/metrics.md`` is written from here (``python -m envrl.tracking.metrics_page``).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from envrl.errors import ConfigFault


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric, or a family of metrics whose last part is filled in, such as ``eval/x/<family>``.

    Attributes:
        name: Name in MLflow, slash-grouped; a part in angle brackets stands for any one word.
        unit: Unit of the value; ``share`` is a number in [0, 1].
        formula: How it is computed, over what.
        higher_is_better: ``None`` where neither direction is better as such.
    """

    name: str
    unit: str
    formula: str
    higher_is_better: bool | None


_EPISODES = (
    ("success_rate", "share", "episodes won / episodes", True),
    ("task_score", "share", "mean task score of the episodes", True),
    ("episode_length", "environment steps", "mean length of the episodes", False),
    ("return", "reward", "mean undiscounted sum of rewards of an episode", True),
    ("fault_rate", "share", "episodes ended by an environment fault / episodes", False),
    ("format_invalid_rate", "share", "turns that broke the output format / turns", False),
    ("inadmissible_rate", "share", "turns with a well-formed action that was not admissible / turns", False),
)
"""What is measured on episodes, on the panel (``eval``) as in training (``rollout``)."""

_EVALUATION = (
    MetricSpec(
        "eval/success_rate/<family>", "share", "games won / games of that task type on the panel", True
    ),
    MetricSpec(
        "eval/imagined_rate",
        "share",
        "turns in which the policy wrote a whole sentence of the environment, or a mark between the texts of "
        "a page / turns",
        False,
    ),
    MetricSpec("eval/imagined_rate/<family>", "share", "the same on games of that task type", False),
    MetricSpec("eval/seconds", "s", "wall time of the evaluation", False),
)
_TRIAL = (
    MetricSpec(
        "trial/success", "share", "of a sweep's trial: success on the panel at the end, mean over seeds", True
    ),
    MetricSpec("trial/seconds", "s", "of a sweep's trial: wall time of a run, mean over its seeds", False),
)
_KNOWLEDGE = (
    ("sp_ce", "nats/token", "cross-entropy of the next observation's tokens", False),
    ("sp_exact_match", "share", "next observations with every token ranked first / questions", True),
    (
        "sp_action_gap",
        "nats/token",
        "cross-entropy of the next observation after another admissible action, minus that after the true "
        "one; 0 if the policy doesn't heed the action",
        True,
    ),
    ("id_ce", "nats/token", "cross-entropy of the action's tokens, given both observations", False),
    ("id_exact_match", "share", "actions with every token ranked first / questions", True),
)
"""What is measured on held-out transitions of random play, the same for all runs of a panel."""
_DYNAMICS = tuple(
    spec
    for name, unit, formula, better in _KNOWLEDGE
    for spec in (
        MetricSpec(f"dynamics/{name}", unit, formula, better),
        MetricSpec(f"dynamics/{name}/<family>", unit, "the same on games of that task type", better),
    )
)
_ROLLOUT = (
    MetricSpec(
        "rollout/zero_variance_share",
        "share",
        "groups in which every row has the same score, so no advantage / groups",
        False,
    ),
    MetricSpec(
        "rollout/refilled_groups",
        "count",
        "groups played in the place of flat ones; measures of episodes leave them out "
        "(only with rollout.refill_rounds)",
        None,
    ),
    MetricSpec(
        "rollout/overlong_share",
        "share",
        "answers cut off at the limit of tokens / answers (only with rollout.mask_overlong)",
        False,
    ),
    MetricSpec("rollout/step_group_size", "turns", "GiGPO: turns / step groups", None),
    MetricSpec(
        "rollout/lone_step_share",
        "share",
        "GiGPO: turns alone in their step group, so without a step advantage / turns",
        False,
    ),
    MetricSpec(
        "rollout/score_mean", "score", "REINFORCE++: mean score of the rows, what all are compared with", True
    ),
    MetricSpec("rollout/value_mean", "score", "PPO: mean of the critic's values over turns", None),
    MetricSpec(
        "rollout/explained_variance",
        "share",
        "PPO: 1 − variance of (return − value) / variance of the return over turns, before the update; "
        "0 if all returns are equal",
        True,
    ),
    MetricSpec(
        "rollout/imagined_rate",
        "share",
        "turns in which the policy wrote a whole sentence of the environment, or a mark between the texts of "
        "a page / turns",
        False,
    ),
    MetricSpec(
        "rollout/left_out_share",
        "share",
        "policy rows left out of updates because all their advantages are 0 / policy rows; 0 where a term "
        "needs every row, or batch.skip_flat is false",
        None,
    ),
    MetricSpec("rollout/action_tokens", "tokens", "action tokens in the policy rows, left out or not", None),
    MetricSpec("rollout/tokens_per_second", "tokens/s", "tokens sampled / seconds of collection", True),
    MetricSpec("rollout/seconds", "s", "wall time of collection", False),
)
_TRAINING = (
    MetricSpec("train/loss", "nats", "the whole loss: policy + Σ weight · term", None),
    MetricSpec(
        "train/loss_<term>",
        "nats",
        "one term, unweighted: policy (clipped surrogate), entropy, kl, value, sp or id",
        None,
    ),
    MetricSpec(
        "train/entropy", "nats/token", "mean entropy of the policy at action tokens, temperature 1", None
    ),
    MetricSpec(
        "train/kl", "nats/token", "mean k3 estimate of KL(policy ‖ reference) at action tokens", False
    ),
    MetricSpec(
        "train/kl_clamped_share", "share", "action tokens whose k3 was clamped / action tokens", False
    ),
    MetricSpec(
        "train/approx_kl", "nats/token", "mean k3 estimate of KL(sampled ‖ policy) at action tokens", False
    ),
    MetricSpec("train/approx_kl_k1", "nats/token", "the same, k1 estimate: mean of log p_sampled / p", None),
    MetricSpec("train/clip_share", "share", "action tokens at a bound of the ratio / action tokens", False),
    MetricSpec("train/dual_clip_share", "share", "action tokens at the dual bound / action tokens", False),
    MetricSpec("train/ratio_mean", "ratio", "mean of p / p_sampled over action tokens", None),
    MetricSpec(
        "train/logprob_gap",
        "nats/token",
        "mean absolute difference of log p in the update and log p recorded by the sampler; with one "
        "update an iteration it is the gap between the two computations alone",
        False,
    ),
    MetricSpec("train/value_error", "score", "PPO: mean distance of value and return over turns", False),
    MetricSpec(
        "train/value_clip_share",
        "share",
        "PPO: turns whose value is at the bound of its change / turns",
        False,
    ),
    MetricSpec(
        "train/sp_ce", "nats/token", "cross-entropy of next-observation tokens, own denominator", False
    ),
    MetricSpec(
        "train/sp_token_accuracy", "share", "next-observation tokens ranked first / such tokens", True
    ),
    MetricSpec("train/id_ce", "nats/token", "cross-entropy of true-action tokens, own denominator", False),
    MetricSpec("train/id_token_accuracy", "share", "true-action tokens ranked first / such tokens", True),
    MetricSpec(
        "train/id_exact_match",
        "share",
        "transitions with every action token ranked first / transitions",
        True,
    ),
    MetricSpec(
        "train/ce/<objective>", "nats/token", "cross-entropy of another objective's target tokens", False
    ),
    MetricSpec(
        "train/token_accuracy/<objective>", "share", "its target tokens ranked first / such tokens", True
    ),
    MetricSpec(
        "train/clipped_share/<objective>", "share", "its target tokens too likely to give a gradient", None
    ),
    MetricSpec("train/lambda/<objective>", "weight", "its λ at this iteration", None),
    MetricSpec(
        "train/weight_factor/<objective>",
        "1",
        "what an adaptive weight multiplies the schedule by; part of λ",
        None,
    ),
    MetricSpec(
        "train/auxiliary_stopped", "0 or 1", "1 from when the auxiliary objectives were given up", None
    ),
    MetricSpec("train/lambda_sp", "weight", "λ_SP at this iteration", None),
    MetricSpec("train/lambda_id", "weight", "λ_ID at this iteration", None),
    MetricSpec("train/grad_norm", "1", "L2 norm of the whole gradient before clipping", None),
    MetricSpec("train/grad_norm/<term>", "1", "L2 norm of one term's own, unweighted gradient", None),
    MetricSpec(
        "train/grad_cosine/<term>", "cosine", "cosine of that gradient with the policy term's gradient", None
    ),
    MetricSpec(
        "train/skipped_updates",
        "count",
        "updates of the iteration left out because their loss or gradient was not finite; no mean has them",
        False,
    ),
    MetricSpec(
        "train/oom_splits",
        "count",
        "times in the iteration that rows were halved because memory did not suffice for an update",
        False,
    ),
    MetricSpec("train/learning_rate", "1", "learning rate of the optimiser", None),
    MetricSpec("update/tokens_per_second", "tokens/s", "tokens trained on / seconds of updates", True),
    MetricSpec("update/seconds", "s", "wall time of the iteration's updates", False),
)

METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("iteration", "count", "training iterations completed when it was measured", None),
    *(MetricSpec(f"eval/{name}", unit, text, better) for name, unit, text, better in _EPISODES),
    *_EVALUATION,
    *_DYNAMICS,
    *(MetricSpec(f"rollout/{name}", unit, text, better) for name, unit, text, better in _EPISODES),
    *_ROLLOUT,
    *_TRAINING,
    *_TRIAL,
)
"""The table, in the order in which it is shown."""

_PATTERNS = tuple(
    (re.compile(re.sub(r"<\w+>", "[^/<>]+", re.escape(spec.name))), spec)
    for spec in sorted(METRICS, key=lambda spec: "<" in spec.name)
)


def check_name(name: str) -> MetricSpec:
    """The entry of a metric name.

    Raises:
        ConfigFault: The name isn't in the table; the message names the nearest entry.
    """
    for pattern, spec in _PATTERNS:
        if pattern.fullmatch(name):
            return spec
    near = difflib.get_close_matches(name, [spec.name for spec in METRICS], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigFault(
        f"the metric {name!r} is not listed{hint} Add it to METRICS in envrl/tracking/metrics.py "
        "with unit and formula, then run `python -m envrl.tracking.metrics_page`"
    )
