"""From observations to chat messages, for both layouts of a trajectory.

``steps``: every environment step is asked with a fresh prompt that holds a window of the history
(the published protocol: task, steps taken, last observation/action pairs, current
observation, admissible actions, output format). ``transcript``: one conversation that grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envrl.prompts.settings import PromptSettings
from envrl.types import FollowUp, Message, Observation

TASK_MARK = "Your task is to: "
_WELCOME = "-= Welcome to TextWorld, ALFRED! =-"
_HIDDEN = frozenset({"help"})


@dataclass(frozen=True, slots=True)
class PastStep:
    """One (observation text, action) pair of the history window: raw text, projected action."""

    observation: str
    action: str


def task_of(initial_text: str) -> str:
    """The instruction in an initial observation, or the empty string if it states none."""
    _, found, task = initial_text.partition(TASK_MARK)
    return task.strip() if found else ""


def without_banner(text: str) -> str:
    """The observation without the game's welcome banner."""
    return text.replace(_WELCOME, "").strip()


def shown_actions(observation: Observation) -> tuple[str, ...]:
    """Admissible actions as a prompt lists them (``help`` left out, as published)."""
    return tuple(a for a in observation.admissible if a not in _HIDDEN)


def _action_list(settings: PromptSettings, observation: Observation) -> str:
    actions, wording = shown_actions(observation), settings.wording
    if settings.form == "compact":
        return ", ".join(f"'{action}'" for action in actions)
    return wording.action_separator.join(wording.listed_action.format(action) for action in actions)


_REASONED_FORMAT = (
    "Think step by step about the current situation inside <think> </think> tags, "
    "then give exactly one action inside <action> </action> tags."
)


def opening_message(settings: PromptSettings, initial: Observation) -> Message:
    """First user turn of a transcript: the room and the task, and for chat models how to answer."""
    text = without_banner(initial.text)
    if settings.form == "compact":
        listed = f"\n{_action_list(settings, initial)}" if settings.show_admissible else ""
        return Message("user", text + listed)
    parts = [f"{settings.wording.role} and must complete a task.", text]
    if settings.show_admissible:
        parts.append(f"Admissible actions now: [{_action_list(settings, initial)}].")
    parts.append(_REASONED_FORMAT)
    return Message("user", "\n".join(parts))


def follow_up(settings: PromptSettings, observation: Observation) -> FollowUp:
    """Later user turn of a transcript."""
    parts = []
    if settings.show_admissible:
        listed = _action_list(settings, observation)
        compact = settings.form == "compact"
        parts.append(listed if compact else f"Admissible actions now: [{listed}].")
    if settings.form == "reasoned":
        parts.append(_REASONED_FORMAT)
    return FollowUp(without_banner(observation.text), "".join(f"\n{p}" for p in parts))


def step_message(
    settings: PromptSettings,
    initial: Observation,
    past: Sequence[PastStep],
    current: Observation,
) -> Message:
    """The one user turn of a row in the ``steps`` layout.

    Args:
        settings: Form, history length and whether to list actions.
        initial: The episode's first observation (states the task).
        past: Every step so far, oldest first; the last ``settings.history`` are shown.
        current: What the policy has to act on.
    """
    # Not len(past) - history: that is negative at first, which would count from the end.
    shown = past[-settings.history :] if settings.history else ()
    if settings.form == "compact":
        return Message("user", _compact_step(settings, initial, shown, current))
    message = _reasoned_step(settings, initial, past, shown, current)
    limit = settings.wording.most_characters
    if limit is not None and len(message) > limit:
        message = _reasoned_step(settings, initial, (), (), current)
    return Message("user", message)


def _reasoned_step(
    settings: PromptSettings,
    initial: Observation,
    past: Sequence[PastStep],
    shown: Sequence[PastStep],
    current: Observation,
) -> str:
    task = task_of(initial.text)
    parts = [f"{settings.wording.role}. {TASK_MARK}{task}"]
    if past:
        window = f" The last {len(shown)} observations and actions:" if shown else ""
        parts.append(f"Steps taken so far: {len(past)}.{window}")
        first = len(past) - len(shown) + 1
        parts += [
            f"[Observation {n}: '{_page(settings, step.observation)}', Action {n}: '{step.action}']"
            for n, step in enumerate(shown, start=first)
        ]
    parts.append(f"Current observation: {_page(settings, current.text)}")
    if settings.show_admissible:
        parts.append(f"Admissible actions now: [{_action_list(settings, current)}].")
    parts.append(_REASONED_FORMAT)
    return "\n".join(parts)


def _page(settings: PromptSettings, text: str) -> str:
    """An observation below a header that states the task."""
    shown = without_banner(text)
    return shown if settings.wording.task_in_observations else shown.partition(TASK_MARK)[0].rstrip()


def _compact_step(
    settings: PromptSettings, initial: Observation, shown: Sequence[PastStep], current: Observation
) -> str:
    opening = without_banner(initial.text)
    lines = [opening]
    for step in shown:
        text = without_banner(step.observation)
        # The opening is shown once: it holds the room and the task whatever the window.
        lines += [f"> {step.action}"] if text == opening else [text, f"> {step.action}"]
    if without_banner(current.text) != opening:
        lines.append(without_banner(current.text))
    if settings.show_admissible:
        lines.append(_action_list(settings, current))
    return "\n".join(lines)
