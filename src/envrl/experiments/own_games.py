"""Environments that stand outside this package, named in a configuration as ``module:class``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from envrl.envs.base import TextEnvKind
from envrl.envs.panels import Panel, draw_games, make_panel
from envrl.envs.slots import SlotHost
from envrl.errors import ConfigFault, DataFault
from envrl.experiments.settings import EnvSettings, EvaluationSettings
from envrl.types import Game
from envrl.untrusted import standard_library


def own_environment(name: str) -> TextEnvKind:
    """The class that ``module:class`` names.

    Raises:
        ConfigFault: It can't be imported, or does not follow the protocols.
    """
    module, _, attribute = name.partition(":")
    if standard_library(module):
        raise ConfigFault(f"env.name is '{name}', a module of Python's own; name one of yours")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
        remedy = "put its folder on PYTHONPATH" if missing else "repair the module or the name"
        reason = " ".join(str(error).split())
        raise ConfigFault(
            f"env.name is '{name}', which can't be imported ({type(error).__name__}: {reason}); {remedy}"
        ) from error
    lacking = [method for method in ("games", "reset", "step", "close") if not hasattr(found, method)]
    if not isinstance(found, type) or lacking:
        what = f"lacks {', '.join(lacking)}" if lacking else "is no class"
        raise ConfigFault(
            f"env.name is '{name}', which {what}; follow TextEnv and TextEnvKind of envrl.envs.base"
        )
    return cast(TextEnvKind, found)


def own_panel(env: EnvSettings, evaluation: EvaluationSettings) -> Panel:
    """The fixed panel: games of the split, families balanced as far as it allows.

    Raises:
        DataFault: The split has too few games, or what it has are no games.
    """
    split = evaluation.split or "test"
    return make_panel(_games(env, split), evaluation.games, evaluation.seed, split)


def own_training_games(env: EnvSettings) -> tuple[Game, ...]:
    """Games to train on; the first one is begun once, so that a broken environment is told before a run.

    Raises:
        DataFault: There are none, or what there is are no games.
        EnvFault: The first one can't be reset.
    """
    games = draw_games(_games(env, "train"), env.train_games, env.games_seed)
    host = SlotHost(own_environment(env.name), 0)
    result = host.reset(games[0], seed=0)
    host.discard()
    if result.fault is not None:
        raise result.fault
    return games


def _games(env: EnvSettings, split: str) -> Sequence[Game]:
    try:
        games = list(own_environment(env.name).games(split))
    except (ConfigFault, DataFault):
        raise
    except Exception as error:
        raise DataFault(
            f"env.name is '{env.name}', whose games('{split}') raised {type(error).__name__}: {error}"
        ) from error
    if not games:
        raise DataFault(f"env.name is '{env.name}', which has no games of the split '{split}'; give some")
    for game in games:
        if not isinstance(game, Game):
            raise DataFault(f"env.name is '{env.name}', whose games('{split}') gave {game!r:.100}, no Game")
    return [replace(game, max_steps=env.steps) for game in games]
