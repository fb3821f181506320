"""What a customer finds: words in the texts of products, or one of four special queries.

    python -m envrl.envs.webshop.search --items FILE [--attributes FILE] [--top 50] < queries

prints a line per query: the query, a tab, the identifiers found, best first and separated by blanks.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.index import RESULTS, SearchIndex, load_index
from envrl.envs.webshop.records import Catalog
from envrl.errors import ConfigFault, DataFault, EnvrlError

RANDOM_PRODUCTS = 50
"""What the query ``<r>`` draws."""

REMEMBERED_QUERIES = 8192
"""Results kept per search; every page of a result list asks for the whole list again."""


class Search:
    """Search over one catalogue; nothing in it changes, so all episodes of a process can share it.

    Args:
        catalog: What is sold.
        index: Its index; what it finds beyond the catalogue is left out.
        top: Highest number of results of a query in words.

    Raises:
        DataFault: The index lacks products of the catalogue.
    """

    def __init__(self, catalog: Catalog, index: SearchIndex, top: int = RESULTS) -> None:
        unindexed = catalog.by_asin.keys() - set(index.postings.asins)
        if unindexed:
            raise DataFault(
                f"the search index lacks {len(unindexed)} of {len(catalog.products)} products, "
                f"{min(unindexed)!r} among them: build it from this catalogue (load_index)"
            )
        self._catalog = catalog
        self._index = index
        self._top = top
        self._by_category = _grouped((p.category, p.asin) for p in catalog.products)
        self._by_query = _grouped((p.query, p.asin) for p in catalog.products)
        self._ranked = lru_cache(maxsize=REMEMBERED_QUERIES)(self._rank)

    def results(self, keywords: Sequence[str], rng: random.Random) -> tuple[str, ...]:
        """All identifiers a query finds.

        A first keyword ``<r>`` draws 50 products (all, in random order, if there are fewer), anew in
        every call; ``<c>`` finds the category named by the next keyword, ``<q>`` the search phrase and
        ``<a>`` the attribute made up of all other keywords. These three come in the order of the
        catalogue and without a limit; they are empty where nothing is named.

        Args:
            keywords: A query in lower case, split at single blanks.
            rng: What ``<r>`` draws from.

        Returns:
            Identifiers, best first; empty if nothing fits.
        """
        first, *others = keywords or ("",)
        if first == "<r>":
            asins = [product.asin for product in self._catalog.products]
            return tuple(rng.sample(asins, min(RANDOM_PRODUCTS, len(asins))))
        if first == "<c>":
            return self._by_category.get(others[0].strip(), ()) if others else ()
        if first == "<q>":
            return self._by_query.get(" ".join(others).strip(), ())
        if first == "<a>":
            return tuple(self._catalog.by_attribute.get(" ".join(others).strip(), ()))
        return self._ranked(" ".join(keywords))

    def _rank(self, query: str) -> tuple[str, ...]:
        found = self._index.search(query, self._top)
        return tuple(asin for asin in found if asin in self._catalog.by_asin)


def keywords_of(query: str) -> tuple[str, ...]:
    """A query as the shop takes it: lower case, split at every single blank."""
    return tuple(query.lower().split(" "))


def _grouped(pairs: Iterable[tuple[str, str]]) -> Mapping[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for name, asin in pairs:
        groups.setdefault(name, []).append(asin)
    return {name: tuple(asins) for name, asins in groups.items()}


def _load(items: Path, attributes: Path | None, rng: random.Random) -> Catalog:
    """The catalogue; without an attribute file, one in which no product has any."""
    if attributes is not None:
        return load_catalog(items, attributes, rng=rng).catalog
    with tempfile.TemporaryDirectory() as folder:
        nothing = Path(folder) / "attributes.json"
        nothing.write_text("{}", encoding="utf-8")
        return load_catalog(items, nothing, rng=rng).catalog


def main(arguments: Sequence[str] | None = None) -> int:
    """Answers the queries of the standard input, one a line; returns the exit code."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.envs.webshop.search",
        description="Answers the queries of the standard input, one a line.",
    )
    parser.add_argument("--items", type=Path, required=True, help="products, in the official format")
    parser.add_argument("--attributes", type=Path, help="their attributes, for the query <a>")
    parser.add_argument("--top", type=int, default=RESULTS, help="most products a line (default: 50)")
    parser.add_argument("--cache", type=Path, help="folder to keep the index in (default: keep none)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the query <r> (default: 0)")
    options = parser.parse_args(arguments)
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    try:
        if options.top < 1:
            raise ConfigFault(f"--top {options.top}: ask for at least one product")
        rng = random.Random(options.seed)
        catalog = _load(options.items, options.attributes, rng)
        search = Search(catalog, load_index(catalog, options.cache), options.top)
        for line in sys.stdin:
            query = line.rstrip("\r\n")
            print(query, " ".join(search.results(keywords_of(query), rng)[: options.top]), sep="\t")
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
