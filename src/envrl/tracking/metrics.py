"""Every metric the project logs: its name, unit, formula and direction.

The table in ``docs/metrics.md`` is written from here (``python -m envrl.tracking.metrics``).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

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


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        "iteration", "count", "training iterations completed; 0 is the policy before any update", None
    ),
    MetricSpec("eval/success_rate", "share", "games won / games of the fixed panel, each game once", True),
    MetricSpec(
        "eval/success_rate/<family>", "share", "games won / games of that task type on the panel", True
    ),
    MetricSpec("eval/episode_length", "environment steps", "mean length of the panel's episodes", False),
    MetricSpec("eval/task_score", "share", "mean task score of the panel's episodes", True),
    MetricSpec("eval/seconds", "s", "wall time of the evaluation", False),
    MetricSpec("rollout/success_rate", "share", "episodes won / episodes collected", True),
    MetricSpec("rollout/episode_length", "environment steps", "mean length of collected episodes", False),
    MetricSpec("rollout/return", "reward", "mean undiscounted sum of rewards of an episode", True),
    MetricSpec(
        "rollout/format_invalid_rate", "share", "turns that broke the output format / all turns", False
    ),
    MetricSpec(
        "rollout/inadmissible_rate",
        "share",
        "turns whose well-formed action was not admissible / all turns",
        False,
    ),
    MetricSpec(
        "rollout/zero_variance_share",
        "share",
        "groups whose episodes all have the same return, so no advantage / groups",
        False,
    ),
    MetricSpec("rollout/fault_rate", "share", "episodes ended by an environment fault / episodes", False),
    MetricSpec("rollout/tokens_per_second", "tokens/s", "tokens sampled / seconds of collection", True),
    MetricSpec("rollout/seconds", "s", "wall time of collection", False),
    MetricSpec(
        "train/loss", "nats", "policy loss + λ_SP · SP + λ_ID · ID, mean over the iteration's updates", None
    ),
    MetricSpec("train/policy_loss", "nats", "clipped surrogate, with KL and entropy terms if used", None),
    MetricSpec(
        "train/entropy",
        "nats/token",
        "mean entropy of the policy's distribution at action tokens, temperature 1",
        None,
    ),
    MetricSpec(
        "train/kl", "nats/token", "mean k3 estimate of KL(policy ‖ reference) at action tokens", False
    ),
    MetricSpec("train/clip_share", "share", "action tokens whose ratio was clipped / action tokens", False),
    MetricSpec("train/ratio_mean", "ratio", "mean of p_policy / p_sampled over action tokens", None),
    MetricSpec(
        "train/logprob_gap",
        "nats/token",
        "mean absolute difference of log p recomputed and log p recorded by the sampler, before any update",
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
    MetricSpec("train/lambda_sp", "weight", "λ_SP at this iteration", None),
    MetricSpec("train/lambda_id", "weight", "λ_ID at this iteration", None),
    MetricSpec(
        "train/grad_norm", "1", "L2 norm of the whole gradient before clipping, mean over updates", None
    ),
    MetricSpec(
        "train/grad_norm/<term>", "1", "L2 norm of the weighted gradient of one term: policy, sp or id", None
    ),
    MetricSpec(
        "train/grad_cosine/<term>", "cosine", "cosine of that term's gradient with the policy gradient", None
    ),
    MetricSpec("train/learning_rate", "1", "learning rate of the optimiser", None),
    MetricSpec("update/tokens_per_second", "tokens/s", "tokens trained on / seconds of updates", True),
    MetricSpec("update/seconds", "s", "wall time of the iteration's updates", False),
)
"""The table, in the order in which it is shown."""

_EXACT = {spec.name: spec for spec in METRICS if "<" not in spec.name}
_PREFIXES = {spec.name.split("<")[0]: spec for spec in METRICS if "<" in spec.name}
_DIRECTION = {True: "higher", False: "lower", None: "–"}


def check_name(name: str) -> MetricSpec:
    """The entry of a metric name.

    Raises:
        ConfigFault: The name isn't in the table; the message names the nearest entry.
    """
    if name in _EXACT:
        return _EXACT[name]
    prefix, _, last = name.rpartition("/")
    if last and (spec := _PREFIXES.get(f"{prefix}/")) is not None:
        return spec
    near = difflib.get_close_matches(name, [spec.name for spec in METRICS], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigFault(
        f"the metric {name!r} is not listed{hint} Add it to METRICS in envrl/tracking/metrics.py "
        "with unit and formula, then run `python -m envrl.tracking.metrics`"
    )


def metrics_document() -> str:
    """The table as Markdown, the content of ``docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Written by `python -m envrl.tracking.metrics` from `src/envrl/tracking/metrics.py`; edit there.",
        "",
        "Every metric is logged to MLflow at step = training iteration; iteration 0 is the policy before",
        "any update. A part in angle brackets stands for one word. MLflow adds `system/…` by itself.",
        "",
        "| name | unit | how it is computed | better |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{spec.name}` | {spec.unit} | {spec.formula} | {_DIRECTION[spec.higher_is_better]} |"
        for spec in METRICS
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes ``docs/metrics.md`` below the current folder."""
    path = Path("docs") / "metrics.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(metrics_document(), encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
