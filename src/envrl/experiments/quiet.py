"""Keeps what Lightning says to people who write its trainers from people who use them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_CHATTY_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
_NOT_FOR_USERS = (
    r".*does not have many workers which may be a bottleneck",
    r".*`IterableDataset` has `__len__` defined",
    r".*`isinstance\(treespec, LeafSpec\)`",
    # What is logged at the end of an epoch was joined by the module.
    r".*when logging on epoch level in distributed setting",
)
"""Beginnings of Lightning's warnings about things that are as they should be."""


@contextmanager
def lightning_without_notes() -> Iterator[None]:
    """Leaves out what Lightning says of hardware it found and of a loader that has no workers on purpose."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _NOT_FOR_USERS:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
