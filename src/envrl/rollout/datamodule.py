"""The rollout DataModule: one Lightning epoch = one iteration of interaction and its updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from envrl.policy.batch import RolloutBatch
from envrl.policy.ranks import ALONE, Ranks
from envrl.rollout.collate import like_the_others
from envrl.rollout.settings import BatchSettings
from envrl.rollout.source import Experience, RolloutSource


class RolloutDataset(IterableDataset[RolloutBatch]):
    """Plays when it is iterated; its length is known, so Lightning doesn't fetch ahead of an update."""

    def __init__(self, datamodule: RolloutDataModule, length: int) -> None:
        self._datamodule = datamodule
        self._length = length

    def __len__(self) -> int:
        """Micro-batches of an iteration that are this process's."""
        return self._length

    def __iter__(self) -> Iterator[RolloutBatch]:
        """Collects an iteration, then gives this process's share of its micro-batches."""
        yield from self._datamodule.share(self._datamodule.begin_iteration().batches)


class RolloutDataModule(L.LightningDataModule):
    """Interleaves environment interaction with training.

    The loader has a length and no workers, so an iteration is played by exactly the weights that the
    first update starts from (staleness 0; the training module asserts it). Use with
    ``reload_dataloaders_every_n_epochs=1``.

    Args:
        source: Collects iterations.
        batch: Updates and micro-batches of an iteration.
        policy_version: Number of optimiser updates made so far.
        on_collected: Told what was collected, e.g. to log it.
        ranks: Processes that the micro-batches of every update are shared out to; their number divides it.
    """

    def __init__(
        self,
        source: RolloutSource,
        batch: BatchSettings,
        policy_version: Callable[[], int],
        on_collected: Callable[[int, Experience], None],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self._source = source
        self._batch = batch
        self._policy_version = policy_version
        self._on_collected = on_collected
        self._ranks = ranks
        self.episodes_played = 0

    def begin_iteration(self) -> Experience:
        """Plays the current iteration (the trainer's epoch)."""
        assert self.trainer is not None
        iteration = self.trainer.current_epoch
        experience = self._source.collect(iteration, self._policy_version())
        self.episodes_played += experience.episodes
        self._on_collected(iteration, experience)
        return experience

    def share(self, batches: list[RolloutBatch]) -> list[RolloutBatch]:
        """This process's share of an iteration's micro-batches: the same number of every update's.

        Where processes share the policy's layers, those at a time hold the same kinds of rows, so that all
        processes make the same passes.
        """
        rank, world = self._ranks.rank, self._ranks.world
        mine = batches[rank::world]
        if self._ranks.divides == "layers":
            at_once = [batches[start : start + world] for start in range(0, len(batches), world)]
            mine = [like_the_others(step[rank], step) for step in at_once]
        return [replace(mine[0], first_of_iteration=True), *mine[1:]]

    def train_dataloader(self) -> DataLoader[RolloutBatch]:
        """Loader of one iteration."""
        assert self.trainer is not None
        return DataLoader(
            RolloutDataset(self, self._batch.batches_in(self.trainer.current_epoch) // self._ranks.world),
            batch_size=None,
            num_workers=0,
            # An own generator: otherwise opening the loader would draw from torch's global one.
            generator=torch.Generator().manual_seed(0),
        )

    def state_dict(self) -> dict[str, Any]:
        """Counters; the random numbers of an iteration depend on the seed and its number only."""
        return {"episodes_played": self.episodes_played}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counters."""
        self.episodes_played = int(state_dict["episodes_played"])
