"""The one tree of random seeds: run -> iteration -> game -> episode -> sampler.

Every random number in a run comes from a generator whose seed is derived from the run's seed and
the path that led to it, so that any part can be replayed alone and nothing depends on order.
"""

from __future__ import annotations

import hashlib
from operator import index

import numpy as np


def derive_seed(root: int, *path: str | int) -> int:
    """Seed for the place ``path`` below the root seed, as a non-negative 63-bit integer.

    The same root and path give the same seed in every process and on every platform; different
    paths give independent seeds (BLAKE2b of the path feeds ``numpy.random.SeedSequence``).

    Args:
        root: The run's seed, any integer >= 0.
        path: Names and numbers from the root down, e.g. ``("iteration", 3, "episode", 17)``. A numpy
            integer leads to the same place as the equal ``int``.
    """
    text = "\x1f".join(f"str:{p}" if isinstance(p, str) else f"int:{index(p)}" for p in path)
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype=np.uint32)
    sequence = np.random.SeedSequence(entropy=root, spawn_key=tuple(int(w) for w in words))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def generator(root: int, *path: str | int) -> np.random.Generator:
    """numpy generator for the place ``path`` below the root seed (see :func:`derive_seed`)."""
    return np.random.default_rng(derive_seed(root, *path))
