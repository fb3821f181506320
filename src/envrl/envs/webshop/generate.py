"""Generates catalogues of invented products in the official file format: any size, seeded, no download.

    python -m envrl.envs.webshop.generate --out shop --count 1000 --seed 0

Products of a kind share brands, nouns and attributes and differ in what a customer asks for, so that a search
finds the wanted product among several that nearly fit. Every synthetic goal can be met.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from envrl.envs.webshop.files import FULL, HUMAN, ShopFiles, find_files
from envrl.envs.webshop.invent import MOST_PRODUCTS, Invention, invent
from envrl.errors import ConfigFault, DataFault, EnvrlError
from envrl.seeding import generator

DEFAULT_COUNT = 1000
DEFAULT_SEED = 0
_DRAWS_VERSION = 2
"""Raised when the same count and seed would give other products: cached catalogues then don't mix."""


def item_entry(product: Invention) -> dict[str, Any]:
    """The product as an entry of the official product list."""
    return {
        "asin": product.asin,
        "name": product.title,
        "full_description": product.description,
        "small_description": list(product.bullets),
        "pricing": "".join(f"${price:.2f}" for price in product.prices),
        "category": product.kind.category,
        "query": product.kind.query,
        "product_category": " › ".join(product.kind.path),
        "customization_options": {
            group: [
                {
                    "price_string": "",
                    "price": 0,
                    "image": None,
                    "value": value,
                    "is_selected": False,
                    "asin": None,
                    "url": None,
                }
                for value in values
            ]
            for group, values in product.options.items()
        }
        or "",
        "images": [f"https://example.com/{product.asin}.jpg"],
    }


def _asked(product: Invention) -> tuple[list[str], list[str], list[str]]:
    """The wanted attributes by where a sentence puts them: before the noun, after "with", after "for"."""
    kind, wanted = product.kind, product.wanted
    return (
        [attribute for attribute in wanted if attribute in kind.before],
        [attribute for attribute in wanted if attribute in kind.having],
        [attribute for attribute in wanted if attribute in kind.purposes],
    )


def attribute_entry(product: Invention) -> dict[str, Any]:
    """The product as an entry of the official attribute file, with an instruction if it has one."""
    entry: dict[str, Any] = {"attributes": list(product.attributes)}
    if product.wanted:
        before, having, purposes = _asked(product)
        words = ["Find me", *([", ".join(before)] if before else []), product.kind.query]
        words += ["with", ", ".join(having)] if having else []
        words += ["for", ", ".join(purposes)] if purposes else []
        entry |= {"instruction": " ".join(words), "instruction_attributes": list(product.wanted)}
    return entry


def human_entries(product: Invention, seed: int) -> list[dict[str, Any]]:
    """What customers wrote in their own words: an entry of the official human file, one sentence or none.

    Args:
        product: The product they want.
        seed: Seed of the catalogue; wording and options are drawn from it.
    """
    rng = generator(seed, "webshop-human", product.asin)
    if not product.wanted or rng.random() < 0.5:
        return []
    chosen = {group: str(rng.choice(values)).lower() for group, values in product.options.items()}
    before, having, purposes = _asked(product)
    opening = str(rng.choice(["i need", "i am looking for", "please find me", "i would like"]))
    sentence = f"{opening} {' '.join([*before, product.kind.query])}"
    sentence += f" that come with {' and '.join(having)}" if having else ""
    sentence += f" for {' and '.join(purposes)}" if purposes else ""
    sentence += f", {' and '.join(chosen.values())} please" if chosen else ""
    return [
        {
            "asin": product.asin,
            "instruction": f"{sentence}.",
            "attributes": list(product.wanted),
            "options": [f"{group.lower()}: {value}" for group, value in chosen.items()],
            "instruction_attributes": list(product.wanted),
            "instruction_options": list(chosen.values()),
        }
    ]


def _products(count: int, seed: int) -> Iterator[Invention]:
    """The products of a catalogue in its order, in which families are not neighbours."""
    order = generator(seed, "webshop-order", count).permutation(count)
    return (invent(seed, int(number)) for number in order)


class _JsonFile:
    """A JSON list or object written one entry a line: memory does not grow with the number of entries."""

    def __init__(self, stream: IO[str], brackets: str) -> None:
        self._stream = stream
        self._closing = f"\n{brackets[1]}\n"
        self._separator = f"{brackets[0]}\n"

    def add(self, value: Any, key: str | None = None) -> None:
        """Writes one entry; an object's has a key."""
        name = "" if key is None else f"{json.dumps(key)}: "
        self._stream.write(f"{self._separator}{name}{json.dumps(value, ensure_ascii=False)}")
        self._separator = ",\n"

    def close(self) -> None:
        """Writes the closing bracket (and the opening one, if there was no entry)."""
        opening = "" if self._separator == ",\n" else self._separator
        self._stream.write(opening + self._closing)


def _write(folder: Path, count: int, seed: int) -> None:
    with ExitStack() as stack:
        names = (*FULL, HUMAN)
        streams = [stack.enter_context((folder / name).open("w", encoding="utf-8")) for name in names]
        items, attributes, human = map(_JsonFile, streams, ("[]", "{}", "{}"))
        for product in _products(count, seed):
            items.add(item_entry(product))
            attributes.add(attribute_entry(product), product.asin)
            if entries := human_entries(product, seed):
                human.add(entries, product.asin)
        for file in (items, attributes, human):
            file.close()


def catalogue_files(folder: Path) -> ShopFiles:
    """The three files of a generated catalogue.

    Raises:
        DataFault: One is missing.
    """
    return find_files(folder, full=True, human=True)


def generate_catalogue(folder: Path, count: int = DEFAULT_COUNT, seed: int = DEFAULT_SEED) -> ShopFiles:
    """Writes a catalogue: product list, attribute file and human file, all or none.

    The same count and seed give the same bytes in every process. Memory stays bounded whatever the count.

    Args:
        folder: Folder of the three files; it must not exist yet, or be empty.
        count: Number of products.
        seed: Any integer >= 0.

    Raises:
        ConfigFault: ``count`` or ``seed`` is out of range.
        DataFault: The folder holds something or can't be written.
    """
    if not 1 <= count <= MOST_PRODUCTS or seed < 0:
        raise ConfigFault(
            f"count={count}, seed={seed}: ask for 1 to {MOST_PRODUCTS} products and a seed of 0 or more"
        )
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        _write(partial, count, seed)
        partial.chmod(0o755)  # mkdtemp makes folders only the owner can read
        os.rename(partial, folder)  # replaces an empty folder, refuses any other
    except OSError as error:
        raise DataFault(
            f"can't write a catalogue to {folder}: {error.strerror or error}. Choose a new or empty folder, "
            "or make room"
        ) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return catalogue_files(folder)


def default_catalogue(cache_dir: Path, count: int = DEFAULT_COUNT, seed: int = DEFAULT_SEED) -> ShopFiles:
    """A generated catalogue from the cache; made there on first use.

    Args:
        cache_dir: Folder of catalogues; each gets a folder of its own, named by all that decides its content.
        count: Number of products.
        seed: Any integer >= 0.

    Raises:
        ConfigFault: ``count`` or ``seed`` is out of range.
        DataFault: The cache can't be written or was damaged.
    """
    final = cache_dir / f"webshop-v{_DRAWS_VERSION}-n{count}-s{seed}"
    if not final.is_dir():
        try:
            return generate_catalogue(final, count, seed)
        except DataFault:
            # Another process may have been faster; its files are equal to the ones thrown away here.
            if not final.is_dir():
                raise
    try:
        return catalogue_files(final)
    except DataFault as error:
        raise DataFault(f"{final} is damaged: delete it and it is made again ({error})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Generates a catalogue of invented products; returns the exit code."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.envs.webshop.generate",
        description="Generates a catalogue of invented products in WebShop's official file format.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make; it must be new or empty")
    parser.add_argument(
        "--count", type=int, default=DEFAULT_COUNT, help=f"number of products (default: {DEFAULT_COUNT})"
    )
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help=f"seed of the catalogue (default: {DEFAULT_SEED})"
    )
    options = parser.parse_args(arguments)
    try:
        files = generate_catalogue(options.out, options.count, options.seed)
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"items={files.items} attributes={files.attributes} human={files.human}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
