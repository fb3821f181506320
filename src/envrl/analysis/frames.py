"""Studies, what policies know, and episodes as pandas tables, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from envrl.analysis.episodes import Episode, evaluated_iterations
from envrl.analysis.page import html_environment
from envrl.analysis.records import RunRecord
from envrl.analysis.summary import StudySummary
from envrl.errors import DataFault
from envrl.untrusted import parse_json, read_text


def latest_study_folder(root: Path, name: str | None = None) -> Path:
    """Folder of a study: the one of that name, or the one with the newest record.

    Args:
        root: Folder of the MLflow store, with ``studies/`` below it.
        name: Name of the study.

    Raises:
        DataFault: There is none.
    """
    newest: dict[Path, float] = {}
    for path in (root / "studies").glob("*/runs/*/seed_*/record.json"):
        folder = path.parents[3]
        newest[folder] = max(newest.get(folder, 0.0), path.stat().st_mtime)
    studies = {folder: time for folder, time in newest.items() if (folder / "study.json").is_file()}
    if name is None and studies:
        newest = studies  # single runs and sweeps have no arms to compare
    elif name is not None:
        newest = {folder: time for folder, time in newest.items() if folder.name == name}
    if not newest:
        wanted = f"no study '{name}'" if name is not None else "no study"
        raise DataFault(
            f"there is {wanted} with a run under {root / 'studies'}; run `make ablate` first, or name "
            "another root"
        )
    return max(newest, key=lambda folder: newest[folder])


def baseline_of(study_folder: Path) -> str:
    """The arm that a study compares the others with, as its ``study.json`` says.

    Raises:
        DataFault: The file is missing or broken.
    """
    path = study_folder / "study.json"
    try:
        return str(parse_json(read_text(path))["study"]["baseline"])
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DataFault(
            f"{path} can't be read ({fault}); name a folder that `python -m envrl.experiments.ablate` wrote"
        ) from fault


def environment_of(records: Sequence[RunRecord]) -> str:
    """Name of the environment of a study's runs.

    Raises:
        DataFault: The first record has none in its configuration.
    """
    try:
        return str(records[0].config["env"]["name"])
    except (IndexError, KeyError, TypeError) as fault:
        raise DataFault("the records don't say which environment they are of (env.name)") from fault


def arm_frame(summary: StudySummary) -> pd.DataFrame:
    """One row for each arm, rates and intervals in percent, the baseline first.

    Columns: ``seeds, initial, final, low, high, gain, over_training, task_types, difference, difference_low,
    difference_high, p, reached_at, seconds``; those of the difference are empty for the baseline.
    """
    rows = {}
    for arm in summary.arms:
        against = summary.comparisons.get(arm.name)
        difference = against.difference if against else None
        rows[arm.name] = {
            "seeds": len(arm.seeds),
            "initial": 100 * arm.initial.value,
            "final": 100 * arm.final.value,
            "low": 100 * arm.final.low,
            "high": 100 * arm.final.high,
            "gain": 100 * arm.gain.value,
            "over_training": 100 * arm.area.value,
            "task_types": 100 * arm.final_macro,
            "difference": 100 * difference.value if difference else None,
            "difference_low": 100 * difference.low if difference else None,
            "difference_high": 100 * difference.high if difference else None,
            "p": against.p_value if against else None,
            "reached_at": arm.iterations_to_baseline,
            "seconds": arm.seconds,
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "arm"
    return frame.astype({"reached_at": "Int64"})


def family_frame(summary: StudySummary) -> pd.DataFrame:
    """Final success in percent, arms by task types."""
    rows = {
        arm.name: {family: 100 * curve[-1].success.value for family, curve in arm.family_curves.items()}
        for arm in summary.arms
    }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "arm"
    return frame


def dynamics_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """What policies knew of the environment: one row for each arm, seed, evaluation and metric.

    Columns: ``arm, seed, iteration, metric, value, success_rate``; the metric without ``dynamics/``.

    Raises:
        DataFault: No evaluation has asked (``evaluation.dynamics: 0``).
    """
    rows = [
        (record.arm, record.seed, e.iteration, name.removeprefix("dynamics/"), value, e.success_rate)
        for record in records
        for e in record.evaluations
        for name, value in sorted(e.dynamics.items())
    ]
    if not rows:
        raise DataFault(
            "no evaluation of these runs has asked what the policy knows; set evaluation.dynamics above 0"
        )
    names = ["arm", "seed", "iteration", "metric", "value", "success_rate"]
    return pd.DataFrame(rows, columns=names)


def episode_frame(episodes: Iterable[Episode]) -> pd.DataFrame:
    """One row for each episode.

    Columns: ``arm, seed, iteration, game_id, family, won, stop, turns, inadmissible`` (share of turns),
    ``unparsed`` (share of turns), ``logprob`` (mean of an answer, nats), ``task_score``.
    """
    rows = []
    for episode in episodes:
        turns = episode.turns
        count = max(1, len(turns))
        rows.append(
            {
                "arm": episode.arm,
                "seed": episode.seed,
                "iteration": episode.iteration,
                "game_id": episode.game_id,
                "family": episode.family,
                "won": episode.won,
                "stop": episode.stop.value,
                "turns": len(turns),
                "inadmissible": sum(not turn.action_admissible for turn in turns) / count,
                "unparsed": sum(turn.action is None for turn in turns) / count,
                "logprob": sum(turn.logprob for turn in turns) / count,
                "task_score": episode.task_score,
            }
        )
    return pd.DataFrame(rows)


def runs_with_episodes(study_folder: Path) -> tuple[Path, ...]:
    """Folders of the runs of a study that have kept episodes, ordered by name.

    Raises:
        DataFault: None has.
    """
    found = tuple(f for f in sorted(study_folder.glob("runs/*/seed_*")) if evaluated_iterations(f))
    if not found:
        raise DataFault(
            f"no run under {study_folder / 'runs'} has kept episodes; set evaluation.episodes above 0"
        )
    return found


def episode_html(episode: Episode) -> Markup:
    """An episode as HTML to be shown in a notebook: what the policy saw and did, turn by turn, escaped."""
    template = html_environment().get_template("episode.html.j2")
    return Markup(template.render(e=episode))
