"""Episodes of random admissible actions: what a dynamics objective learns without the policy's own data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from envrl.envs.pool import Pool
from envrl.envs.webshop.actions import SEARCH_PLACEHOLDER
from envrl.prompts.render import task_of
from envrl.rollout.collector import EpisodePlan
from envrl.seeding import generator
from envrl.types import Finish, Generation, Observation, StopReason, Trajectory, Transition

Explorer = Callable[[Sequence[EpisodePlan], int], list[Trajectory]]
"""(episodes, policy version) -> what random actions came to, in the order of the episodes."""


def play_at_random(pool: Pool, plans: Sequence[EpisodePlan], policy_version: int) -> list[Trajectory]:
    """Plays every plan once by actions drawn uniformly from the admissible ones, without ``help``.

    A search has a few random words of the task.

    Nothing is sampled from the policy; the generations are empty. An environment that names no action ends
    its episode as truncated.

    Args:
        pool: Environments; its size bounds how many episodes are played at once.
        plans: Episodes; the draws depend on their seeds alone.
        policy_version: Recorded in the transitions.
    """
    done: dict[int, Trajectory] = {}
    for start in range(0, len(plans), len(pool)):
        for slot, plan in enumerate(plans[start : start + len(pool)]):
            done[start + slot] = _episode(pool, slot, plan, policy_version)
    return [done[n] for n in range(len(plans))]


def _episode(pool: Pool, slot: int, plan: EpisodePlan, version: int) -> Trajectory:
    rng = generator(plan.seed, "random-play")
    result = pool.reset(slot, plan.game, plan.seed)
    task = "" if result.observation is None else task_of(result.observation.text)
    current, transitions, stop, score = result.observation, [], StopReason.ENV_FAULT, 0.0
    while current is not None:
        action = random_action(current, task, rng)
        if action is None:
            stop = StopReason.STEP_LIMIT
            break
        result = pool.step([slot], [action])[0]
        if result.step is None:
            stop = StopReason.ENV_FAULT
            break
        step = result.step
        written = Generation((), b"", (), (), Finish.END, version)
        transitions.append(Transition(current, written, action, True, True, step.reward, step.observation))
        score = float(step.info.get("task_score", 0.0))
        current = step.observation
        if step.stop is not None:
            stop = step.stop
            break
    fault = None if result.fault is None else str(result.fault)
    won = stop is StopReason.WON
    return Trajectory(
        plan.game.game_id, plan.game.family, plan.seed, tuple(transitions), stop, won, score, fault
    )


def random_action(seen: Observation, task: str, rng: np.random.Generator) -> str | None:
    """One of the admissible actions, a search with words of the task; None if there is none."""
    offered = [action for action in seen.admissible if action != "help"]
    if not offered:
        return None
    action = offered[int(rng.integers(len(offered)))]
    return random_query(task, rng) if action == SEARCH_PLACEHOLDER and task else action


def random_query(task: str, rng: np.random.Generator) -> str:
    """A search with one to four random words of the task."""
    words = task.split()
    count = int(rng.integers(1, 5))
    return f"search[{' '.join(words[int(i)] for i in rng.integers(len(words), size=count))}]"
