"""Times WebShop searches over 1,000 products and over 100,000 generated documents.

    python benchmarks/webshop_search.py [--documents N] [--queries M] [--seed S]

With ``WEBSHOP_DATA`` set, the 1,000 products are the official ones and the queries those of
``lucene_top50.tsv`` beside them; otherwise documents and queries are generated. Generated documents have
about 105 words drawn by Zipf's law, queries two to twelve words of a document. Times are CPU seconds of
one core; no result is remembered between searches.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.files import find_files
from envrl.envs.webshop.index import SearchIndex, documents
from envrl.errors import ConfigFault, EnvrlError
from envrl.seeding import generator

SMALL, LARGE = 1_000, 100_000
QUERIES = 400
MEAN_WORDS = 105
_VOCABULARY = 60_000
_SYLLABLES = [consonant + vowel for consonant in "bcdfghklmnprstvw" for vowel in "aeiou"]
_ENDINGS = ["", "", "", "s", "ed", "ing", "er", "ness", "ation", "able", "ly"]


@dataclass(frozen=True, slots=True)
class SearchTiming:
    """CPU seconds to build an index, CPU milliseconds a search, MiB of the index's arrays, and counts."""

    source: str
    documents: int
    postings: int
    build_s: float
    search_ms: float
    slowest_ms: float
    arrays_mib: float


def _words(rng: np.random.Generator) -> list[str]:
    """Distinct made-up words, the commonest first and shortest."""
    found: dict[str, None] = {}
    while len(found) < _VOCABULARY:
        length = 1 + min(len(found) // 40 + 1, 3)
        syllables = rng.choice(_SYLLABLES, size=length)
        found["".join(syllables) + _ENDINGS[rng.integers(len(_ENDINGS))]] = None
    return list(found)


def generated_documents(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Documents of about :data:`MEAN_WORDS` words drawn by Zipf's law; one at a time, so any count."""
    rng = generator(seed, "search benchmark", "documents")
    words = np.array(_words(generator(seed, "search benchmark", "words")), dtype=object)
    odds = np.cumsum(1 / np.arange(1, len(words) + 1))
    for number in range(count):
        length = max(1, int(rng.lognormal(np.log(MEAN_WORDS) - 0.18, 0.6)))
        drawn = np.searchsorted(odds, rng.random(length) * odds[-1])
        yield f"B{number:09d}", " ".join(words[drawn])


def generated_queries(texts: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """Two to twelve words each, drawn from one of the documents."""
    rng = random.Random(seed)
    chosen = [rng.choice(texts).split(" ") for _ in range(count)]
    return [" ".join(rng.choices(words, k=rng.randint(2, 12))) for words in chosen]


def time_searches(index: SearchIndex, queries: Sequence[str]) -> tuple[float, float]:
    """CPU milliseconds a search: mean and slowest of a second pass over the queries."""
    for query in queries:
        index.search(query)
    times = []
    for query in queries:
        start = time.process_time()
        index.search(query)
        times.append(1000 * (time.process_time() - start))
    return sum(times) / len(times), max(times)


def timing(source: str, pairs: Sequence[tuple[str, str]], queries: Sequence[str]) -> SearchTiming:
    """Indexes documents and times the queries on them."""
    start = time.process_time()
    index = SearchIndex.build(pairs)
    build_s = time.process_time() - start
    mean, slowest = time_searches(index, queries)
    held = index.postings
    arrays = (held.documents, held.counts, held.lengths, held.starts)
    arrays_mib = sum(a.nbytes for a in (*arrays, index.saturations, index.weights, index.ranks)) / 2**20
    return SearchTiming(source, len(pairs), len(held.documents), build_s, mean, slowest, arrays_mib)


def time_generated(count: int, queries: int = QUERIES, seed: int = 0) -> SearchTiming:
    """Searches over generated documents."""
    pairs = list(generated_documents(count, seed))
    return timing("generated", pairs, generated_queries([text for _, text in pairs], queries, seed))


def time_small(queries: int = QUERIES, seed: int = 0) -> SearchTiming:
    """Searches over the official 1,000 products if ``WEBSHOP_DATA`` is set, else over generated ones.

    Raises:
        DataFault: The folder lacks the files.
    """
    folder = os.environ.get("WEBSHOP_DATA")
    if not folder:
        return time_generated(SMALL, queries, seed)
    files = find_files(Path(folder))
    pairs = list(documents(load_catalog(files.items, files.attributes, rng=random.Random(seed)).catalog))
    recorded = Path(folder) / "lucene_top50.tsv"
    if not recorded.is_file():
        return timing("official", pairs, generated_queries([text for _, text in pairs], queries, seed))
    lines = recorded.read_text(encoding="utf-8").splitlines()
    return timing("official", pairs, [line.split("\t")[0] for line in lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Times searches over few and many documents; returns the exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--documents", type=int, default=LARGE, help="size of the large set (default: 100000)"
    )
    parser.add_argument("--queries", type=int, default=QUERIES, help="generated queries (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is generated (default: 0)")
    options = parser.parse_args(arguments)
    try:
        if options.documents < 1 or options.queries < 1:
            raise ConfigFault("--documents and --queries must be at least 1")
        small = time_small(options.queries, options.seed)
        large = time_generated(options.documents, options.queries, options.seed)
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for found in (small, large):
        print(
            f"{found.source}: documents={found.documents} postings={found.postings} "
            f"build_s={found.build_s:.1f} search_ms={found.search_ms:.3f} "
            f"slowest_ms={found.slowest_ms:.3f} arrays_mib={found.arrays_mib:.0f}"
        )
    resident = psutil.Process().memory_info().rss
    print(f"resident_mib={resident / 2**20:.0f}")
    print(f"search_ms={small.search_ms:.3f} search_ms_{options.documents // 1000}k={large.search_ms:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
