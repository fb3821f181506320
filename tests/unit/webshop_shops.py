"""Small shops for tests: products made on the spot, and a search that plays a script."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

from envrl.envs.webshop.goals import human_goals, read_human
from envrl.envs.webshop.index import SearchIndex, documents
from envrl.envs.webshop.ordering import order_goals
from envrl.envs.webshop.records import Catalog, Goal, Product
from envrl.envs.webshop.session import SessionSettings, ShopSession
from envrl.envs.webshop.sessions import SessionStore
from envrl.envs.webshop.shop import Shop
from unit.webshop_data import HUMAN, fixture_shop


def product(asin: str = "B000000001", **changes: Any) -> Product:
    """An oak stool in two colours for 20 dollars."""
    values: dict[str, Any] = {
        "asin": asin,
        "title": "Oak Stool",
        "description": "A stool of oak.",
        "bullets": ("Solid oak", "Three legs"),
        "price_text": "$20.0",
        "pricing": (20.0,),
        "category": "garden",
        "query": "stools",
        "product_category": "Home › Furniture › Stools",
        "options": {"color": ("red", "blue")},
        "option_images": {"red": None, "blue": "https://example.com/blue.jpg"},
        "image": "https://example.com/stool.jpg",
        "attributes": ("oak", "solid"),
    }
    return Product(**values | changes)


def goal(of: Product | None = None, **changes: Any) -> Goal:
    """A red oak stool for at most 30 dollars."""
    sold = of or product()
    values: dict[str, Any] = {
        "asin": sold.asin,
        "category": sold.category,
        "query": sold.query,
        "name": sold.title,
        "product_category": sold.product_category,
        "instruction_text": "find a red oak stool",
        "attributes": ("oak",),
        "price_upper": 30.0,
        "options": {"color": "red"},
    }
    return Goal(**values | changes)


class EverythingInOrder:
    """An index that finds every product, in catalogue order, whatever is asked; notes the queries."""

    def __init__(self, asins: Sequence[str]) -> None:
        self.asins = tuple(asins)
        self.queries: list[str] = []
        self.postings = SimpleNamespace(asins=self.asins)

    def search(self, query: str, k: int = 50) -> tuple[str, ...]:
        self.queries.append(query)
        return self.asins[:k]


def shop_of(
    products: Sequence[Product],
    goals: Sequence[Goal] | None = None,
    index: EverythingInOrder | None = None,
    **settings: Any,
) -> Shop:
    """A shop whose search finds everything; prices are the first of each product."""
    by_attribute: dict[str, tuple[str, ...]] = {}
    for sold in products:
        for attribute in sold.attributes:
            by_attribute[attribute] = (*by_attribute.get(attribute, ()), sold.asin)
    by_asin = {sold.asin: sold for sold in products}
    prices = {sold.asin: sold.pricing[0] for sold in products}
    catalog = Catalog(tuple(products), by_asin, prices, by_attribute)
    index = index or EverythingInOrder([sold.asin for sold in products])
    return Shop(catalog, goals or [goal(products[0])], index, **settings)  # type: ignore[arg-type]


def customer(
    shop: Shop, session: Any = 0, store: SessionStore | None = None, seed: int = 0, **settings: Any
) -> ShopSession:
    """A customer on the start page."""
    found = ShopSession(shop, random.Random(seed), SessionSettings(**settings), store)
    found.reset(session)
    return found


def play(session: ShopSession, *actions: str) -> ShopSession:
    """The customer after some actions."""
    for action in actions:
        session.step(action)
    return session


@cache
def human_shop() -> Shop:
    """The fixture with its three human goals and its real search."""
    rng = random.Random(123)
    loaded = fixture_shop(123)
    goals = human_goals(loaded.catalog, read_human(HUMAN, loaded.catalog), rng).goals
    index = SearchIndex.build(documents(loaded.catalog))
    return Shop(loaded.catalog, order_goals(goals, rng).goals, index)


class _Reader(HTMLParser):
    """Reads a document as a script would: texts between tags, tags with their attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.first_texts: dict[int, str] = {}
        self._fresh = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._fresh = True

    def handle_endtag(self, tag: str) -> None:
        self._fresh = True

    def handle_data(self, data: str) -> None:
        if self._fresh:
            self.texts.append(data)
            self.first_texts.setdefault(len(self.tags) - 1, data)
        else:
            self.texts[-1] += data
        self._fresh = False


def read_html(document: str) -> _Reader:
    """The document's tags and texts."""
    reader = _Reader()
    reader.feed(document)
    reader.close()
    return reader


def text_of_html(document: str) -> str:
    """Mode ``text`` worked out from HTML, as the original works it out from its own pages."""
    shown = []
    for node in read_html(document).texts:
        if all(character in " \t\n\f\r" for character in node) and "\n" in node:
            continue
        shown.append(node.strip())
    return " [SEP] ".join(shown)


def clickables_of_html(document: str) -> list[str]:
    """Clickable names worked out from HTML: buttons, product links, then the radio buttons' values."""
    reader = read_html(document)
    names: dict[str, None] = {}
    for wanted in ("btn", "product-link"):
        for number, (_, attributes) in enumerate(reader.tags):
            if attributes.get("class") == wanted:
                names[reader.first_texts[number].lower()] = None
    for tag, attributes in reader.tags:
        if tag == "input" and attributes.get("type") == "radio":
            names[attributes.get("value") or ""] = None
    return list(names)
