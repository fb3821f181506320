"""Settings of different parts of a run that can't go together."""

from __future__ import annotations

from envrl.errors import ConfigFault
from envrl.prompts.settings import PromptSettings
from envrl.rollout.settings import AuxiliaryRows, BatchSettings
from envrl.training.settings import LossSettings


def check_objectives(
    loss: LossSettings, auxiliary: AuxiliaryRows, batch: BatchSettings, prompt: PromptSettings
) -> None:
    """Refuses auxiliary objectives, controls and updates that can't work together.

    Raises:
        ConfigFault: With the value and the remedy.
    """
    schedules = [loss.sp, loss.id, *(objective.schedule for objective in loss.objectives)]
    weighted = any(schedule.weight > 0 for schedule in schedules)
    if batch.alternate > 0 and batch.extra == "auxiliary" and not weighted:
        raise ConfigFault(
            f"batch.alternate is {batch.alternate}, but no auxiliary objective has a weight, so the extra "
            "updates would have no loss; set loss.sp.weight, or batch.extra=policy"
        )
    if auxiliary.altered and loss.objectives:
        raise ConfigFault(
            f"loss.objectives has {loss.objectives[0].use!r}, but controls alter state prediction and "
            "inverse dynamics alone; remove it, or set auxiliary.control=none and shuffle_targets=false"
        )
    changes_actions = auxiliary.control in ("drop_action", "replace_action")
    if changes_actions and auxiliary.sp_rows == "policy" and prompt.form == "reasoned":
        raise ConfigFault(
            f"auxiliary.control={auxiliary.control} can't take the action out of the thoughts in policy "
            "rows; set auxiliary.sp_rows=questions"
        )
