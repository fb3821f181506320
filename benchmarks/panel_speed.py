"""How long it takes to evaluate a policy."""

from __future__ import annotations

from functools import partial

from envrl.experiments.evaluation import play_panel
from measuring import TRANSCRIPT, Numbers, least, made

GAMES = 32
TEMPERATURE = 0.4
"""The published one."""


def evaluation(repeats: int) -> Numbers:
    """CPU seconds of a panel of generated ALFWorld games, drawn and greedy, and tokens drawn a second."""
    _, parts = made(TRANSCRIPT, **{"evaluation.games": GAMES})
    play = partial(play_panel, parts.policy, parts.collector, parts.games.panel, iteration=0)
    played = play(temperature=TEMPERATURE)
    tokens = sum(len(t.generation.token_ids) for e in played.trajectories for t in e.transitions)
    drawn, greedy = least(
        max(1, repeats // 2), partial(play, temperature=TEMPERATURE), partial(play, temperature=0.0)
    )
    return {
        "evaluation_s": drawn,
        "evaluation_greedy_s": greedy,
        "evaluation_tokens_per_s": tokens / drawn,
    }
