"""Made-up episodes for tests of the page that shows them."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.analysis.episodes import Episode, Turn
from envrl.types import Finish, StopReason

HOSTILE = (
    "</script><script>window.broken=1</script>",
    "<!--<script>window.broken=2",
    "<img src=x onerror=window.broken=3> &lt;b&gt; ]]> {{ 7*7 }}",
    "\x00\x1b[31m\x07 \u202egnp.exe\u202c \u2028 \u200b end",
    "Z" + "\u0335\u0489\u030d" * 150 + " zalgo",
    "مرحبا بالعالم 123 שלום",
    "x" * 30_000,
    "__proto__",
    "line\r\n\r\nline\ttab 'quote' \"quote\" \\u003c",
)
"""Texts that break pages which paste them together."""

FAMILIES = ("pick_and_place_simple", "look_at_obj_in_light", "pick_two_obj_and_place")


def turn(
    step: int,
    action: str | None = "go to fridge 1",
    *,
    observation: str | None = None,
    admissible: bool = True,
) -> Turn:
    """A turn whose written tokens are the words of its action."""
    seen = observation
    if seen is None:
        seen = f"You are in the middle of a room, step {step}. You see a drawer {step}."
    words = (action or "nonsense").split(" ")
    pieces = tuple((word if n == 0 else f" {word}", -0.4 * n) for n, word in enumerate(words))
    return Turn(
        prompt=f"<|user|>{seen}\n'look', 'help'<|assistant|>",
        observation=seen,
        admissible=("go to fridge 1", "look", "help"),
        pieces=(*pieces, ("<|end|>", -3.5)),
        finish=Finish.END if action is not None else Finish.LENGTH,
        action=action,
        format_valid=action is not None,
        action_admissible=admissible and action is not None,
        reward=0.0,
        next_observation=f"You are in the middle of a room, step {step + 1}. You see a drawer {step + 1}.",
    )


def episode(
    *,
    game: str = "game",
    turns: Sequence[Turn] | None = None,
    family: str = FAMILIES[0],
    arm: str = "grpo",
    seed: int = 0,
    iteration: int = 10,
    won: bool = False,
) -> Episode:
    """An episode of two turns, unless told otherwise."""
    return Episode(
        arm=arm,
        seed=seed,
        iteration=iteration,
        game_id=game,
        family=family,
        stop=StopReason.WON if won else StopReason.STEP_LIMIT,
        won=won,
        task_score=float(won),
        turns=tuple([turn(0), turn(1)] if turns is None else turns),
    )
