"""What pages show and what can be clicked, hostile products included."""

import json
import random

import pytest

from envrl.envs.webshop.address import address
from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.files import SMALL
from envrl.envs.webshop.html import page_html
from envrl.envs.webshop.pages import DonePage, ItemPage, Node, NodeKind, ResultsPage, StartPage, SubPage
from envrl.envs.webshop.render import segments, text_rich
from unit.webshop_data import official_files
from unit.webshop_shops import (
    clickables_of_html,
    customer,
    goal,
    human_shop,
    play,
    product,
    read_html,
    shop_of,
    text_of_html,
)

HOSTILE = '</label><script>alert("x")</script>&amp;\x07 \u202e!'
"""Lower-case already, as option values are."""


def item(**changes):
    shop = shop_of([product(**changes)])
    return play(customer(shop), "search[stool]", "click[b000000001]")


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["  oak  "], ("oak",)),
        (["a\n b"], ("a\n b",)),
        (["", "b"], ("b",)),
        ([" "], ("",)),
        (["\t\r"], ("",)),
        ([" \n "], ()),
        (["\u00a0"], ("",)),
        (["\n\u00a0"], ("",)),
        (["\x0b"], ("",)),
    ],
)
def test_blank_texts_are_dropped_only_where_they_are_empty_or_break_the_line(texts, shown):
    assert segments([Node(text) for text in texts]) == shown


def test_blanks_alone_are_one_blank_in_rich_text():
    nodes = [Node("\t  "), Node("\n\n"), Node(""), Node("  a  ")]
    assert text_rich(nodes, "", ()) == " \n  a  \n"


def test_rich_text_marks_buttons_options_and_products():
    nodes = [
        Node("Buy Now", NodeKind.BUTTON),
        Node("red", NodeKind.OPTION),
        Node("blue", NodeKind.OPTION),
        Node("A1", NodeKind.LINK),
        Node("A2", NodeKind.LINK),
    ]
    assert text_rich(nodes, 'x/{"c": "red", "d": "blue"}', {"A2"}) == (
        "You have clicked blue.\nYou have clicked red.\n"
        "[button] Buy Now [button_]\n"
        "  [clicked button] red [clicked button_]\n"
        "  [clicked button] blue [clicked button_]\n"
        "\n[button] A1 [button_]\n"
        "\n[clicked button] A2 [clicked button_]\n"
    )


def test_the_start_page():
    session = customer(shop_of([product()]))
    assert session.text == "WebShop [SEP] Instruction: [SEP] find a red oak stool [SEP] Search"
    assert session.text_rich == "WebShop\nInstruction: \nfind a red oak stool\n[button] Search [button_]\n"
    assert session.available.has_search_bar
    assert session.available.clickables == ("search",)


def test_a_product_shows_its_options_before_its_title():
    assert item().text == (
        "Instruction: [SEP] find a red oak stool [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] red "
        "[SEP] blue [SEP] Oak Stool [SEP] Price: $20.0 [SEP] Rating: N.A. [SEP] Description [SEP] Features "
        "[SEP] Reviews [SEP] Buy Now"
    )


def test_empty_bullets_show_and_an_empty_description_does_not():
    session = item(description="", bullets=("", "b"), options={})
    head = "Instruction: [SEP] find a red oak stool [SEP] Back to Search [SEP] < Prev"
    assert play(session, "click[description]").text == head
    play(session, "click[< prev]", "click[features]")
    assert session.text == f"{head} [SEP]  [SEP] b"
    assert session.text_rich.endswith("[button] < Prev [button_]\n \n b\n")


def test_attributes_are_a_sub_page_on_request():
    shop = shop_of([product()], show_attributes=True)
    session = play(customer(shop), "search[stool]", "click[b000000001]")
    assert session.available.clickables[2:7] == (
        "description",
        "features",
        "reviews",
        "attributes",
        "buy now",
    )
    play(session, "click[attributes]")
    assert session.text_rich.endswith("\n oak\n solid\ngarden\nstools\nHome › Furniture › Stools\n")


def test_a_value_of_two_groups_belongs_to_the_later_and_stays_at_its_place():
    session = item(options={"seat": ("oak", "ash"), "leg": ("pine", "oak")})
    assert session.available.clickables[6:] == ("oak", "ash", "pine")
    play(session, "click[oak]")
    assert session.session_state.options == {"leg": "oak"}


@pytest.mark.parametrize(
    ("value", "title"),
    [("description", "Description"), ("features", "Features"), ("attributes", "Attributes")],
)
def test_a_value_called_like_a_sub_page_opens_it(value, title):
    session = play(item(options={"style": (value, "plain")}), f"click[{value}]")
    assert isinstance(session.page, SubPage)
    assert session.page.name == title
    assert session.session_state.options == {}


def test_a_value_called_buy_now_buys():
    session = item(options={"style": ("buy now",)})
    assert session.available.clickables == (
        *("back to search", "< prev", "description", "features", "reviews", "buy now"),
    )
    assert session.step("click[buy now]").done


def test_a_value_called_back_to_search_or_prev_leaves_the_product():
    options = {"style": ("back to search", "< prev")}
    assert isinstance(play(item(options=options), "click[back to search]").page, StartPage)
    assert isinstance(play(item(options=options), "click[< prev]").page, ResultsPage)


def test_a_value_called_search_cannot_be_clicked_and_next_can():
    session = item(options={"style": ("search", "next >")})
    assert session.available.clickables[-2:] == ("search", "next >")
    assert play(session, "click[search]").session_state.options == {}
    assert play(session, "click[next >]").session_state.options == {"style": "next >"}


def test_values_json_would_escape_never_show_as_clicked():
    session = item(options={"style": ('5" wide', "größe m", "c:\\x", "plain")})
    for value in ('5" wide', "größe m", "c:\\x"):
        play(session, f"click[{value}]")
        assert session.session_state.options == {"style": value}
        assert "clicked" not in session.text_rich
    assert play(session, "click[plain]").text_rich.startswith("You have clicked plain.\nInstruction:\n")


def test_a_quoted_search_word_shows_the_option_as_clicked():
    """A quirk of the original that is kept: it looks for the value in the whole address."""
    session = play(customer(shop_of([product()])), 'search["red" stool]', "click[b000000001]")
    assert "[clicked button] red [clicked button_]" in session.text_rich


def test_hostile_texts_are_shown_literally_and_escaped_in_html():
    session = item(title=HOSTILE, options={HOSTILE: (HOSTILE,)}, image='"onerror="alert(1)')
    assert session.text.count(HOSTILE) == 3
    assert "<script" not in session.html
    assert text_of_html(session.html) == session.text
    tags = [tag for tag, _ in read_html(session.html).tags]
    assert tags.count("input") == 1
    assert "onerror" not in {name for _, attributes in read_html(session.html).tags for name in attributes}
    play(session, f"click[{HOSTILE}]")
    assert session.session_state.options == {HOSTILE: HOSTILE}
    assert text_of_html(session.html) == session.text


def test_hostile_instructions_and_purchases_are_escaped_in_html():
    sold = product(options={"style": (HOSTILE,)})
    session = play(
        customer(shop_of([sold], [goal(instruction_text=HOSTILE)])),
        "search[x]",
        "click[b000000001]",
        f"click[{HOSTILE}]",
    )
    assert text_of_html(session.html) == session.text
    play(session, "click[buy now]")
    assert "\\u003c/label\\u003e\\u003cscript\\u003e" in session.text
    assert "<script" not in session.html
    assert text_of_html(session.html) == session.text


def test_the_last_page_writes_options_as_sorted_ascii_json():
    page = DonePage("A1", {"size": "größe <m>", "color": 'tom\'s & "co"'}, 2 / 3)
    shop = shop_of([product()])
    texts = shop.body(page)
    assert texts[8] == (
        '{"color": "tom\\u0027s \\u0026 \\"co\\"", "size": "gr\\u00f6\\u00dfe \\u003cm\\u003e"}'
    )
    assert json.loads(texts[8]) == {"size": "größe <m>", "color": 'tom\'s & "co"'}
    assert texts[-3:] == ("0.6666666666666666", "Reward Details", "None")


def test_addresses_write_options_as_json_on_the_product_and_as_python_elsewhere():
    page = ItemPage("A1", ("a", "", "b/c"), 2, {"size": "größe m"})
    base = "http://127.0.0.1:3000"
    assert address(page, "s") == f'{base}/item_page/s/A1/a++b/c/2/{{"size": "gr\\u00f6\\u00dfe m"}}'
    assert address(SubPage(page, "Reviews"), "s") == (
        f"{base}/item_sub_page/s/A1/a++b/c/2/Reviews/{{'size': 'größe m'}}"
    )
    assert address(DonePage("A1", {}, 1.0), "s") == f"{base}/done/s/A1/{{}}"


def test_html_has_the_hooks_scripts_look_for():
    session = customer(shop_of([product(), product("B000000002")]))
    start = read_html(session.html)
    assert "search_input" in [attributes.get("id") for _, attributes in start.tags]
    assert "Instruction: " in start.texts
    play(session, "search[stool]")
    results = read_html(session.html)
    classes = [attributes.get("class") for _, attributes in results.tags]
    assert classes.count("list-group-item") == classes.count("product-title") == 2
    assert classes.count("product-link") == classes.count("product-price") == 2
    play(session, "click[b000000002]", "click[blue]")
    shown = read_html(session.html)
    assert ("img", {"id": "product-image", "src": "https://example.com/blue.jpg"}) in shown.tags
    radios = [attributes for tag, attributes in shown.tags if attributes.get("type") == "radio"]
    assert [(r["name"], r["value"], "checked" in r) for r in radios] == [
        ("color", "red", False),
        ("color", "blue", True),
    ]
    play(session, "click[buy now]")
    done = read_html(session.html)
    assert ("div", {"id": "reward"}) in done.tags
    boxed = [done.first_texts[n] for n, (tag, _) in enumerate(done.tags) if tag == "pre"]
    assert "0.6666666666666666" in boxed


def test_html_and_text_agree_on_the_fixture():
    assert _pages_that_agree(human_shop()) > 200


def test_html_and_text_agree_on_the_official_products():
    folder = official_files()
    loaded = load_catalog(*(folder / name for name in SMALL), rng=random.Random(0))
    shop = shop_of(loaded.catalog.products, [goal(loaded.catalog.products[0])])
    assert _pages_that_agree(shop) > 3900


def _pages_that_agree(shop):
    """Number of pages, of every product, whose texts and clickables are what a reader of the HTML finds."""
    products = shop.catalog.by_asin
    asins = tuple(products)
    pages = [ResultsPage(("a",), n, len(asins), asins[n * 10 : n * 10 + 10]) for n in range(1, 4)]
    for asin in asins:
        opened = ItemPage(asin, ("a",), 1, {})
        pages += [opened, *(SubPage(opened, name) for name in ("Description", "Features", "Attributes"))]
    for page in pages:
        document = page_html(page, "find it", products, shop.show_attributes)
        expected = " [SEP] ".join(("Instruction:", "find it", *shop.body(page)))
        assert text_of_html(document) == expected
        assert clickables_of_html(document) == list(shop.clicks(page).available.clickables)
    return len(pages)
