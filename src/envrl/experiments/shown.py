"""Episodes of an evaluation for people to read: in MLflow, and whole in the run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envrl.analysis.episodes import episode_of, write_episodes
from envrl.experiments.config import RunConfig
from envrl.policy.chat import ChatMarkup
from envrl.tracking.runs import log_episodes, log_text
from envrl.tracking.store import Store
from envrl.tracking.traces import transcripts
from envrl.types import Trajectory


@dataclass(frozen=True)
class Shown:
    """Shows episodes of one evaluation of a run.

    Attributes:
        config: What the run is; it says how many episodes are shown.
        arm: Its arm.
        chat: Reads tokens.
        iteration: Training iterations completed when they were played.
    """

    config: RunConfig
    arm: str
    chat: ChatMarkup
    iteration: int

    def log(self, store: Store, run_id: str, trajectories: Sequence[Trajectory]) -> None:
        """Logs ``train.transcripts`` of them to an MLflow run, as a page and as traces."""
        sample = _spread(trajectories, self.config.train.transcripts)
        if not sample:
            return
        # Where answers hold more than the action, what was written is shown beside what was done.
        decode = self.chat.decode if self.config.prompt.form == "reasoned" else None
        text = transcripts(sample, f"After {self.iteration} iterations", decode)
        log_text(store, run_id, text, f"transcripts/iteration_{self.iteration:04d}.md")
        log_episodes(
            store,
            run_id,
            sample,
            self.chat.decode_all,
            arm=self.arm,
            seed=self.config.seed,
            iteration=self.iteration,
        )

    def keep(self, folder: Path, trajectories: Sequence[Trajectory]) -> None:
        """Writes ``evaluation.episodes`` of them, token by token, below the run's folder."""
        sample = _spread(trajectories, self.config.evaluation.episodes)
        if sample:
            decode, arm, seed = self.chat.decode_all, self.arm, self.config.seed
            told = (episode_of(t, decode, arm=arm, seed=seed, iteration=self.iteration) for t in sample)
            write_episodes(folder, self.iteration, told)


def _spread(trajectories: Sequence[Trajectory], count: int) -> Sequence[Trajectory]:
    """At most ``count`` of them, evenly spread."""
    count = min(count, len(trajectories))
    return [trajectories[number * len(trajectories) // count] for number in range(count)]
