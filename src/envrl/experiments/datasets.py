"""The games of a run as the datasets that MLflow shows on its page."""

from __future__ import annotations

from typing import Any

from envrl.envs.panels import Panel
from envrl.experiments.games import GameSets
from envrl.tracking.datasets import games_dataset


def datasets_of(games: GameSets) -> list[dict[str, Any]]:
    """The panel, by name and hash, and the training games unless a schedule names them as it goes."""
    panel = games.panel
    found = [games_dataset(panel.name, panel.panel_hash, panel.games, "evaluation")]
    if games.schedule is None and games.training:
        # Hashed as a panel is: the same games are the same dataset.
        unique = {game.game_id: game for game in games.training}
        digest = Panel("training games", tuple(unique.values())).panel_hash
        found.append(games_dataset("training games", digest, games.training, "training"))
    return found
