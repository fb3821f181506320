"""The grammar of actions, what they do, and what a session remembers."""

import random
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envrl.envs.webshop.actions import SEARCH_PLACEHOLDER, admits, parse_action
from envrl.envs.webshop.goal_sets import goal_id
from envrl.envs.webshop.pages import DonePage, ItemPage, ResultsPage, StartPage, SubPage
from envrl.envs.webshop.session import SessionSettings, ShopSession
from envrl.envs.webshop.sessions import SessionStore
from envrl.envs.webshop.shop import Shop
from envrl.errors import ConfigFault, DataFault, EnvFault
from unit.webshop_shops import EverythingInOrder, customer, goal, human_shop, play, product, shop_of

STOOL = "click[b000000001]"


@pytest.mark.parametrize(
    ("action", "name", "argument"),
    [
        ("search[Tea]", "search", "tea"),
        ("search[tea] because", "search", "tea"),
        ("search[ ]", "search", " "),
        ("Search[x]", "Search", "x"),
        ("think[a] search[tea]", "think[a] search", "tea"),
        ("search[a [b] c]", "search[a ", "b] c"),
        ("search[a]\nclick[b]", "search", "a"),
        ("click[a]]", "click", "a]"),
        ("click[[]", "click", "["),
    ],
)
def test_actions_are_taken_apart(action, name, argument):
    parsed = parse_action(action)
    assert parsed is not None
    assert (parsed.name, parsed.argument) == (name, argument)


@pytest.mark.parametrize(
    "action", ["", "search", "search[]", "[tea]", "search[te\na]", "\nsearch[a]", "]a[", "[]", "a]b["]
)
def test_what_is_no_action_is_none(action):
    assert parse_action(action) is None


@given(st.text(alphabet="ab[]\n ", max_size=14))
def test_the_grammar_is_the_regular_expression_of_the_original(action):
    found = re.match(r"(.+)\[(.+)\]", action)
    parsed = parse_action(action)
    assert (parsed and (parsed.name, parsed.argument)) == (found and (found[1], found[2]))


def test_long_runs_of_brackets_take_no_time():
    start = time.process_time()
    assert parse_action("[" * 1_000_000) is None
    assert time.process_time() - start < 5  # a scan that starts over at each bracket takes hours


@pytest.mark.parametrize(
    "action",
    [
        "",
        "look",
        "search",
        "search[]",
        "Search[tea]",
        "think[..] search[tea]",
        "search[a [b] c]",
        "click[search]",
        "click[buy now]",
        "click[b000000001]",
        "Click[back to search]",
        "\x00\udcff[x]",
    ],
)
def test_nothing_happens_outside_the_grammar(action):
    session = customer(shop_of([product()]))
    before = (session.page, session.session_state, session.text)
    step = session.step(action)
    assert (step.reward, step.done) == (0.0, False)
    assert step.observation == before[2]
    assert (session.page, session.session_state, session.text) == before


@given(st.lists(st.text(max_size=30) | st.text("sclik[]ea <rcqa>b0", max_size=30), max_size=8))
def test_no_action_raises(actions):
    session = customer(shop_of([product()]))
    for action in actions:
        for name in ("", "search", "click"):
            session.step(f"{name}[{action}]" if name else action)
            assert session.text
            assert session.text_rich
            assert session.html


def test_a_whole_episode():
    index = EverythingInOrder(["B000000001", "B000000002"])
    session = customer(shop_of([product(), product("B000000002")], index=index))
    play(session, "search[Oak  Stool]")
    assert session.page == ResultsPage(("oak", "", "stool"), 1, 2, ("B000000001", "B000000002"))
    assert index.queries == ["oak  stool"]
    play(session, "click[B000000001]", "click[Red]", "click[features]")
    assert session.page == SubPage(
        ItemPage("B000000001", ("oak", "", "stool"), 1, {"color": "red"}), "Features"
    )
    step = play(session, "click[< prev]").step("click[Buy Now]")
    assert (step.reward, step.done) == (1.0, True)
    assert session.page == DonePage("B000000001", {"color": "red"}, 1.0)
    assert session.available.clickables == ()
    state = session.session_state.as_dict()
    assert state["actions"] == {"search": 1, "asin": 1, "options": 1, "Features": 1, "purchase": 1}
    assert (state["done"], state["reward"], state["asins"]) == (True, 1.0, ["B000000001"])
    assert state["verbose_info"]["r_option"] == 1.0


def test_a_choice_replaces_the_one_before_and_leaves_with_the_product():
    session = play(customer(shop_of([product()])), "search[a]", STOOL, "click[red]", "click[blue]")
    assert session.session_state.options == {"color": "blue"}
    assert session.url.endswith('/B000000001/a/1/{"color": "blue"}')
    play(session, "click[< prev]")
    assert (session.session_state.options, session.session_state.asin) == ({}, None)
    assert session.session_state.actions["search"] == 2
    assert "[clicked button] B000000001 [clicked button_]" in session.text_rich
    assert play(session, STOOL).page == ItemPage("B000000001", ("a",), 1, {})


def test_the_start_page_forgets_everything_but_the_goal():
    session = play(customer(shop_of([product()])), "search[a]", STOOL, "click[red]", "click[back to search]")
    assert session.page == StartPage()
    assert session.session_state.as_dict() == {
        "done": False,
        "keywords": None,
        "page": None,
        "asin": None,
        "asins": [],
        "options": {},
        "actions": {},
    }


def test_pages_have_ten_products_and_no_end():
    products = [product(f"B{n:09d}") for n in range(23)]
    session = play(customer(shop_of(products)), "search[a]")
    assert session.available.clickables[:3] == ("back to search", "next >", "b000000000")
    play(session, "click[next >]", "click[next >]")
    assert session.page == ResultsPage(("a",), 3, 23, ("B000000020", "B000000021", "B000000022"))
    assert session.available.clickables[:3] == ("back to search", "< prev", "next >")
    play(session, *["click[next >]"] * 4)
    assert session.page == ResultsPage(("a",), 7, 23, ())
    assert play(session, "click[< prev]").page.number == 6
    first = play(session, *["click[< prev]"] * 9)
    assert first.page.number == 1
    assert first.session_state.actions == {"search": 1 + 6 + 6}


def test_the_product_leads_back_to_the_page_it_was_opened_from():
    products = [product(f"B{n:09d}") for n in range(23)]
    session = play(customer(shop_of(products)), "search[a b]", "click[next >]", "click[b000000012]")
    assert session.url.endswith("/item_page/0/B000000012/a+b/2/{}")
    assert play(session, "click[< prev]").page.number == 2


def test_searches_work_everywhere_and_after_the_purchase():
    session = play(customer(shop_of([product()])), "search[a]", STOOL, "click[buy now]")
    assert session.step("click[back to search]").done is False
    assert isinstance(session.page, DonePage)
    step = session.step("search[again]")
    assert (step.reward, step.done) == (0.0, False)
    assert isinstance(session.page, ResultsPage)
    assert session.session_state.done
    play(session, STOOL, "search[oak]")
    assert session.page.keywords == ("oak",)
    assert session.session_state.options == {}


def test_special_searches_come_in_catalogue_order():
    products = [
        product("B000000001", category="garden", query="oak stools", attributes=("soft", "oak")),
        product("B000000002", category="beauty", query="oak stools", attributes=("soft touch",)),
        product("B000000003", category="garden", query="stools", attributes=("soft",)),
    ]
    index = EverythingInOrder([sold.asin for sold in products])
    session = customer(shop_of(products, index=index))

    def found(query):
        return play(session, f"search[{query}]").page.asins

    assert found("<c> garden and more") == ("B000000001", "B000000003")
    assert found("<q> oak stools") == ("B000000001", "B000000002")
    assert found("<a> soft") == ("B000000001", "B000000003")
    assert found("<a> soft touch ") == ("B000000002",)
    assert found("<a>") == found("<c>") == found("<c> ") == found("<q> nothing") == ()
    assert index.queries == []
    assert found("all <a> soft") == ("B000000001", "B000000002", "B000000003")
    assert index.queries == ["all <a> soft"]


def test_random_searches_are_drawn_anew_for_every_page():
    products = [product(f"B{n:09d}") for n in range(60)]
    session = play(customer(shop_of(products), seed=7), "search[<r>]")
    rng = random.Random(7)
    drawn = [rng.sample(range(60), 50) for _ in range(2)]
    assert session.page.total == 50
    assert session.page.asins == tuple(f"B{n:09d}" for n in drawn[0][:10])
    assert play(session, "look").page.asins == tuple(f"B{n:09d}" for n in drawn[0][:10])
    play(session, "click[next >]")
    assert session.page.asins == tuple(f"B{n:09d}" for n in drawn[1][10:20])


def test_random_searches_in_a_small_shop_find_all_of_it():
    session = play(customer(shop_of([product(), product("B000000002")])), "search[<r>]")
    assert sorted(session.page.asins) == ["B000000001", "B000000002"]


def test_hits_that_are_not_in_the_catalogue_are_dropped():
    index = EverythingInOrder(["B999999999", "B000000001"])
    session = play(customer(shop_of([product()], index=index)), "search[a]")
    assert (session.page.asins, session.page.total) == (("B000000001",), 1)


def test_products_with_lower_case_identifiers_can_be_opened():
    session = play(customer(shop_of([product("b00lower01")])), "search[a]", "click[b00lower01]")
    assert session.page.asin == "b00lower01"


def test_history_interleaves_actions_and_observations():
    session = customer(shop_of([product()]), previous_observations=1, previous_actions=2, mode="url")
    base = "http://127.0.0.1:3000"
    assert (
        session.step("search[a]").observation == f"{base}/0 [SEP] search[a] [SEP] {base}/search_results/0/a/1"
    )
    assert session.step("nonsense").observation == (
        f"search[a] [SEP] {base}/search_results/0/a/1 [SEP] nonsense [SEP] {base}/search_results/0/a/1"
    )
    session.reset(0)
    assert session.step("x").observation == f"{base}/0 [SEP] x [SEP] {base}/0"


def test_history_with_more_observations_than_actions():
    session = customer(shop_of([product()]), previous_observations=2, mode="url")
    base = "http://127.0.0.1:3000"
    play(session, "search[a]")
    assert session.step("search[b]").observation == " [SEP] ".join(
        (f"{base}/0", f"{base}/search_results/0/a/1", f"{base}/search_results/0/b/1")
    )


@pytest.mark.parametrize("mode", ["text", "text_rich", "url", "html"])
def test_modes_are_what_the_properties_of_their_name_show(mode):
    session = customer(shop_of([product()]), mode=mode)
    assert session.step("search[a]").observation == getattr(session, mode)


def shop_of_goals(count=4):
    sold = product()
    goals = [goal(sold, instruction_text=f"wish {n}", weight=float(n + 1)) for n in range(count)]
    return shop_of([sold], goals)


@pytest.mark.parametrize(
    ("session", "name", "wish"),
    [(2, "2", 2), (-1, "-1", 3), (True, "True", 1), (np.int64(3), "3", 3)],
)
def test_whole_numbers_name_goals(session, name, wish):
    found = customer(shop_of_goals(), session)
    assert found.session_state.goal.instruction_text == f"wish {wish}"
    assert found.instruction_text == f"Instruction: wish {wish}"
    assert found.url == f"http://127.0.0.1:3000/{name}"


@pytest.mark.parametrize("session", [4, -5])
def test_a_goal_that_is_not_there_is_refused(session):
    with pytest.raises(ConfigFault, match=r"no goal -?\d: give a number from -4 to 3"):
        customer(shop_of_goals(), session)


def test_other_sessions_draw_their_goal_by_weight_one_place_too_far():
    """Weights 1, 2, 3, 4: goal 1 comes in 10 %, goal 2 in 20 %, goal 3 in 70 % of the draws, goal 0 never."""
    shop, rng = shop_of_goals(), random.Random(5)
    session = ShopSession(shop, rng)
    drawn = []
    for _ in range(2000):
        session.reset("mine")
        drawn.append(session.session_state.goal.instruction_text)
    assert drawn.count("wish 0") == 0
    assert drawn.count("wish 1") == pytest.approx(200, abs=50)
    assert drawn.count("wish 2") == pytest.approx(400, abs=70)


def test_names_are_drawn_before_goals_as_in_the_original():
    rng = random.Random(233)
    session = ShopSession(human_shop(), rng)
    session.reset()
    check = random.Random(233)
    name = "".join(check.choices("abcdefghijklmnopqrstuvwxyz", k=10))
    assert session.url == f"http://127.0.0.1:3000/{name}"
    check.uniform(0, 1)
    assert rng.getstate() == check.getstate()


def test_a_name_that_comes_again_keeps_its_goal_and_purchase():
    store = SessionStore()
    shop = shop_of_goals()
    session = customer(shop, 2, store)
    play(session, "search[a]", STOOL, "click[buy now]")
    other = ShopSession(shop, random.Random(1), store=store)
    other.reset("2")
    assert other.session_state.goal.instruction_text == "wish 2"
    assert other.session_state.done
    assert other.session_state.actions == {}
    assert len(store) == 1


def test_without_a_store_every_reset_is_new():
    session = customer(shop_of_goals(), 2)
    play(session, "search[a]", STOOL, "click[buy now]")
    session.reset(2)
    assert not session.session_state.done
    assert session.session_state.details is None


def test_a_full_store_forgets_the_longest_unused_and_the_customer_goes_on():
    store = SessionStore(limit=2)
    shop = shop_of_goals()
    first = customer(shop, 0, store)
    for place in (1, 2, 3):
        customer(shop, place, store)
    assert store.get("0") is None
    assert store.get("1") is None
    assert len(store) == 2
    assert play(first, "search[a]", STOOL).step("click[buy now]").done
    assert store.get("0").done


def test_prefixes_and_instructions():
    session = customer(shop_of_goals(), 1, session_prefix="eval-", instruction="buy what you like")
    assert session.url == "http://127.0.0.1:3000/eval-1"
    assert "buy what you like" in session.text
    assert session.session_state.goal.instruction_text == "buy what you like"
    session.reset(1, "something else")
    assert session.instruction_text == "something else"
    assert "something else" not in session.text


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ConfigFault, match="'txt': use text, text_rich, url, html"):
        SessionSettings(mode="txt")  # type: ignore[arg-type]
    with pytest.raises(ConfigFault, match=">= 0"):
        SessionSettings(previous_actions=-1)
    with pytest.raises(ConfigFault, match="at least 1"):
        SessionStore(0)
    shop = shop_of([product()])
    with pytest.raises(DataFault, match="no goals"):
        Shop(shop.catalog, [], EverythingInOrder([product().asin]))  # type: ignore[arg-type]
    with pytest.raises(DataFault, match="index lacks 1 of 1 products"):
        shop_of([product()], index=EverythingInOrder([]))


def test_a_customer_must_come_in_first():
    session = ShopSession(shop_of([product()]), random.Random(0))
    with pytest.raises(EnvFault, match="reset"):
        session.step("search[a]")


def test_goals_are_found_by_content():
    shop = shop_of([product()], [goal(), goal(instruction_text="two"), goal(weight=3.0)])
    assert shop.goal_place(goal_id(goal())) == 0
    assert shop.goal_place(goal_id(goal(instruction_text="two"))) == 1
    with pytest.raises(DataFault, match="no goal"):
        shop.goal_place(goal_id(replace(goal(), price_upper=20.0)))


@pytest.mark.parametrize(
    ("action", "admitted"),
    [
        ("search[red stool]", True),
        ("search[ ] now", True),
        ("search[]", False),
        ("Search[x]", False),
        ("click[buy now]", True),
        ("click[Buy Now] please", True),
        ("click[buy]", False),
        ("look", False),
    ],
)
def test_admissible_actions_are_known_as_the_shop_would_take_them(action, admitted):
    assert admits((SEARCH_PLACEHOLDER, "click[buy now]"), action) is admitted


def test_searches_are_admissible_only_where_a_search_bar_is():
    assert not admits(("click[buy now]",), "search[x]")
    assert not admits((), "click[buy now]")
