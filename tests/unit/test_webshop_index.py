"""The index: Lucene's rankings, the file it is kept in, and what is said of a wrong one."""

import dataclasses
import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from envrl.envs.webshop import postings
from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.index import SearchIndex, document, documents, load_index, lossy_lengths
from envrl.envs.webshop.records import Catalog
from envrl.errors import DataFault
from unit.webshop_data import ATTRIBUTES, DATA, ITEMS, fixture_shop, official_files
from unit.webshop_shops import product

PAIRS = [
    ("B3", "red wool scarf, red"),
    ("B1", "blue wool hat"),
    ("B2", "blue wool hat"),
    ("B4", "!!!"),
]


def catalog_of(*titles: str) -> Catalog:
    products = tuple(product(f"B00000000{n}", title=title) for n, title in enumerate(titles))
    by_asin = {sold.asin: sold for sold in products}
    return Catalog(products, by_asin, dict.fromkeys(by_asin, 20.0))


def made_up(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Documents of 1 to 80 of the words a0, a1, …, the low numbers common."""
    rng = random.Random(seed)
    for number in range(count):
        words = [f"a{int(rng.paretovariate(0.7))}" for _ in range(rng.randint(1, 80))]
        yield f"B{number:05d}", " ".join(words)


def test_fixture_rankings_are_lucenes() -> None:
    content = json.loads((DATA / "lucene_fixture_rankings.json").read_text(encoding="utf-8"))
    index = SearchIndex.build(documents(fixture_shop().catalog))
    found = {query: list(index.search(query)) for query in content["queries"]}
    assert len(found) == 16
    assert found == content["queries"]


def test_rankings_of_the_official_products_are_lucenes() -> None:
    folder = official_files()
    recorded = folder / "lucene_top50.tsv"
    if not recorded.is_file():
        pytest.skip("WEBSHOP_DATA has no lucene_top50.tsv: Lucene's rankings are needed")
    items, attributes = folder / "items_shuffle_1000.json", folder / "items_ins_v2_1000.json"
    index = SearchIndex.build(documents(load_catalog(items, attributes, rng=random.Random(0)).catalog))
    lines = recorded.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 600
    for query, hits in (line.split("\t") for line in lines):
        assert index.search(query) == tuple(hit.rpartition(":")[0] for hit in hits.split()), query


def test_document_is_title_description_first_bullet_and_options() -> None:
    sold = product(options={"color": ("red", "blue"), "size": ()}, bullets=("Solid OAK", "Three legs"))
    assert document(sold) == "oak stool a stool of oak. solid oak color: red, blue, and size: "
    assert document(product(options={}, bullets=())) == "oak stool a stool of oak.  "


def test_lengths_are_kept_in_one_byte() -> None:
    # what Lucene's SmallFloat.byte4ToInt(intToByte4(n)) gives
    kept = {0: 0, 1: 1, 23: 23, 24: 24, 39: 39, 40: 40, 41: 40, 42: 42, 43: 42, 55: 54, 57: 56, 60: 60}
    kept |= {100: 96, 105: 104, 255: 248, 1000: 984, 5000: 4632, 123456: 122904}
    assert lossy_lengths(np.array(list(kept))).tolist() == list(kept.values())


def test_weights_and_saturations_by_hand() -> None:
    index = SearchIndex.build(PAIRS)
    # Three documents have terms, four and twice three of them: 10/3 on average. "red" is in one of them:
    # ln(1 + 2.5 / 1.5). It occurs twice among four terms: 1 + 2 / (0.9 * (0.6 + 0.4 * 4 / (10/3))).
    number = index.numbers["red"]
    start, end = index.bounds[number]
    assert end - start == 1
    assert index.weights[number] == pytest.approx(0.980829, abs=1e-6)
    assert index.saturations[start] == pytest.approx(3.057613, abs=1e-6)


def test_equal_scores_are_ordered_by_identifier_even_at_the_cut() -> None:
    index = SearchIndex.build(PAIRS)
    assert index.search("blue hat") == ("B1", "B2")
    assert index.search("wool", k=1) == ("B1",)
    assert index.search("wool", k=2) == ("B1", "B2")
    assert SearchIndex.build(reversed(PAIRS)).search("wool", k=2) == ("B1", "B2")


def test_a_repeated_word_counts_more() -> None:
    index = SearchIndex.build([("B1", "oak desk desk desk"), ("B2", "pine oak oak desk oak"), ("B3", "x")])
    assert index.search("oak desk desk desk")[0] == "B1"
    assert index.search("oak oak oak desk")[0] == "B2"


@pytest.mark.parametrize("query", ["", "   ", "the of and", "unheardof", "!!!", "\x00"])
def test_nothing_is_found_without_a_known_word(query: str) -> None:
    assert SearchIndex.build(PAIRS).search(query) == ()


def test_an_empty_index_finds_nothing() -> None:
    assert SearchIndex.build([]).search("red") == ()
    assert SearchIndex.build([("B1", "")]).search("red") == ()


def test_counting_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SearchIndex.build(made_up(300)).postings
    monkeypatch.setattr(postings, "_BLOCK_TOKENS", 100)
    monkeypatch.setattr(postings, "_REMEMBERED_WORDS", 7)
    parts = SearchIndex.build(made_up(300)).postings
    assert parts.terms == whole.terms
    assert parts.fingerprint == whole.fingerprint
    for name in ("starts", "documents", "counts", "lengths"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name)), name


def test_more_than_255_occurrences_are_counted() -> None:
    index = SearchIndex.build([("B1", "oak " * 300 + "pine"), ("B2", "pine " * 70_000)])
    counts = {
        (term, index.postings.asins[place]): int(count)
        for term, (start, end) in zip(index.postings.terms, index.bounds, strict=True)
        for place, count in zip(
            index.postings.documents[start:end], index.postings.counts[start:end], strict=True
        )
    }
    assert counts == {("oak", "B1"): 300, ("pine", "B1"): 1, ("pine", "B2"): 70_000}


def test_an_identifier_twice_is_refused() -> None:
    with pytest.raises(DataFault, match="'B1' names two documents"):
        SearchIndex.build([("B1", "a"), ("B1", "b")])


def test_a_saved_index_finds_the_same(tmp_path: Path) -> None:
    built = SearchIndex.build([*made_up(200), ("B\ud800\n", "caf\u00e9 a1")])
    path = tmp_path / "new" / "index.npz"
    built.save(path)
    loaded = SearchIndex.load(path)
    for query in ("a1", "a1 a2 a2 a9", "a3 a30 caf\u00e9"):
        assert loaded.search(query) == built.search(query) != ()
    assert [file.name for file in path.parent.iterdir()] == ["index.npz"]


def test_a_second_load_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = catalog_of("oak desk", "pine desk")
    first = load_index(catalog, tmp_path)
    monkeypatch.setattr(SearchIndex, "build", None)
    assert load_index(catalog, tmp_path).search("pine") == first.search("pine") == ("B000000001",)


def test_another_text_is_another_cache_entry(tmp_path: Path) -> None:
    load_index(catalog_of("oak desk", "pine desk"), tmp_path)
    assert load_index(catalog_of("oak desk", "fir desk"), tmp_path).search("fir") == ("B000000001",)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "other"])
def test_a_damaged_cache_is_built_anew_with_a_warning(tmp_path: Path, damage: str) -> None:
    catalog = catalog_of("oak desk", "pine desk")
    load_index(catalog, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    place = whole.index(b"B000000001")
    flipped = whole[:place] + b"X" + whole[place + 1 :]
    broken = {"truncated": whole[: len(whole) // 2], "empty": b"", "flipped": flipped, "other": b"[1, 2]"}
    path.write_bytes(broken[damage])
    with pytest.raises(DataFault, match="Remove the file and build it anew"):
        SearchIndex.load(path)
    with pytest.warns(UserWarning, match="is built anew: it is damaged"):
        assert load_index(catalog, tmp_path).search("pine") == ("B000000001",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_index(catalog, tmp_path)


def test_an_index_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    mine, other = catalog_of("oak desk"), catalog_of("pine desk")
    load_index(mine, tmp_path)
    (path,) = tmp_path.iterdir()
    load_index(other).save(path)
    with pytest.raises(DataFault, match=r"other products than its name says.*remove it"):
        load_index(mine, tmp_path)


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    built = SearchIndex.build(PAIRS)
    short = dataclasses.replace(built.postings, lengths=built.postings.lengths[:-1])
    path = tmp_path / "index.npz"
    dataclasses.replace(built, postings=short).save(path)
    with pytest.raises(DataFault, match="its parts don't fit together"):
        SearchIndex.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"no search index in .*gone\.npz"):
        SearchIndex.load(tmp_path / "gone.npz")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFault, match=r"can't write .*file/x\.npz"):
        SearchIndex.build(PAIRS).save(tmp_path / "file" / "x.npz")


def test_check_tells_what_differs() -> None:
    index = load_index(catalog_of("oak desk", "pine desk"))
    index.check(catalog_of("oak desk", "pine desk"))
    with pytest.raises(DataFault, match=r"\(2 products\).*\(1 products\).*only one of them has 'B000000001'"):
        index.check(catalog_of("oak desk"))
    with pytest.raises(DataFault, match="order or texts of the products differ"):
        index.check(catalog_of("oak desk", "fir desk"))


def test_the_files_of_the_fixture_are_indexed_whole() -> None:
    catalog = load_catalog(ITEMS, ATTRIBUTES, rng=random.Random(0)).catalog
    assert load_index(catalog).postings.asins == tuple(sold.asin for sold in catalog.products)
