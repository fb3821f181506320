"""The pages of the shop as plain records: what stands on each, and what can be clicked.

A page says where the customer is and nothing else; what it shows follows from the catalogue and the
instruction. :func:`page_nodes` lists its texts in reading order; :mod:`envrl.envs.webshop.render`
writes them as the two text modes, :mod:`envrl.envs.webshop.html` as HTML.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from envrl.envs.webshop.records import Product

RESULTS_PER_PAGE = 10
SEARCH = "Search"
BACK = "Back to Search"
PREVIOUS = "< Prev"
NEXT = "Next >"
BUY = "Buy Now"
SUB_PAGES: tuple[str, ...] = ("Description", "Features", "Reviews", "Attributes")
"""Sub-pages of a product, as their buttons and addresses name them; Attributes has a button on request."""
RATING = "N.A."


@dataclass(frozen=True, slots=True)
class StartPage:
    """The page with the search bar."""


@dataclass(frozen=True, slots=True)
class ResultsPage:
    """One page of what a search found.

    Attributes:
        keywords: Words of the query as they were split.
        number: Counted from 1, without an upper bound: pages after the last result are empty.
        total: Number of results on all pages.
        asins: Products on this page, best first.
    """

    keywords: tuple[str, ...]
    number: int
    total: int
    asins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ItemPage:
    """A product.

    Attributes:
        asin: The product.
        keywords: Query of the results page it was opened from.
        number: That page's number.
        options: Option group to the value chosen, in the order of the first choices.
    """

    asin: str
    keywords: tuple[str, ...]
    number: int
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SubPage:
    """Description, features, reviews or attributes of the product of ``item``."""

    item: ItemPage
    name: str


@dataclass(frozen=True, slots=True)
class DonePage:
    """The page after a purchase, with its score in [0, 1]."""

    asin: str
    options: Mapping[str, str]
    score: float


Page = StartPage | ResultsPage | ItemPage | SubPage | DonePage


class NodeKind(Enum):
    """What a text on a page is."""

    TEXT = "text"
    """Words that can't be clicked."""
    BUTTON = "button"
    """A button of the shop."""
    OPTION = "option"
    """A value of an option group."""
    LINK = "link"
    """A product on a results page."""


@dataclass(frozen=True, slots=True)
class Node:
    """One piece of text of a page; blanks around it are kept."""

    text: str
    kind: NodeKind = NodeKind.TEXT


@dataclass(frozen=True, slots=True)
class Available:
    """What can be done on a page.

    Attributes:
        has_search_bar: The page has a search bar; searches work without it too.
        clickables: Lower-case names in page order. ``search`` is named but can't be clicked.
    """

    has_search_bar: bool
    clickables: tuple[str, ...]


def _texts(values: Iterable[str]) -> list[Node]:
    return [Node(value) for value in values]


def _buttons(*names: str) -> list[Node]:
    return [Node(name, NodeKind.BUTTON) for name in names]


def item_buttons(show_attributes: bool) -> tuple[str, ...]:
    """Buttons below a product: its sub-pages and the purchase."""
    return (*(SUB_PAGES if show_attributes else SUB_PAGES[:3]), BUY)


def results_head(page: ResultsPage) -> list[Node]:
    """What stands above the products of a results page."""
    nodes = [*_buttons(BACK), Node(f"Page {page.number} (Total results: {page.total})")]
    return [*nodes, *_buttons(*((PREVIOUS, NEXT) if page.number > 1 else (NEXT,)))]


def listing_nodes(product: Product) -> list[Node]:
    """A product on a results page."""
    return [Node(product.asin, NodeKind.LINK), Node(product.title), Node(product.price_text)]


def item_nodes(product: Product, show_attributes: bool) -> list[Node]:
    """A product's own page; the choice of options doesn't change its texts."""
    nodes = _buttons(BACK, PREVIOUS)
    for group, values in product.options.items():
        nodes.append(Node(group))
        nodes += [Node(value, NodeKind.OPTION) for value in values]
    nodes += _texts((product.title, f"Price: {product.price_text}", f"Rating: {RATING}"))
    return nodes + _buttons(*item_buttons(show_attributes))


def sub_page_texts(product: Product, name: str) -> tuple[str, ...]:
    """Texts of a sub-page; a list entry stands after a blank, so that an empty one still shows."""
    if name == "Description":
        return (product.description,)
    if name == "Features":
        return tuple(f" {bullet}" for bullet in product.bullets)
    if name == "Attributes":
        listed = (f" {attribute}" for attribute in product.attributes)
        return (*listed, product.category, product.query, product.product_category)
    return ()


def options_json(options: Mapping[str, str]) -> str:
    """The options as the last page shows them: JSON in ASCII, sorted, safe inside HTML."""
    text = json.dumps(dict(options), sort_keys=True)
    for character in "<>&'":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def done_nodes(page: DonePage) -> list[Node]:
    """The last page: the same words always, but for product, options and score."""
    bought = ("Purchased", "asin", page.asin, "options", options_json(page.options), "attrs", "None")
    about = ("category", "None", "query", "None", "product category", "None")
    wanted = ("Target", "asin", "options", "attrs", "price upper", "instuction text")
    rest = ("category", "product category", "query", "Goal ", "None")
    reward = ("Reward", "Your score (min 0.0, max 1.0)", str(page.score), "Reward Details ", "None")
    thanks = ("Thank you for shopping with us!", "Your code: ", "None")
    note = " (Paste it in your MTurk interface.)"
    return _texts((*thanks, note, *bought, *about, *wanted, *rest, *reward))


def body_nodes(page: Page, products: Mapping[str, Product], show_attributes: bool) -> list[Node]:
    """Texts of a page after the instruction, in reading order; of the last page, all."""
    match page:
        case StartPage():
            return _buttons(SEARCH)
        case ResultsPage():
            return results_head(page) + [n for a in page.asins for n in listing_nodes(products[a])]
        case ItemPage():
            return item_nodes(products[page.asin], show_attributes)
        case SubPage():
            texts = sub_page_texts(products[page.item.asin], page.name)
            return _buttons(BACK, PREVIOUS) + _texts(texts)
        case DonePage():
            return done_nodes(page)


def head_nodes(page: Page, instruction: str) -> list[Node]:
    """What stands before the body: the shop's name and the instruction."""
    if isinstance(page, DonePage):
        return []
    if isinstance(page, StartPage):
        return _texts(("WebShop", "Instruction: ", instruction))
    return _texts(("Instruction:", instruction))


def results_clickables(page: ResultsPage) -> dict[str, str | None]:
    """Clickable name to the product it opens; None for a button."""
    names = [BACK, PREVIOUS, NEXT] if page.number > 1 else [BACK, NEXT]
    clickables: dict[str, str | None] = dict.fromkeys(name.lower() for name in names)
    for asin in page.asins:
        clickables.setdefault(asin.lower(), asin)
    return clickables


def item_clickables(product: Product, show_attributes: bool) -> dict[str, str | None]:
    """Clickable name to the option group it chooses in; None for a button.

    Names are unique: a value that two groups share belongs to the later one, and a value called like a
    button of the page *is* that button; either way the name keeps its first place.
    """
    names = (BACK, PREVIOUS, *item_buttons(show_attributes))
    clickables: dict[str, str | None] = dict.fromkeys(name.lower() for name in names)
    buttons = frozenset(clickables) | {name.lower() for name in SUB_PAGES}
    for group, values in product.options.items():
        clickables |= {value: None if value in buttons else group for value in values}
    return clickables
