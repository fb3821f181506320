"""Plays a game in the terminal, or watches somebody play it: ``python -m envrl.play --help``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from envrl.envs.pool import EnvPool
from envrl.errors import ConfigFault
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.console import guarded
from envrl.experiments.plain import assignments
from envrl.experiments.trained import trained_config

if TYPE_CHECKING:
    from envrl.experiments.play_session import Proposer

_KINDS = ("expert", "random", "embedded")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
    return guarded(lambda: _command(options), "left")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m envrl.play",
        description="Play a game in the terminal; or, with --policy, watch somebody play it step by step and "
        "take over whenever you like. The games are the evaluation panel's. /help lists what can be typed.",
        epilog="What --set knows: python -m envrl.experiments.evaluate --help",
        allow_abbrev=False,
    )
    made.add_argument(
        "--env", choices=["alfworld", "webshop"], help="environment (default: the run's, else alfworld)"
    )
    made.add_argument(
        "--policy",
        metavar="WHO",
        help="whom to watch: expert, random, embedded (the policy that comes with the package), or the "
        "folder of a trained run; without it you play alone",
    )
    made.add_argument("--game", help="number of a game from 1, or the beginning of its id (default: 1)")
    made.add_argument("--family", help="only games of this task type")
    made.add_argument(
        "--games",
        choices=["generated", "official"],
        help="generated on this machine, or the real ones below ALFWORLD_DATA or WEBSHOP_DATA "
        "(default: the run's, else generated)",
    )
    made.add_argument(
        "--split", choices=["valid_seen", "valid_unseen", "test"], help="short for --set evaluation.split"
    )
    made.add_argument(
        "--steps",
        type=int,
        help="most steps of an episode, short for --set env.max_steps (default: the run's; else 12 in "
        "generated rooms, 50 in official ones, 15 in the shop)",
    )
    made.add_argument(
        "--temperature",
        type=float,
        help="of the policy's sampling, 0 = greedy; short for --set sampling.eval_temperature",
    )
    made.add_argument(
        "--seed", type=int, default=0, help="of the policy's draws; 0, the default, are an evaluation's"
    )
    made.add_argument("--auto", action="store_true", help="play to the end of the game without asking")
    made.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the configuration, e.g. --set env.receptacles=null; can be repeated",
    )
    return made


def _command(options: argparse.Namespace) -> int:
    run = _run_folder(options)
    config = play_config(options, run)
    # What follows takes a second or more to import.
    from envrl.envs.panels import episode_seed
    from envrl.experiments.games import environment_factory, evaluation_panel
    from envrl.experiments.play_games import choose_games
    from envrl.experiments.play_lines import standard_lines
    from envrl.experiments.play_loop import Dialogue, Stage
    from envrl.experiments.play_proposers import ExpertProposer
    from envrl.experiments.play_screen import Screen
    from envrl.experiments.play_session import PlaySession

    games = choose_games(evaluation_panel(config.env, config.evaluation).games, options.family)
    first = games.numbered[0][1] if options.game is None else games.find(options.game)
    with ExitStack() as stack:
        pool = stack.enter_context(EnvPool(environment_factory(config.env), 1, config.rollout.env_timeout_s))
        proposer = _proposer(options.policy, run, config, stack)
        stage = Stage(
            games,
            lambda game: PlaySession(pool, game, episode_seed(game, options.seed), proposer),
            proposer,
            ExpertProposer(),
        )
        screen = Screen(Console(highlight=False))
        Dialogue(stage, screen, standard_lines(), options.auto).run(first)
    return 0


def _run_folder(options: argparse.Namespace) -> Path | None:
    """The run's folder, if one is to be watched; refuses options that would change nothing."""
    if options.seed < 0:
        raise ConfigFault(f"--seed is {options.seed}; use 0 or a positive number")
    if options.policy is None and options.auto:
        raise ConfigFault("--auto plays by itself, so it needs somebody to watch; add --policy")
    if options.policy in (None, "expert", "random") and options.temperature is not None:
        who = "a person" if options.policy is None else f"--policy {options.policy}"
        raise ConfigFault(
            f"--temperature is {options.temperature}, but {who} samples nothing; leave it out, or use "
            "--policy embedded or a run"
        )
    if options.policy is None or options.policy in _KINDS:
        return None
    run = Path(options.policy)
    if not run.is_dir():
        raise ConfigFault(
            f"--policy is '{run}', which is neither {', '.join(_KINDS)} nor a folder; give one of these, or "
            "the folder of a trained run such as mlruns/studies/quick/runs/grpo/seed_0"
        )
    return run


def play_config(options: argparse.Namespace, run: Path | None) -> RunConfig:
    """The configuration to play under: a run's own or the defaults, changed by the options.

    Raises:
        ConfigFault: An option is impossible, or the run is one on another environment.
        DataFault: The folder is not one of a run.
    """
    layers: list[dict[str, Any]] = [] if run is None else [trained_config(run)]
    if run is None:
        layers.append({"env": {"name": options.env or "alfworld"}})
    short = {
        "env.games": options.games,
        "env.max_steps": options.steps,
        "evaluation.split": options.split,
        "sampling.eval_temperature": options.temperature,
    }
    layers.append({key: value for key, value in short.items() if value is not None})
    layers.append(assignments(options.set))
    config = config_from(*layers)
    if options.env not in (None, config.env.name):
        whose = "--set env.name" if run is None else f"'{run}'"
        raise ConfigFault(
            f"--env is {options.env}, but {whose} is on {config.env.name}; leave --env out, or choose "
            "another --policy"
        )
    return config


def _proposer(who: str | None, run: Path | None, config: RunConfig, stack: ExitStack) -> Proposer | None:
    """Whom to watch; None if a person plays alone."""
    from envrl.experiments.play_proposers import ExpertProposer, PolicyProposer, RandomProposer

    if who is None:
        return None
    if run is None and who != "embedded":
        return ExpertProposer() if who == "expert" else RandomProposer()
    import torch

    from envrl.experiments.resume import CHECKPOINT, completed_iterations, read_checkpoint
    from envrl.experiments.run import build_sampler, closed_in_the_end
    from envrl.experiments.trained import trained_policy
    from envrl.policy.model import load_policy

    torch.set_num_threads(config.train.threads)
    sampler = build_sampler(config)
    stack.enter_context(closed_in_the_end(sampler))
    if run is None:
        return PolicyProposer(config, load_policy(config.embodied), sampler, config.embodied.model)
    checkpoint = read_checkpoint(run / CHECKPOINT)
    name = f"{run.parent.name} {run.name} after {completed_iterations(checkpoint)} iterations"
    return PolicyProposer(config, trained_policy(config, checkpoint), sampler, name)
