"""What SP+ID add to an update and to an iteration, on the same episodes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from envrl.experiments.run import build
from iteration import SP_ID, Case, configuration
from measuring import STEPS_BOTH, TRANSCRIPT_BOTH, Numbers, least, made, update

EVERY_TRANSITION = {"auxiliary.max_transitions": None}
PUBLISHED = {
    **EVERY_TRANSITION,
    # Instructions, all admissible actions and rooms as full as the official ones. Episodes are few and short,
    # because each of their prompts has several hundred tokens.
    "prompt.form": "reasoned",
    "prompt.show_admissible": True,
    "env.receptacles": None,
    "env.objects_per_receptacle": None,
    "env.max_steps": 6,
    "rollout.games": 4,
    "rollout.episodes_per_game": 4,
    "sampling.max_context": 8192,
}
"""How the published protocol asks (the embedded policy answers without thoughts, so answers are shorter)."""


def auxiliary(repeats: int) -> Numbers:
    """SP+ID beside none of them on the same episodes: cost of the update, and of the whole iteration.

    With 64 questions of each kind, as the quick study has them; with one about every transition
    (``all``); and with those in the prompts of the published protocol (``published``).
    """
    numbers: Numbers = {}
    for layout, case in (("transcript", TRANSCRIPT_BOTH), ("steps", STEPS_BOTH)):
        for variant, changes in (("", {}), ("_all", EVERY_TRANSITION), ("_published", PUBLISHED)):
            update_cost, iteration_cost = _cost(replace(case, changes={**case.changes, **changes}), repeats)
            numbers[f"auxiliary_{layout}{variant}_update_cost_ratio"] = update_cost
            numbers[f"auxiliary_{layout}{variant}_iteration_cost_ratio"] = iteration_cost
    return numbers


def _cost(case: Case, repeats: int) -> tuple[float, float]:
    """How many times as long an update, and an iteration, takes with the two objectives of a case."""
    config, parts = made(case)
    bare = build(
        configuration(replace(case, changes={k: v for k, v in case.changes.items() if k not in SP_ID}))
    )
    # The same episodes again and again: no update is made yet. Those of a run without the objectives are the
    # same ones, and no questions are asked about them.
    collects = [partial(source.collect, 0, 0) for source in (parts.source, bare.source)]
    c, d = least(max(1, repeats // 2), *collects)
    both, none = (
        update(own, own.source.collect(0, 0).batches, config.batch.micro_batches) for own in (parts, bare)
    )
    a, b = least(repeats, both, none)
    return a / b, (c + a) / (d + b)
