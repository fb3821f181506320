"""Invented catalogues: their format, their determinism, and that what they ask for can be had."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from envrl.envs.webshop.catalog import LoadedCatalog, load_catalog
from envrl.envs.webshop.files import ShopFiles
from envrl.envs.webshop.generate import default_catalogue, generate_catalogue, main
from envrl.envs.webshop.goals import human_goals, read_human, synthetic_goals
from envrl.envs.webshop.index import SearchIndex, documents
from envrl.envs.webshop.invent import MOST_PRODUCTS, invent, invented_asin
from envrl.envs.webshop.nouns import built_in_nouns
from envrl.envs.webshop.records import Goal, Product
from envrl.envs.webshop.reward import count_options, purchase_reward, similar
from envrl.envs.webshop.wares import KINDS, OPTION_POOLS, Kind
from envrl.errors import ConfigFault, DataFault


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ShopFiles:
    return generate_catalogue(tmp_path_factory.mktemp("made") / "shop")


@pytest.fixture(scope="module")
def loaded(files: ShopFiles) -> LoadedCatalog:
    return load_catalog(files.items, files.attributes, rng=random.Random(0))


@pytest.fixture(scope="module")
def goals(loaded: LoadedCatalog) -> tuple[Goal, ...]:
    return synthetic_goals(loaded, random.Random(0))


def _attributes(kind: Kind) -> tuple[str, ...]:
    return (*kind.before, *kind.having, *kind.purposes)


def _texts(product: Product) -> str:
    return " ".join([product.title, product.description, *product.bullets]).lower()


def _digests(files: ShopFiles) -> list[str]:
    assert files.human is not None
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in (files.items, files.attributes, files.human)]


def test_there_are_eight_kinds_in_each_department() -> None:
    assert Counter(kind.category for kind in KINDS) == {
        "beauty": 8,
        "electronics": 8,
        "garden": 8,
        "fashion": 8,
        "grocery": 8,
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.query)
def test_attributes_of_a_kind_are_told_apart(kind: Kind) -> None:
    attributes = _attributes(kind)
    assert all(len(attribute.split()) == 2 for attribute in attributes)
    assert len(attributes) >= 9
    assert not any(similar(a, b) for a, b in combinations(attributes, 2))


@pytest.mark.parametrize("pool", OPTION_POOLS)
def test_every_option_value_satisfies_the_goal_that_names_it(pool: str) -> None:
    group, values = OPTION_POOLS[pool]
    for value in (value.lower() for value in values):
        assert count_options([value], {group.lower(): value}) == 1, value
        assert count_options([value], [value]) == 1, value


def test_a_kind_offers_two_option_groups_of_different_names() -> None:
    for kind in KINDS:
        names = [OPTION_POOLS[group][0] for group in kind.groups]
        assert len(set(names)) == 2, kind.query


def test_catalogue_loads_whole(loaded: LoadedCatalog, goals: tuple[Goal, ...]) -> None:
    products = loaded.catalog.products
    assert len(products) == 1000
    assert {p.category for p in products} == {"beauty", "electronics", "garden", "fashion", "grocery"}
    assert 3000 <= len(goals) <= 6000
    ranges = sum(len(p.pricing) == 2 for p in products)
    assert 80 <= ranges <= 160
    assert 0 < sum(not p.options for p in products) < 400
    assert 850 <= sum(instruction.text is not None for instruction in loaded.instructions.values()) <= 950


def test_pages_are_short(loaded: LoadedCatalog) -> None:
    for product in loaded.catalog.products:
        assert 4 <= len(product.title.split()) <= 10, product.title
        assert len(product.options) <= 2
        assert all(2 <= len(values) <= 4 for values in product.options.values())
        assert 1 <= len(product.bullets) <= 4
        assert len(product.description.split()) <= 25


def test_texts_name_the_attributes_a_product_has_and_no_other(loaded: LoadedCatalog) -> None:
    pools = {kind.query: _attributes(kind) for kind in KINDS}
    hidden = 0
    for product in loaded.catalog.products:
        text = _texts(product)
        visible = " ".join([product.title, *product.bullets]).lower()
        assert set(product.attributes) == {a for a in pools[product.query] if a in text}, product.asin
        assert all(attribute in visible for attribute in product.attributes), product.asin
        hidden += any(attribute not in product.title.lower() for attribute in product.attributes)
    assert hidden > 600  # titles alone don't tell


def test_every_synthetic_goal_is_met_by_its_product(loaded: LoadedCatalog, goals: tuple[Goal, ...]) -> None:
    catalog = loaded.catalog
    for goal in goals:
        assert isinstance(goal.options, dict)
        reward = purchase_reward(catalog.by_asin[goal.asin], goal, catalog.prices[goal.asin], goal.options)
        assert reward.total == 1.0, goal.instruction_text


def test_price_limits_are_visibly_kept(loaded: LoadedCatalog, goals: tuple[Goal, ...]) -> None:
    for goal in goals:
        assert max(loaded.catalog.by_asin[goal.asin].pricing) <= goal.price_upper, goal.asin


def test_every_human_goal_is_met_by_its_product(files: ShopFiles, loaded: LoadedCatalog) -> None:
    assert files.human is not None
    catalog = loaded.catalog
    made = human_goals(catalog, read_human(files.human, catalog), random.Random(0)).goals
    assert len(made) > 300
    for goal in made:
        product = catalog.by_asin[goal.asin]
        chosen = {
            name: next(value for value in values if value in goal.options)
            for name, values in product.options.items()
        }
        assert purchase_reward(product, goal, catalog.prices[goal.asin], chosen).total == 1.0


def test_products_of_a_kind_pass_for_one_another(loaded: LoadedCatalog) -> None:
    by_query: dict[str, list[Product]] = {}
    for product in loaded.catalog.products:
        by_query.setdefault(product.query, []).append(product)
    assert len(by_query) == 40
    for products in by_query.values():
        assert len(products) >= 20
        for one, other in pairwise(products):
            shared = set(built_in_nouns(one.title)) & set(built_in_nouns(other.title))
            assert len(shared) / len(built_in_nouns(one.title)) >= 0.1, (one.title, other.title)


def test_the_wanted_product_is_often_not_found_first(loaded: LoadedCatalog, goals: tuple[Goal, ...]) -> None:
    index = SearchIndex.build(documents(loaded.catalog))
    places = []
    for goal in goals[::9]:
        query = goal.instruction_text.removeprefix("Find me ").partition(", and price")[0].replace(":", "")
        found = index.search(query.lower())
        places.append(found.index(goal.asin) if goal.asin in found else 50)
    first = sum(place == 0 for place in places) / len(places)
    assert 0.45 <= first <= 0.7
    assert sum(place < 20 for place in places) / len(places) > 0.97


def test_same_seed_same_bytes_in_another_process(files: ShopFiles, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    command = [sys.executable, "-m", "envrl.envs.webshop.generate", "--out", str(folder)]
    environment = {"PYTHONHASHSEED": "7", "PATH": ""}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert _digests(
        ShopFiles(*(folder / p.name for p in (files.items, files.attributes, files.human or p)))
    ) == (_digests(files))


def test_other_seed_other_products(tmp_path: Path) -> None:
    one = generate_catalogue(tmp_path / "a", 20, seed=1)
    other = generate_catalogue(tmp_path / "b", 20, seed=2)
    assert len(set(_digests(one)) & set(_digests(other))) == 0


def test_a_product_does_not_depend_on_the_size_of_its_catalogue(tmp_path: Path) -> None:
    small = {p["asin"]: p for p in json.loads(generate_catalogue(tmp_path / "a", 30).items.read_text())}
    large = {p["asin"]: p for p in json.loads(generate_catalogue(tmp_path / "b", 60).items.read_text())}
    assert len(small) == 30
    assert all(large[asin] == product for asin, product in small.items())


def test_families_differ_in_what_a_customer_asks_for() -> None:
    family = [invent(0, number) for number in (0, 1, 2)]
    assert len({product.kind.query for product in family}) == 1
    assert len({product.title.split()[0] for product in family}) == 1
    assert len({(p.title, p.bullets, p.prices, tuple(p.options.items())) for p in family}) == 3


def test_identifiers_are_well_formed_and_differ() -> None:
    names = [invented_asin(number) for number in range(20_000)]
    assert len(set(names)) == 20_000
    assert all(len(name) == 10 and name.isalnum() and name.isupper() for name in names)
    assert invented_asin(0) != invented_asin(MOST_PRODUCTS - 1)


def test_default_catalogue_is_made_once(tmp_path: Path) -> None:
    first = default_catalogue(tmp_path, 25, 3)
    stamp = first.items.stat().st_mtime_ns
    assert default_catalogue(tmp_path, 25, 3) == first
    assert first.items.stat().st_mtime_ns == stamp
    assert default_catalogue(tmp_path, 26, 3) != first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_damaged_cache_is_named(tmp_path: Path) -> None:
    files = default_catalogue(tmp_path, 25, 3)
    files.items.unlink()
    with pytest.raises(DataFault, match="delete it"):
        default_catalogue(tmp_path, 25, 3)


def test_nothing_is_left_of_a_catalogue_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> dict[str, object]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("envrl.envs.webshop.generate.item_entry", broken)
    with pytest.raises(DataFault, match="No space left"):
        generate_catalogue(tmp_path / "shop", 5)
    assert list(tmp_path.iterdir()) == []


def test_a_catalogue_of_one_is_valid(tmp_path: Path) -> None:
    files = generate_catalogue(tmp_path / "shop", 1, seed=2)
    assert files.human is not None
    assert len(json.loads(files.items.read_text())) == 1
    assert len(json.loads(files.attributes.read_text())) == 1
    assert isinstance(json.loads(files.human.read_text()), dict)


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataFault, match="new or empty folder"):
        generate_catalogue(tmp_path, 5)
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-3, 0), (MOST_PRODUCTS + 1, 0), (5, -1)])
def test_impossible_catalogues_are_refused(tmp_path: Path, count: int, seed: int) -> None:
    with pytest.raises(ConfigFault, match=f"count={count}, seed={seed}"):
        generate_catalogue(tmp_path / "shop", count, seed)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "shop"), "--count", "12", "--seed", "4"]) == 0
    assert len(json.loads((tmp_path / "shop" / "items_shuffle.json").read_text())) == 12
    assert "items_shuffle.json" in capsys.readouterr().out
    assert main(["--out", str(tmp_path / "shop"), "--count", "0"]) == 1
    assert "count=0" in capsys.readouterr().err
