"""The shop's files and catalogue: cleaned as the original cleans, errors that name the entry, streaming."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from webshop_data import (
    ATTRIBUTES,
    HUMAN,
    ITEMS,
    fixture_shop,
    official_files,
    raw_product,
    recorded,
    write_shop,
)

from envrl.envs.webshop.catalog import LoadedCatalog, Skipped, load_catalog, redraw_prices
from envrl.envs.webshop.files import ShopFiles, data_root, find_files, read_entries, read_products
from envrl.envs.webshop.records import Product
from envrl.errors import ConfigFault, DataFault


def load(folder: Path, products: Any, attributes: Any = None, **options: Any) -> LoadedCatalog:
    return load_catalog(*write_shop(folder, products, attributes), rng=random.Random(0), **options)


def load_one(folder: Path, **changes: Any) -> Product:
    return load(folder, [raw_product(**changes)]).catalog.products[0]


@pytest.mark.parametrize("asin", sorted(recorded()["cleaned_products"]))
def test_products_are_cleaned_as_by_the_original(asin: str) -> None:
    expected = recorded()["cleaned_products"][asin]
    product = fixture_shop().catalog.by_asin[asin]
    assert product.title == expected["Title"]
    assert product.description == expected["Description"]
    assert list(product.bullets) == expected["BulletPoints"]
    assert product.price_text == expected["Price"]
    assert list(product.pricing) == expected["pricing"]
    assert product.category == expected["category"]
    assert product.query == expected["query"]
    assert product.product_category == expected["product_category"]
    assert [(k, list(v)) for k, v in product.options.items()] == list(expected["options"].items())
    assert list(product.option_images.items()) == list(expected["option_to_image"].items())
    assert product.image == expected["MainImage"]
    assert list(product.attributes) == expected["Attributes"]


def test_fixture_leaves_out_three_of_seventy() -> None:
    loaded = fixture_shop()
    assert len(loaded.catalog.products) == recorded()["n_products_after_cleaning"] == 67
    assert loaded.skipped == Skipped(nameless=1, too_long=1, repeated=1)
    assert loaded.catalog.by_asin["B0SHOE0001"].title.startswith("Acme Trail")  # the first of the two


def test_prices_are_drawn_in_file_order() -> None:
    expected = recorded()["goals"]["original human=0 prior_seed=42 shuffle=233"]["prices"]
    catalog = fixture_shop(seed=42).catalog
    assert dict(catalog.prices) == expected
    redrawn = redraw_prices(fixture_shop(seed=1).catalog, random.Random(42))
    assert dict(redrawn.prices) == expected


@pytest.mark.parametrize(
    ("pricing", "numbers", "shown"),
    [
        ("$59.00", (59.0,), "$59.0"),
        ("$1,299.00", (1299.0,), "$1299.0"),
        ("$10.00$20.50", (10.0, 20.5), "$10.0 to $20.5"),
        ("$10.00 - $20.50", (10.0, 20.5), "$10.0 to $20.5"),
        ("$1$2$3", (1.0, 2.0), "$1.0 to $2.0"),
        ("from $7 each", (7.0,), "$7.0"),
        ("", (100.0,), "$100.0"),
        (None, (100.0,), "$100.0"),
        (..., (100.0,), "$100.0"),
    ],
)
def test_prices_are_read(tmp_path: Path, pricing: Any, numbers: tuple[float, ...], shown: str) -> None:
    product = load_one(tmp_path, pricing=pricing)
    assert (product.pricing, product.price_text) == (numbers, shown)


def test_options_are_tidied(tmp_path: Path) -> None:
    groups = {
        "Color": [{"value": " Red/Blue ", "image": "first"}, {"value": "Äpfel", "image": 3}],
        "Fit": None,
        "Length": [],
        "SIZE": [{"value": "S"}],
        "Size": [{"value": "red | blue", "image": "later"}],
    }
    product = load_one(tmp_path, customization_options=groups)
    assert product.options == {"color": ("red | blue", "äpfel"), "length": (), "size": ("red | blue",)}
    assert product.option_images == {"red | blue": "later", "äpfel": None, "s": None}


@pytest.mark.parametrize("nothing", ["", {}, None])
def test_products_without_options(tmp_path: Path, nothing: Any) -> None:
    product = load_one(tmp_path, customization_options=nothing)
    assert (product.options, product.option_images) == ({}, {})


def test_attributes_come_from_their_file(tmp_path: Path) -> None:
    products = [raw_product(f"B{i}") for i in range(4)]
    about = {
        "B0": {"attributes": ["oak", "solid", "oak"]},
        "B1": {"attributes": ["solid"], "instruction": None},
        "B2": {"instruction": "Find me x", "instruction_attributes": ["x"]},
    }
    loaded = load(tmp_path, products, about)
    assert [p.attributes for p in loaded.catalog.products] == [
        ("oak", "solid", "oak"),
        ("solid",),
        ("DUMMY_ATTR",),
        ("DUMMY_ATTR",),
    ]
    assert loaded.catalog.by_attribute == {
        "oak": ("B0",),
        "solid": ("B0", "B1"),
        "DUMMY_ATTR": ("B2", "B3"),
    }
    assert set(loaded.instructions) == {"B0", "B1", "B2"}
    assert loaded.instructions["B1"].text is None
    assert loaded.instructions["B2"].attributes == ("x",)


def test_limit_counts_entries_before_any_is_left_out(tmp_path: Path) -> None:
    products = [raw_product("nan"), raw_product("B1"), raw_product("B2")]
    loaded = load(tmp_path, products, limit=2)
    assert [p.asin for p in loaded.catalog.products] == ["B1"]
    with pytest.raises(ConfigFault, match="0 products"):
        load(tmp_path, products, limit=0)


REQUIRED = [
    *("asin", "name", "full_description", "small_description", "category", "query"),
    *("product_category", "customization_options", "images"),
]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named_with_its_product(tmp_path: Path, key: str) -> None:
    broken = {name: value for name, value in raw_product("B1").items() if name != key}
    items, about = write_shop(tmp_path, [raw_product("B0"), broken], {})
    with pytest.raises(
        DataFault, match=rf"items\.json: product 1 \(from 0, asin (B1|\?)\): key '{key}' is missing"
    ):
        load_catalog(items, about, rng=random.Random(0))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("name", 3, "key 'name' holds 3, not text"),
        ("small_description", ["a", None], "'small_description' holds .*not a list of texts"),
        ("small_description", None, "'small_description' holds None, not text"),
        ("images", [], "'images' holds .*not a list that starts with an address"),
        ("pricing", "12.00", "'pricing' holds '12.00', a price without a dollar sign"),
        ("pricing", "$free", "'pricing' holds .*'free' is no number"),
        ("pricing", "$1.2.3", "'pricing' holds .*'1.2.3' is no number"),
        ("pricing", 12, "'pricing' holds 12, not text"),
        ("customization_options", [1], "'customization_options' holds .*not an object"),
        ("customization_options", {"Color": "red"}, "'customization_options/Color' holds 'red', not a list"),
        (
            "customization_options",
            {"Color": [{"v": 1}]},
            "'customization_options/Color' holds .*text 'value'",
        ),
    ],
)
def test_a_malformed_value_is_named(tmp_path: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(DataFault, match=rf"product 0 \(from 0, asin B000000001\).*{said}"):
        load_one(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (["oak"], "entry B000000001 is a list, not an object"),
        ({"attributes": "oak"}, "'attributes' holds 'oak', not a list of texts"),
        ({"attributes": None}, "'attributes' holds null"),
        ({"instruction": 3}, "'instruction' holds 3, not text"),
    ],
)
def test_a_malformed_attribute_entry_is_named(tmp_path: Path, entry: Any, said: str) -> None:
    with pytest.raises(DataFault, match=said):
        load(tmp_path, [raw_product()], {"B000000001": entry})


def test_missing_files_are_all_named_with_their_source(tmp_path: Path) -> None:
    with pytest.raises(DataFault) as fault:
        find_files(tmp_path, human=True)
    for name, download in (
        ("items_shuffle_1000.json", "1EgHdxQ_YxqIQlvvq5iKlCrkEKR6-j0Ib"),
        ("items_ins_v2_1000.json", "1IduG0xl544V_A_jv3tHXC0kyFi7PnyBu"),
        ("items_human_ins.json", "14Kb5SPBk_jfdLZ_CDBNitW98QLDlKR5O"),
    ):
        assert f"{tmp_path / name}: download it from https://drive.google.com/uc?id={download}" in str(
            fault.value
        )
    with pytest.raises(DataFault, match="1A2whVgOO0euk5O13n2iYDM0bQRkkRduB"):
        find_files(tmp_path, full=True)
    with pytest.raises(DataFault, match=r"mine\.json: check the path"):
        ShopFiles(tmp_path / "mine.json", ATTRIBUTES, HUMAN)


def test_data_root_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path / "absent"))
    with pytest.raises(DataFault, match="is not a folder"):
        data_root()
    monkeypatch.delenv("WEBSHOP_DATA")
    with pytest.raises(DataFault, match="WEBSHOP_DATA is not set"):
        data_root()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": 1}', "starts with '{', not with a JSON list"),
        ("", "starts with nothing, not with a JSON list"),
        ('[{"asin": "B0"}, {"asin"', "not valid JSON after 1 entries"),
        ('[{"asin": "B0"}] more', "not valid JSON after 1 entries"),
        ('[{"asin": "B0"}, 7]', "product 1 .* is a int, not an object"),
    ],
)
def test_a_broken_product_list_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "items.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataFault, match=said) as fault:
        list(read_products(path))
    assert str(path) in str(fault.value)


def test_bytes_that_are_no_text_are_told_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    path.write_bytes(b'[{"asin": "\xff"}]')
    with pytest.raises(DataFault, match="after 0 entries: lexical error: invalid bytes in UTF8 string"):
        list(read_products(path))


def test_a_broken_attribute_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items_ins.json"
    path.write_text('[{"a": 1}]', encoding="utf-8")
    with pytest.raises(DataFault, match=r"starts with '\[', not with a JSON object: make sure that it is"):
        list(read_entries(path))
    path.write_text('{"a": {}, "b": tru', encoding="utf-8")
    with pytest.raises(DataFault, match="not valid JSON after 1 entries"):
        list(read_entries(path))


def test_an_empty_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="no usable product"):
        load(tmp_path, [raw_product("nan")])


def test_reading_holds_one_entry_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    entry = json.dumps(raw_product(full_description="long " * 1000))
    path.write_text("[" + ", ".join([entry] * 2000) + "]", encoding="utf-8")
    assert path.stat().st_size > 10_000_000
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_products(path))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 2000
    assert peak_bytes < 1_000_000


def test_streaming_reads_what_the_standard_library_reads() -> None:
    assert [raw for _, raw in read_products(ITEMS)] == json.loads(ITEMS.read_text(encoding="utf-8"))
    assert dict(read_entries(ATTRIBUTES)) == json.loads(ATTRIBUTES.read_text(encoding="utf-8"))


def test_the_official_products_load() -> None:
    files = find_files(official_files())
    loaded = load_catalog(files.items, files.attributes, rng=random.Random(0))
    assert len(loaded.catalog.products) == 1000
    assert sum(one.text is not None for one in loaded.instructions.values()) == 415
