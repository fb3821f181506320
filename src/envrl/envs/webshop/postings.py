"""Counting which term occurs where: the part of indexing that takes time and memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envrl.envs.webshop.analyzer import ANALYZER_VERSION, term, tokens
from envrl.errors import DataFault

_BLOCK_TOKENS = 2_000_000
"""Words counted at a time; bounds the memory needed besides the postings themselves."""

_REMEMBERED_WORDS = 1 << 20
"""Spellings whose term is remembered while counting."""


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """Which term occurs how often in which document.

    Attributes:
        asins: Document number to identifier, in the order the documents came.
        terms: Term number to term.
        starts: ``(terms + 1,)``, where the postings of a term start.
        documents: ``(postings,)``, document numbers, ascending within a term.
        counts: ``(postings,)``, occurrences of the term in the document, >= 1.
        lengths: ``(documents,)``, terms per document, repetitions included.
        fingerprint: Hash of identifiers, texts and analyzer version.
    """

    asins: tuple[str, ...]
    terms: tuple[str, ...]
    starts: NDArray[np.int64]
    documents: NDArray[np.int32]
    counts: NDArray[np.unsignedinteger[Any]]
    lengths: NDArray[np.int32]
    fingerprint: str


class Fingerprint:
    """Hash of documents fed one by one; the order counts."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(f"analyzer {ANALYZER_VERSION}".encode(), digest_size=16)

    def add(self, asin: str, text: str) -> None:
        """Takes in one document."""
        # Half a surrogate pair can stand in JSON, and has no encoding of its own.
        encoded = [part.encode("utf-8", "surrogatepass") for part in (asin, text)]
        self._hash.update(b"%d %d " % (len(encoded[0]), len(encoded[1])) + encoded[0] + encoded[1])

    def value(self) -> str:
        """32 hexadecimal digits."""
        return self._hash.hexdigest()


def fingerprint(documents: Iterable[tuple[str, str]]) -> str:
    """Hash of documents in their order, as in :attr:`Postings.fingerprint`."""
    hashed = Fingerprint()
    for asin, text in documents:
        hashed.add(asin, text)
    return hashed.value()


class _Numbers(dict[str, int]):
    """Word as spelt to the number of its term; -1 for stop words. New terms get the next number."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, int] = {}

    def __missing__(self, token: str) -> int:
        if len(self) >= _REMEMBERED_WORDS:
            self.clear()
        found = term(token)
        number = -1 if found is None else self.terms.setdefault(found, len(self.terms))
        self[token] = number
        return number


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Postings of consecutive documents, ascending by term, then by document."""

    terms: NDArray[np.int32]
    documents: NDArray[np.int32]
    counts: NDArray[np.unsignedinteger[Any]]
    lengths: NDArray[np.int32]


def count_postings(documents: Iterable[tuple[str, str]]) -> Postings:
    """Analyzes and counts documents, reading them once.

    Args:
        documents: Pairs of identifier and text.

    Raises:
        DataFault: Two documents have the same identifier.
    """
    numbers, hashed = _Numbers(), Fingerprint()
    asins: dict[str, None] = {}
    blocks: list[_Block] = []
    buffer, sizes = array("i"), array("i")
    for asin, text in documents:
        if asin in asins:
            raise DataFault(f"the identifier {asin!r} names two documents: keep one of them")
        asins[asin] = None
        hashed.add(asin, text)
        found = tokens(text)
        buffer.extend(map(numbers.__getitem__, found))
        sizes.append(len(found))
        if len(buffer) >= _BLOCK_TOKENS:
            blocks.append(_count_block(buffer, sizes, len(asins) - len(sizes)))
            buffer, sizes = array("i"), array("i")
    blocks.append(_count_block(buffer, sizes, len(asins) - len(sizes)))
    return _merge(blocks, tuple(asins), tuple(numbers.terms), hashed.value())


def _count_block(buffer: array[int], sizes: array[int], first: int) -> _Block:
    """Counts the term numbers of the documents ``first``, ``first + 1``, … (``sizes`` words each)."""
    terms = np.frombuffer(buffer, dtype=np.int32) if buffer else np.zeros(0, np.int32)
    places = np.repeat(np.arange(len(sizes), dtype=np.int64), np.asarray(sizes, dtype=np.int64))
    places, terms = places[terms >= 0], terms[terms >= 0]
    keys, counts = np.unique((terms.astype(np.int64) << 32) | places, return_counts=True)
    return _Block(
        terms=(keys >> 32).astype(np.int32),
        documents=((keys & 0xFFFFFFFF) + first).astype(np.int32),
        counts=counts.astype(np.min_scalar_type(int(counts.max(initial=0)))),
        lengths=np.bincount(places, minlength=len(sizes)).astype(np.int32),
    )


def _merge(blocks: list[_Block], asins: tuple[str, ...], terms: tuple[str, ...], digest: str) -> Postings:
    """Joins the blocks into one list of postings by term; empties ``blocks`` as it goes."""
    frequencies = np.zeros(len(terms), np.int64)
    for block in blocks:
        frequencies += np.bincount(block.terms, minlength=len(terms))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(frequencies)])
    documents = np.empty(starts[-1], np.int32)
    counts = np.empty(starts[-1], np.result_type(*(block.counts.dtype for block in blocks)))
    lengths = np.concatenate([block.lengths for block in blocks])
    free = starts[:-1].copy()
    blocks.reverse()
    while blocks:
        block = blocks.pop()
        held = np.bincount(block.terms, minlength=len(terms))
        before = np.cumsum(held) - held
        target = (free - before)[block.terms] + np.arange(len(block.terms))
        documents[target], counts[target] = block.documents, block.counts
        free += held
    return Postings(asins, terms, starts, documents, counts, lengths, digest)
