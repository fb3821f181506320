"""A BM25 index whose rankings equal Lucene 8.11's, ties included.

Lucene keeps the length of a document in one byte, which rounds lengths of 40 and more terms; scores
follow the rounded length, and with exact lengths most result pages would be ordered differently.
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envrl.envs.webshop.analyzer import ANALYZER_VERSION, analyze
from envrl.envs.webshop.postings import Postings, count_postings, fingerprint
from envrl.envs.webshop.records import Catalog, Product
from envrl.errors import DataFault

RESULTS = 50
"""Products a search returns at most."""

K1 = np.float32(0.9)
B = np.float32(0.4)

_ARRAYS = ("starts", "documents", "counts", "lengths")


class _Unreadable(Exception):
    """An index file is not what was once written."""


def document(product: Product) -> str:
    """The text under which a product is found: title, description, first bullet, options; lower-case."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    bullet = product.bullets[0] if product.bullets else ""
    return " ".join((product.title, product.description, bullet, options)).lower()


def documents(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Identifier and text of every product, in the order of the catalogue."""
    return ((product.asin, document(product)) for product in catalog.products)


def lossy_lengths(lengths: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Document lengths as one byte keeps them: exact below 40, then four significant bits beyond 24.

    Args:
        lengths: ``(documents,)``, terms per document, >= 0.

    Returns:
        ``(documents,)``, at most the lengths given.
    """
    beyond = np.maximum(lengths.astype(np.int64) - 24, 0)
    bits = np.frexp(beyond.astype(np.float64))[1]  # digits of the binary number; 0 for 0
    dropped = np.maximum(bits - 4, 0)
    rounded: NDArray[np.int64] = np.minimum(lengths, 24) + ((beyond >> dropped) << dropped)
    return rounded


@dataclass(frozen=True, slots=True, eq=False)
class SearchIndex:
    """Documents that can be searched; made by :meth:`build`, :meth:`load` or :func:`load_index`.

    Attributes:
        postings: Which term occurs how often in which document.
        numbers: Term to its number.
        bounds: Term number to where its postings start and end.
        ranks: ``(documents,)``, place of each identifier in byte order, which breaks ties.
        weights: ``(terms,)``, inverse document frequency.
        saturations: ``(postings,)``, ``1 + count * norm``, where norm falls with the document's length.
    """

    postings: Postings
    numbers: dict[str, int]
    bounds: list[tuple[int, int]]
    ranks: NDArray[np.int32]
    weights: NDArray[np.float32]
    saturations: NDArray[np.float32]

    @classmethod
    def build(cls, documents: Iterable[tuple[str, str]]) -> SearchIndex:
        """Indexes pairs of identifier and text, reading them once.

        Raises:
            DataFault: Two documents have the same identifier.
        """
        return cls._of(count_postings(documents))

    @classmethod
    def _of(cls, postings: Postings) -> SearchIndex:
        """Works out what scoring needs (BM25 with k1 = 0.9 and b = 0.4; single precision as in Lucene)."""
        asins, starts, lengths = postings.asins, postings.starts, postings.lengths
        ranks = np.empty(len(asins), np.int32)
        ranks[sorted(range(len(asins)), key=asins.__getitem__)] = np.arange(len(asins), dtype=np.int32)
        filled = max(int(np.count_nonzero(lengths)), 1)
        frequencies = np.diff(starts)
        weights = np.log(1 + (filled - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
        mean = np.float32(max(int(lengths.sum(dtype=np.int64)), 1) / filled)
        one = np.float32(1)
        norms = one / (K1 * ((one - B) + B * lossy_lengths(lengths).astype(np.float32) / mean))
        saturations = norms[postings.documents]
        saturations *= postings.counts
        saturations += one
        numbers = {word: number for number, word in enumerate(postings.terms)}
        bounds = list(pairwise(starts.tolist()))
        return cls(postings, numbers, bounds, ranks, weights, saturations)

    def search(self, query: str, k: int = RESULTS) -> tuple[str, ...]:
        """Finds the documents that share terms with a query.

        Args:
            query: Words; a term that occurs twice counts double.
            k: Highest number of results, >= 1.

        Returns:
            Identifiers, best first, equal scores in byte order of the identifiers; empty if no
            document has a term of the query.
        """
        found = (self.numbers.get(word) for word in analyze(query))
        wanted = Counter(number for number in found if number is not None)
        if not wanted:
            return ()
        numbers = list(wanted)
        spans = [slice(*self.bounds[number]) for number in numbers]
        sizes = [span.stop - span.start for span in spans]
        weights = self.weights[numbers] * np.fromiter(wanted.values(), np.float32)
        weights = weights.repeat(sizes)
        weights -= weights / np.concatenate([self.saturations[span] for span in spans])
        hits = np.concatenate([self.postings.documents[span] for span in spans])
        scores = np.bincount(hits, weights)  # adds in double precision
        return self._best(scores.astype(np.float32), k)

    def _best(self, scores: NDArray[np.float32], k: int) -> tuple[str, ...]:
        hits = scores.nonzero()[0]
        reached = scores[hits]
        if len(hits) > k:
            # All that tie with the last one stay in until the identifiers have decided.
            ordered = reached.copy()
            ordered.partition(len(hits) - k)
            enough = reached >= ordered[len(hits) - k]
            hits, reached = hits[enough], reached[enough]
        order = np.lexsort((self.ranks[hits], -reached))[:k]
        asins = self.postings.asins
        return tuple([asins[number] for number in hits[order].tolist()])

    def save(self, path: Path) -> None:
        """Writes the index as ``.npz``, whole or not at all.

        Raises:
            DataFault: The file can't be written; nothing is left behind then.
        """
        header = {
            "version": ANALYZER_VERSION,
            "fingerprint": self.postings.fingerprint,
            "asins": self.postings.asins,
            "terms": self.postings.terms,
        }
        arrays = {name: getattr(self.postings, name) for name in _ARRAYS}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                np.savez(stream, **arrays)
            os.replace(partial, path)
        except OSError as error:
            if partial.parent.is_dir():
                partial.unlink(missing_ok=True)
            raise DataFault(f"can't write {path}: {error}. Choose another place or make room") from error

    @classmethod
    def load(cls, path: Path) -> SearchIndex:
        """Reads what :meth:`save` wrote.

        Raises:
            DataFault: The file is missing, broken, or of another version of the analysis.
        """
        try:
            return cls._of(_read(path))
        except (_Unreadable, OSError) as error:
            raise DataFault(
                f"no search index in {path}: {error}. Remove the file and build it anew"
            ) from error

    def check(self, catalog: Catalog) -> None:
        """Makes sure that this is the index of a catalogue.

        Raises:
            DataFault: Products or their texts differ.
        """
        if self.postings.fingerprint == fingerprint(documents(catalog)):
            return
        known, sold = set(self.postings.asins), set(catalog.by_asin)
        example = next(iter(sorted(known ^ sold)), None)
        detail = f"only one of them has {example!r}" if example else "order or texts of the products differ"
        raise DataFault(
            f"the search index ({len(known)} products) is not of this catalogue ({len(sold)} products): "
            f"{detail}. Build it from the catalogue in use (load_index), or load the files it was built from"
        )


def _read(path: Path) -> Postings:
    """Reads and checks an index file; the checksums in it show damage.

    Raises:
        _Unreadable: It is not what :meth:`SearchIndex.save` wrote.
        OSError: It can't be opened.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes())
            arrays = {name: stored[name] for name in _ARRAYS}
        if header["version"] != ANALYZER_VERSION:
            raise _Unreadable(f"it is of analyzer version {header['version']}, not {ANALYZER_VERSION}")
        asins, terms = tuple(header["asins"]), tuple(header["terms"])
        postings = Postings(asins=asins, terms=terms, fingerprint=header["fingerprint"], **arrays)
    except (zipfile.BadZipFile, EOFError, ValueError, KeyError, TypeError) as error:
        raise _Unreadable(f"it is damaged ({error})") from error
    size = (len(terms) + 1, len(asins), int(postings.starts[-1]))
    if size != (len(postings.starts), len(postings.lengths), len(postings.documents)):
        raise _Unreadable("its parts don't fit together")
    return postings


def load_index(catalog: Catalog, cache_dir: Path | None = None) -> SearchIndex:
    """The index of a catalogue: from the cache if it is there, else built and kept there.

    A damaged file in the cache is replaced, with a warning.

    Args:
        catalog: What is to be searched.
        cache_dir: Folder of cached indices, made if absent; ``None`` to keep nothing.

    Raises:
        DataFault: The cache can't be written, or a file in it is the index of other products.
    """
    if cache_dir is None:
        return SearchIndex.build(documents(catalog))
    expected = fingerprint(documents(catalog))
    path = cache_dir / f"webshop-index-{expected[:16]}.npz"
    try:
        postings = _read(path)
    except FileNotFoundError:
        pass
    except (_Unreadable, OSError) as error:
        warnings.warn(f"the search index {path} is built anew: {error}", stacklevel=2)
    else:
        if postings.fingerprint == expected:
            return SearchIndex._of(postings)
        raise DataFault(
            f"{path} is the search index of other products than its name says "
            f"({postings.fingerprint}, not {expected}): remove it, or choose another cache folder"
        )
    index = SearchIndex.build(documents(catalog))
    index.save(path)
    return index
