"""Pages as HTML: mode ``html``, a plain rendering with the ids and classes that scripts look for.

Every text goes through ``html.escape``. There is no white space between the elements, so the text nodes
of a page are exactly the texts of mode ``text``, in the same order. Hooks: ``#search_input``, ``.btn``,
``a.product-link``, ``div.list-group-item`` with ``h4.product-title`` and ``h5.product-price``,
``input[type=radio]`` with its label, ``#instruction-text h4``, ``img#product-image``, ``#reward pre``.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from itertools import count

from envrl.envs.webshop.pages import (
    BACK,
    NEXT,
    PREVIOUS,
    RATING,
    SEARCH,
    DonePage,
    ItemPage,
    Page,
    ResultsPage,
    StartPage,
    SubPage,
    done_nodes,
    item_buttons,
    sub_page_texts,
)
from envrl.envs.webshop.records import Product

_REWARD_FROM = "Reward"


def _element(tag: str, text: str, **attributes: str) -> str:
    """An element with one text; ``class_`` names the attribute ``class``."""
    return f"<{tag}{_attributes(attributes)}>{escape(text)}</{tag}>"


def _attributes(attributes: Mapping[str, str]) -> str:
    return "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())


def _button(name: str) -> str:
    return _element("button", name, class_="btn")


def _instruction(text: str, label: str) -> str:
    return f'<div id="instruction-text"><h4>{label}<br>{escape(text)}</h4></div>'


def page_html(page: Page, instruction: str, products: Mapping[str, Product], show_attributes: bool) -> str:
    """A whole HTML document.

    Args:
        page: The page.
        instruction: The customer's instruction.
        products: Identifier to product.
        show_attributes: Products have a button to their attributes.
    """
    match page:
        case StartPage():
            field = '<input id="search_input" name="search_query" type="text">'
            body = f"<h3>WebShop</h3>{_instruction(instruction, 'Instruction: ')}{field}{_button(SEARCH)}"
        case ResultsPage():
            body = _instruction(instruction, "Instruction:") + _results(page, products)
        case ItemPage():
            item = _item(page, products[page.asin], show_attributes)
            body = _instruction(instruction, "Instruction:") + item
        case SubPage():
            product = products[page.item.asin]
            texts = "".join(_element("p", text) for text in sub_page_texts(product, page.name))
            head = _instruction(instruction, "Instruction:") + _button(BACK) + _button(PREVIOUS)
            body = f'{head}<div class="product-info">{texts}</div>'
        case DonePage():
            body = _done(page)
    return f'<!DOCTYPE html><html><head><meta charset="utf-8"></head><body>{body}</body></html>'


def _results(page: ResultsPage, products: Mapping[str, Product]) -> str:
    parts = [_button(BACK), _element("h3", f"Page {page.number} (Total results: {page.total})")]
    parts += map(_button, (PREVIOUS, NEXT) if page.number > 1 else (NEXT,))
    for asin in page.asins:
        product = products[asin]
        link = _element("a", asin, class_="product-link", href=f"#{asin}")
        title = _element("h4", product.title, class_="product-title")
        price = _element("h5", product.price_text, class_="product-price")
        parts.append(f'<div class="list-group-item">{link}{title}{price}</div>')
    return "".join(parts)


def _item(page: ItemPage, product: Product, show_attributes: bool) -> str:
    image = _attributes({"id": "product-image", "src": _image(page, product)})
    parts = [_button(BACK), _button(PREVIOUS), f"<img{image}>"]
    identifiers = count()
    for group, values in product.options.items():
        parts.append(_element("h4", group))
        for value in values:
            identifier = f"option-{next(identifiers)}"
            chosen = " checked" if page.options.get(group) == value else ""
            radio = _attributes({"type": "radio", "id": identifier, "name": group, "value": value})
            parts.append(f"<input{radio}{chosen}>{_element('label', value, for_=identifier)}")
    parts.append(_element("h2", product.title))
    parts += [_element("h4", f"Price: {product.price_text}"), _element("h4", f"Rating: {RATING}")]
    return "".join(parts) + "".join(map(_button, item_buttons(show_attributes)))


def _image(page: ItemPage, product: Product) -> str:
    """The picture of the option chosen last that has one, else the product's."""
    pictures = [product.option_images.get(value) for value in page.options.values()]
    return next((picture for picture in reversed(pictures) if picture), product.image)


def _done(page: DonePage) -> str:
    texts = [node.text for node in done_nodes(page)]
    start = texts.index(_REWARD_FROM)
    about = "".join(_element("p", text) for text in texts[:start])
    reward = "".join(_element("pre", text) for text in texts[start:])
    return f'{about}<div id="reward">{reward}</div>'
