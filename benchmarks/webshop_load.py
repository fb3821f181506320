"""Times loading a large shop, and how much memory it takes while and after it is loaded.

    python benchmarks/webshop_load.py [--products N] [--seed S] [--out FILE]

Writes an invented product list and attribute file of the official format and of about the official
entries' size to a temporary folder, then reads them in fresh processes, one per measurement, because a
process's peak of memory never goes down:

- ``read``: the product list entry by entry, nothing kept: what streaming itself needs;
- ``load``: the catalogue; ``state_mib`` is what it holds, ``peak_mib`` the most the process ever had;
- ``goals``: the catalogue, its synthetic goals and their order.

Memory is resident memory above that of the process before it began. Seconds are CPU seconds of one core.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.files import read_products
from envrl.envs.webshop.goals import synthetic_goals
from envrl.envs.webshop.ordering import order_goals
from envrl.errors import ConfigFault, EnvrlError

DEFAULT_OUT = Path(__file__).parent / "results" / "webshop_load.json"
ITEMS, ATTRIBUTES = "items.json", "items_ins.json"
CATEGORIES = ("beauty", "electronics", "fashion", "garden", "grocery")
WORDS = 20_000
ASKED_FOR = 0.415
"""Share of the products with an instruction, as in the official 1,000."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement in a process of its own; ``count`` is of products read, kept, or of goals."""

    name: str
    count: int
    cpu_s: float
    peak_mib: float
    state_mib: float


class Writer:
    """Invented products: sizes as in the official list, words by a law of few frequent and many rare ones."""

    def __init__(self, seed: int) -> None:
        """Invents a vocabulary."""
        self.rng = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self.words = ["".join(self.rng.choices(letters, k=self.rng.randint(3, 10))) for _ in range(WORDS)]
        self.attributes = [self.text(2) for _ in range(2000)]
        self.queries = [self.text(2) for _ in range(1500)]

    def text(self, words: int) -> str:
        """That many words; a low rank is frequent."""
        return " ".join(self.words[int(WORDS ** self.rng.random()) - 1] for _ in range(words))

    def product(self, number: int) -> dict[str, Any]:
        """One entry of the product list; about half have options, one in ten a price range."""
        rng = self.rng
        low = rng.uniform(3, 300)
        price = f"${low:.2f}${low * 1.5:.2f}" if rng.random() < 0.1 else f"${low:,.2f}"
        groups = {
            name: [{"value": self.text(1), "image": self.image(), "is_selected": False} for _ in range(size)]
            for name, size in (("Color", rng.randint(1, 6)), ("Size", rng.randint(1, 4)))
        }
        return {
            "name": self.text(17),
            "full_description": self.text(72),
            "pricing": price,
            "images": [self.image() for _ in range(6)],
            "product_category": " › ".join((rng.choice(CATEGORIES), rng.choice(self.queries))),
            "average_rating": 4.5,
            "small_description": [self.text(23) for _ in range(5)],
            "customization_options": groups if rng.random() < 0.48 else "",
            "asin": f"B{number:09d}",
            "category": rng.choice(CATEGORIES),
            "query": rng.choice(self.queries),
            "page": 1,
        }

    def image(self) -> str:
        """An address as long as the official ones."""
        return f"https://example.com/images/I/{self.rng.getrandbits(50):011d}.jpg"

    def asked(self) -> dict[str, Any]:
        """One entry of the attribute file."""
        attributes = self.rng.sample(self.attributes, 5)
        entry: dict[str, Any] = {"attributes": attributes}
        if self.rng.random() < ASKED_FOR:
            wanted = attributes[:2]
            entry |= {"instruction": f"Find me {', '.join(wanted)} things", "instruction_attributes": wanted}
        return entry


def write_shop(folder: Path, products: int, seed: int) -> None:
    """Writes both files entry by entry, so that this process stays small."""
    writer = Writer(seed)
    with (folder / ITEMS).open("w", encoding="utf-8") as items:
        for number in range(products):
            items.write(("[" if number == 0 else ", ") + json.dumps(writer.product(number)))
        items.write("]")
    with (folder / ATTRIBUTES).open("w", encoding="utf-8") as attributes:
        for number in range(products):
            opening = "{" if number == 0 else ", "
            attributes.write(f'{opening}"B{number:09d}": {json.dumps(writer.asked())}')
        attributes.write("}")


def _read(folder: Path) -> tuple[int, object]:
    return sum(1 for _ in read_products(folder / ITEMS)), None


def _load(folder: Path) -> tuple[int, object]:
    loaded = load_catalog(folder / ITEMS, folder / ATTRIBUTES, rng=random.Random(0))
    return len(loaded.catalog.products), loaded


def _goals(folder: Path) -> tuple[int, object]:
    rng = random.Random(0)
    loaded = load_catalog(folder / ITEMS, folder / ATTRIBUTES, rng=rng)
    ordered = order_goals(synthetic_goals(loaded, rng), rng)
    return len(ordered.goals), (loaded, ordered)


WORK: dict[str, Callable[[Path], tuple[int, object]]] = {"read": _read, "load": _load, "goals": _goals}


def measure(name: str, folder: Path) -> Measurement:
    """Does one piece of work; meant for a process that has done nothing else."""
    process = psutil.Process()
    before = process.memory_info().rss
    start = time.process_time()
    count, held = WORK[name](folder)
    seconds = time.process_time() - start
    gc.collect()
    after = process.memory_info().rss
    # Linux counts the peak in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    del held
    return Measurement(name, count, seconds, (peak - before) / 2**20, (after - before) / 2**20)


def measure_apart(name: str, folder: Path) -> Measurement:
    """Measures in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, folder).result()


def run(products: int, seed: int) -> tuple[list[Measurement], dict[str, float]]:
    """Writes the shop, measures, and removes it; gives the measurements and the files' sizes in MiB."""
    with tempfile.TemporaryDirectory(prefix="webshop-load-") as name:
        folder = Path(name)
        write_shop(folder, products, seed)
        sizes = {file: (folder / file).stat().st_size / 2**20 for file in (ITEMS, ATTRIBUTES)}
        return [measure_apart(work, folder) for work in WORK], sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """Times loading a large invented shop and measures its memory; returns the exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--products", type=int, default=200_000, help="products to write (default: 200000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the invented products (default: 0)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        if options.products < 1:
            raise ConfigFault(f"--products {options.products}: write at least 1")
        measurements, sizes = run(options.products, options.seed)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "products": options.products,
            "file_mib": sizes,
            "measurements": {m.name: asdict(m) for m in measurements},
            "platform": {"python": platform.python_version(), "machine": platform.machine()},
        }
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except (EnvrlError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for m in measurements:
        print(
            f"{m.name}: {m.count} in {m.cpu_s:.1f} s, peak {m.peak_mib:.0f} MiB, held {m.state_mib:.0f} MiB"
        )
    read, load, goals = measurements
    print(
        f"products={load.count} file_mib={sum(sizes.values()):.0f} load_s={load.cpu_s:.1f} "
        f"peak_mib={load.peak_mib:.0f} state_mib={load.state_mib:.0f} reader_mib={read.peak_mib:.1f} "
        f"goals={goals.count} goals_s={goals.cpu_s - load.cpu_s:.1f} goals_peak_mib={goals.peak_mib:.0f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
