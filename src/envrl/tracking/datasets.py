"""The games of a run as MLflow datasets, shown on the run's page and searchable there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from envrl.types import Game


def games_dataset(
    name: str, digest: str, games: Sequence[Game], context: Literal["evaluation", "training"]
) -> dict[str, Any]:
    """A list of games as the outbox logs it; MLflow knows a dataset by name and digest.

    Args:
        name: What MLflow calls it, e.g. the panel's name.
        digest: Hash of its content, at most 36 characters.
        games: The games, at least one.
        context: What they are for.
    """
    splits = sorted({game.split for game in games})
    types = Counter(game.family for game in games)
    environment = games[0].env
    return {
        "context": context,
        "dataset": {
            "name": name,
            "digest": digest,
            "source_type": "code",
            "source": json.dumps({"tags": {"mlflow.source.name": environment}}),
            "schema": None,
            "profile": json.dumps(
                {
                    "num_rows": len(games),
                    "split": ", ".join(splits),
                    "task_types": dict(sorted(types.items())),
                    "max_steps": max(game.max_steps for game in games),
                }
            ),
        },
    }
