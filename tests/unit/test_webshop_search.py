"""Queries in words, the four special ones, and the command."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.index import SearchIndex, documents, load_index
from envrl.envs.webshop.search import Search, keywords_of
from envrl.errors import DataFault
from unit.webshop_data import ATTRIBUTES, ITEMS, fixture_shop, raw_product, write_shop


def search(folder: Path, *entries: dict, attributes: dict | None = None, top: int = 50) -> Search:
    items, about = write_shop(folder, list(entries), attributes)
    catalog = load_catalog(items, about, rng=random.Random(0)).catalog
    return Search(catalog, load_index(catalog), top)


def ask(shop: Search, query: str, seed: int = 0) -> tuple[str, ...]:
    return shop.results(keywords_of(query), random.Random(seed))


@pytest.fixture
def three(tmp_path: Path) -> Search:
    return search(
        tmp_path,
        raw_product("B3", name="Oak stool", category="garden", query="stools"),
        raw_product("B1", name="Lip balm", category="beauty", query="lip care"),
        raw_product("B2", name="Oak bench", category="garden", query="garden benches"),
        attributes={
            "B3": {"attributes": ["easy clean", "solid"]},
            "B1": {"attributes": ["long lasting"]},
            "B2": {"attributes": ["easy clean"]},
        },
    )


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("lip BALM", ("B1",)),
        ("<c> garden", ("B3", "B2")),
        ("<C> Garden and more", ("B3", "B2")),
        ("<c>", ()),
        ("<c> ", ()),
        ("<c> toys", ()),
        ("<q> garden benches", ("B2",)),
        ("<q>  garden benches ", ("B2",)),
        ("<q> garden", ()),
        ("<q>", ()),
        ("<a> easy clean", ("B3", "B2")),
        ("<a> easy", ()),
        ("<a>", ()),
        ("lip <c> garden balm", ("B1",)),
        ("", ()),
        (" ", ()),
        (" <c> oak", ("B1", "B2", "B3")),  # the first keyword is empty, so these are words
    ],
)
def test_queries(three: Search, query: str, expected: tuple[str, ...]) -> None:
    found = ask(three, query)
    assert (found if query.lower().startswith("<") else tuple(sorted(found))) == expected


def test_no_keyword_finds_nothing(three: Search) -> None:
    assert three.results((), random.Random(0)) == ()


def test_random_products_are_drawn_anew_without_a_limit_of_their_number(three: Search) -> None:
    rng = random.Random(0)
    draws = {three.results(("<r>",), rng) for _ in range(50)}
    assert all(sorted(draw) == ["B1", "B2", "B3"] for draw in draws)
    assert len(draws) > 1


def test_random_products_are_fifty_by_the_original_draw() -> None:
    catalog = fixture_shop().catalog
    shop = Search(catalog, load_index(catalog))
    drawn = random.Random(7).sample(catalog.products, 50)
    assert ask(shop, "<r>", seed=7) == tuple(sold.asin for sold in drawn)


def test_special_queries_know_no_limit(tmp_path: Path) -> None:
    entries = [raw_product(f"B{number:03d}") for number in range(60)]
    shop = search(tmp_path, *entries)
    assert [len(ask(shop, query)) for query in ("<c> garden", "<q> stools", "<a> oak", "oak")] == [
        60,
        60,
        60,
        50,
    ]


def test_an_index_of_more_products_is_cut_before_others_are_left_out(tmp_path: Path) -> None:
    entries = [raw_product("B1", name="oak"), raw_product("B2", name="oak"), raw_product("B3", name="oak")]
    items, about = write_shop(tmp_path, entries)
    index = SearchIndex.build(documents(load_catalog(items, about, rng=random.Random(0)).catalog))
    part = load_catalog(items, about, limit=1, rng=random.Random(0)).catalog
    assert ask(Search(part, index), "oak") == ("B1",)


def test_an_index_that_lacks_products_is_refused(tmp_path: Path) -> None:
    items, about = write_shop(tmp_path, [raw_product("B1"), raw_product("B2")])
    whole = load_catalog(items, about, rng=random.Random(0)).catalog
    part = load_catalog(items, about, limit=1, rng=random.Random(0)).catalog
    with pytest.raises(DataFault, match="lacks 1 of 2 products, 'B2' among them: build it"):
        Search(whole, load_index(part))


def command(*arguments: str | Path, queries: str = "") -> subprocess.CompletedProcess[bytes]:
    call = [sys.executable, "-m", "envrl.envs.webshop.search", *map(str, arguments)]
    return subprocess.run(call, input=queries.encode(), capture_output=True, check=False)


def test_command_prints_a_line_per_query(tmp_path: Path) -> None:
    queries = "acme\nUSB <c>\n\n<c> grocery\nno such word anywhere caf\u00e9\n"
    run = command("--items", ITEMS, "--top", "2", "--cache", tmp_path, queries=queries)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.decode().split("\n")
    assert lines[0] == "acme\tB0SHOE0002 B0SHOE0001"
    assert lines[2] == "\t"
    assert [line.split("\t")[0] for line in lines] == [*queries.split("\n")]
    assert all(len(line.split("\t")[1].split()) <= 2 for line in lines[:-1])
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_command_finds_attributes_only_with_their_file() -> None:
    catalog = fixture_shop().catalog
    name, asins = next((n, a) for n, a in catalog.by_attribute.items() if n.islower())
    query = f"<a> {name}\n"
    assert command("--items", ITEMS, queries=query).stdout.decode() == f"<a> {name}\t\n"
    found = command("--items", ITEMS, "--attributes", ATTRIBUTES, queries=query).stdout.decode()
    assert found == f"<a> {name}\t{' '.join(asins[:50])}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--items", "gone.json"), b"missing WebShop data: gone.json"),
        (("--items", ITEMS, "--top", "0"), b"--top 0: ask for at least one product"),
    ],
)
def test_command_names_what_is_wrong(arguments: tuple[str | Path, ...], message: bytes) -> None:
    run = command(*arguments)
    assert run.returncode == 1
    assert run.stderr.startswith(b"error: ")
    assert message in run.stderr
    assert b"Traceback" not in run.stderr
