"""Whether a run's updates can do without rows from which the policy has nothing to learn."""

from __future__ import annotations

from envrl.rollout.settings import AuxiliaryRows, BatchSettings
from envrl.training.objectives.dynamics import StatePrediction
from envrl.training.objectives.registry import may_read_policy_rows, objectives_of
from envrl.training.settings import LossSettings


def leaves_out_idle_rows(loss: LossSettings, auxiliary: AuxiliaryRows, batch: BatchSettings) -> bool:
    """Whether policy rows of advantage 0 are left out of updates: it is wished, and no term needs them.

    A term needs them if it has a weight in any iteration and reads them: the entropy bonus, the KL, PPO's
    critic, state prediction read off policy rows, an objective with targets in them. One of weight 0 that is
    only measured on policy rows is then measured on those that are left, as are the policy's own numbers.

    Raises:
        ConfigFault: An objective does not exist.
    """
    if not batch.skip_flat or loss.algorithm == "ppo":
        return False
    if loss.entropy_coefficient > 0 or loss.kl_coefficient > 0:
        return False
    read_off = auxiliary.sp_rows == "policy" and not auxiliary.altered
    return not any(
        weighted.schedule.weight > 0
        and (
            read_off
            if isinstance(weighted.objective, StatePrediction)
            else may_read_policy_rows(weighted.objective)
        )
        for weighted in objectives_of(loss)
    )
