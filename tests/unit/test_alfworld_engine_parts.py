"""The parts of the native engine, each on small hand-made input."""

import pytest

from envrl.envs.alfworld.facts import Cell, FactBase, Memo, View
from envrl.envs.alfworld.grammar import (
    Call,
    Each,
    Expression,
    Text,
    parse_expression,
    parse_grammar,
    parse_symbols,
)
from envrl.envs.alfworld.joins import plan
from envrl.envs.alfworld.names import player_names
from envrl.envs.alfworld.pddl import Literal, parse_domain, parse_problem
from envrl.errors import DataFault

DOMAIN = """(define (domain toy) ; a comment (with parentheses)
  (:types agent location thing)
  (:predicates (atLocation ?a - agent ?l - location) (in ?t - thing ?l - location) (heavy ?t - thing))
  (:action lift :parameters (?a - agent ?t - thing ?l - location)
    :precondition (and (atLocation ?a ?l) (in ?t ?l) (not (heavy ?t)))
    :effect (and (not (in ?t ?l)) (increase (total-cost) 1))))"""
PROBLEM = """(define (problem p) (:domain toy) (:objects me - agent HALL attic - location b c d - thing)
  (:init (atLocation me hall) (in b hall) (in c hall) (in d attic) (heavy c) (= (total-cost) 0))
  (:goal (exists (?t - thing) (in ?t attic))))"""


def toy() -> FactBase:
    domain = parse_domain(DOMAIN)
    return FactBase(parse_problem(PROBLEM, domain), domain)


def test_names_count_down_in_sorted_order_and_basins_are_told_apart() -> None:
    ids = [
        "mug_bar_2",
        "mug_bar_1",
        "sink_bar_1",
        "sink_bar_1_bar_sinkbasin",
        "cd_bar__minus_1",
        "rug",
        "a_plus_b",
    ]
    assert player_names(ids) == {
        "mug_bar_1": "mug 2",
        "mug_bar_2": "mug 1",
        "sink_bar_1": "sink 1",
        "sink_bar_1_bar_sinkbasin": "sinkbasin 1",
        "cd_bar__minus_1": "cd 1",
        "rug": "rug ",
        "a_plus_b": "a+b ",
    }


def test_names_refuse_an_id_without_a_type() -> None:
    with pytest.raises(DataFault, match="_bar_1"):
        player_names(["_bar_1"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  on the {r.name}.", (Text("on the "), Expression(((("r", "name"),),)), Text("."))),
        ("#a(b)#, #c#", (Call("a(b)"), Text(", "), Call("c"))),
        ('say "hi" twice', (Text("say "), Text("hi"), Text(" twice"))),
        ("stop; here", (Text("stop"),)),
        ("brace } ends", (Text("brace "),)),
        ("a\\nb", (Text("a\nb"),)),
        ("", ()),
    ],
)
def test_symbols_are_split_as_the_reference_splits_them(text: str, expected: tuple[object, ...]) -> None:
    assert parse_symbols(text) == expected


def test_a_list_symbol_keeps_its_query() -> None:
    (symbol,) = parse_symbols("[{#overview(o)# | in(o:object, r:receptacle) & not_x(o:object)}]")
    assert isinstance(symbol, Each)
    assert (symbol.body, symbol.as_list) == (Call("overview(o)"), True)
    assert [(a.predicate, [(p.name, p.kind) for p in a.args]) for a in symbol.query or ()] == [
        ("in", [("o", "object"), ("r", "receptacle")]),
        ("not_x", [("o", "object")]),
    ]


@pytest.mark.parametrize(
    "text", ["__import__('os').getcwd()", "o.name.upper()", "o[0]", "1 + o.name", "o.secret", "("]
)
def test_expressions_never_run_code(text: str) -> None:
    with pytest.raises(DataFault, match="grammar expression"):
        parse_expression(text)


@pytest.mark.parametrize("text", ["action x {", 'grammar :: """{]""";', 'template :: "a";', "stray words"])
def test_a_broken_grammar_is_refused(text: str) -> None:
    with pytest.raises(DataFault, match="grammar"):
        parse_grammar(text)


def test_a_join_binds_tests_and_negates() -> None:
    domain = parse_domain(DOMAIN)
    facts = toy()
    (conjunction,) = domain.schemas[0].condition.disjuncts
    planned = plan(conjunction, domain.schemas[0].types, (), domain.changing)
    view = View(facts, facts.initial_bits, ("me", "hall"))
    slots = {v: i for i, v in enumerate(planned.variables)}
    rows = [{v: row[i] for v, i in slots.items()} for row in planned.answers((), view)]
    assert rows == [{"?a": "me", "?l": "hall", "?t": "b"}]
    gone = facts.initial_bits & ~facts.bit(("in", "b", "hall"))
    assert planned.answers((), View(facts, gone, ("me", "hall"))) == []
    there = planned.answers((), View(facts, facts.initial_bits, ("me", "attic")))
    assert [row[slots["?t"]] for row in there] == ["d"]


def test_variables_nothing_binds_range_over_their_type() -> None:
    facts = toy()
    planned = plan([Literal(False, "heavy", ("?t",))], {"?t": "thing"}, (), facts.changing)
    assert planned.answers((), View(facts, facts.initial_bits, ("me", "hall"))) == [("b",), ("d",)]


def test_a_memo_depends_on_what_was_read_and_on_nothing_else() -> None:
    cell, other = Cell(), Cell()
    cell.add(1, ("x",))
    other.add(2, ("y",))
    memo: Memo[str] = Memo(4)
    memo.put(0b01, {cell}, "with x")
    assert memo.get(0b01) == "with x"
    assert memo.get(0b11) == "with x"
    assert memo.get(0b00) is None
    cell.add(4, ("z",))
    assert memo.get(0b001) == "with x"
    assert memo.get(0b101) is None
    memo.put(0b101, {cell, other}, "with x and z")
    assert memo.get(0b111) is None
    assert memo.get(0b101) == "with x and z"


def test_a_memo_is_bounded() -> None:
    cell = Cell()
    for i in range(6):
        cell.add(1 << i, (str(i),))
    memo: Memo[int] = Memo(4)
    for i in range(6):
        memo.put(1 << i, {cell}, i)
    assert sum(memo.get(1 << i) is not None for i in range(6)) <= 4
    assert memo.get(1 << 5) == 5


def test_a_quantifier_over_an_undeclared_type_never_holds() -> None:
    text = DOMAIN.replace("(not (heavy ?t))", "(or (heavy ?t) (exists (?x - thing, ?y - thing) (in ?x ?l)))")
    schema = parse_domain(text).schemas[0]
    assert len(schema.condition.disjuncts) == 1
    assert Literal(True, "heavy", ("?t",)) in schema.condition.disjuncts[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(heavy c)", "(heavy hall)", "'hall' is a 'location', expected a 'thing'"),
        ("b c d - thing", "b c d c - thing", "'c' twice"),
        ("b c d - thing", "b c d - stuff", "'stuff', which the domain doesn't declare"),
        ("(:domain toy)", "(:domain toy", "balanced"),
        ("(exists (?t - thing) (in ?t attic))", "(in d)", "1 arguments, declared are 2"),
        (":domain toy", ":domain boy", "'boy'"),
    ],
)
def test_a_broken_problem_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(DataFault, match=message):
        parse_problem(PROBLEM.replace(old, new), parse_domain(DOMAIN))
