"""What happens around training: evaluation, random state, progress."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from envrl.policy.ranks import ALONE, Ranks
from envrl.training.checkpoints import write_checkpoint
from envrl.training.progress import Progress

__all__ = [
    "CheckpointCallback",
    "CheckpointFiles",
    "EvaluationCallback",
    "Progress",
    "ProgressCallback",
    "RandomStateCallback",
]


class EvaluationCallback(L.Callback):
    """Evaluates before training, every ``every`` iterations and after the last one.

    Args:
        evaluate: Plays the panel after that many completed iterations; returns the success rate.
        every: Iterations between evaluations.
    """

    def __init__(self, evaluate: Callable[[int], float], every: int) -> None:
        self._evaluate = evaluate
        self._every = every
        self.last: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The policy before any update, unless the run goes on from a checkpoint."""
        if trainer.current_epoch == 0 and trainer.global_step == 0:
            self.last = self._evaluate(0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluates if it is time."""
        completed = trainer.current_epoch + 1
        if completed % self._every == 0 or completed == trainer.max_epochs:
            self.last = self._evaluate(completed)

    def state_dict(self) -> dict[str, Any]:
        """The last result, for the progress display of a resumed run."""
        return {"last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the last result."""
        self.last = state_dict["last"]


class RandomStateCallback(L.Callback):
    """Keeps the states of torch's, numpy's and Python's global generators in the checkpoint.

    Nothing of this package draws from them while training, but dropout and other people's code do.

    Args:
        ranks: The processes of the run; each has states of its own.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks

    def state_dict(self) -> dict[str, Any]:
        """States of all three, as tensors and plain values (loadable with ``weights_only``).

        All processes call it; those of the first stand where they stand for a process alone.
        """
        first, *others = self._ranks.everyone(self._states)
        return {**first, "others": others}

    def _states(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
        version, internal, gauss = random.getstate()
        state = {
            "torch": torch.get_rng_state(),
            "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position)],
            "numpy_gauss": [int(has_gauss), float(cached)],
            "python": [version, list(internal), gauss],
        }
        if torch.cuda.is_available():
            # Of this process's device alone: the run may go on where there are fewer.
            state["cuda"] = [torch.cuda.get_rng_state()]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets all three; a process that was not there when they were kept goes on with its own."""
        everyone = [state_dict, *state_dict.get("others", [])]
        if self._ranks.rank < len(everyone):
            self._set(everyone[self._ranks.rank])

    def _set(self, state_dict: dict[str, Any]) -> None:
        torch.set_rng_state(state_dict["torch"])
        kind, keys, position = state_dict["numpy"]
        has_gauss, cached = state_dict["numpy_gauss"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
        version, internal, gauss = state_dict["python"]
        random.setstate((version, tuple(internal), gauss))
        if "cuda" in state_dict and torch.cuda.is_available():
            torch.cuda.set_rng_state(state_dict["cuda"][0])


class CheckpointFiles(TorchCheckpointIO):
    """Has the trainer write checkpoints with a checksum, and keep the one before.

    Lightning's own way goes through the system's folder of temporary files, from which a file is not moved
    in one step to another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Writes one (:func:`envrl.training.checkpoints.write_checkpoint`)."""
        write_checkpoint(checkpoint, Path(path))


class CheckpointCallback(Checkpoint):
    """Keeps the newest state of the run in one file, replaced as a whole.

    Lightning calls it after all other callbacks, so the state covers the iteration and its evaluation.

    Args:
        path: The file.
        every: Iterations between checkpoints; there is always one after the last iteration.
    """

    def __init__(self, path: Path, every: int) -> None:
        self._path = path
        self._every = every

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves if it is time."""
        completed = trainer.current_epoch + 1
        if completed % self._every == 0 or completed == trainer.max_epochs:
            trainer.save_checkpoint(self._path)


class ProgressCallback(L.Callback):
    """Reports where the run stands after every iteration.

    Args:
        report: Told the progress.
        training_success: Success rate of the episodes collected last.
        evaluation: Source of the last evaluation.
    """

    def __init__(
        self,
        report: Callable[[Progress], None],
        training_success: Callable[[], float | None],
        evaluation: EvaluationCallback,
    ) -> None:
        self._report = report
        self._training_success = training_success
        self._evaluation = evaluation
        self._started = time.perf_counter()
        self._first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()
        self._first = trainer.current_epoch
        self._tell(trainer, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reports."""
        self._tell(trainer, trainer.current_epoch + 1)

    def _tell(self, trainer: L.Trainer, completed: int) -> None:
        seconds = time.perf_counter() - self._started
        total = trainer.max_epochs or completed
        made = completed - self._first
        left = seconds / made * (total - completed) if made > 0 else None
        self._report(
            Progress(completed, total, self._training_success(), self._evaluation.last, seconds, left)
        )
