"""Panels: what is the same list of games, what may be in it, and what the file may say."""

import json
from dataclasses import replace

import pytest

from envrl.envs.panels import Panel, draw_games, make_panel
from envrl.errors import DataFault
from envrl.types import Game


def game(name: str, family: str = "pick", max_steps: int = 50) -> Game:
    return Game(name, "alfworld", "valid_seen", family, f"/games/{name}.tw-pddl", max_steps)


def pool() -> list[Game]:
    sizes = {"a": 10, "b": 3, "c": 1}
    return [game(f"{family}{i}", family) for family, size in sizes.items() for i in range(size)]


def test_hash_is_the_one_worked_out_by_hand() -> None:
    # printf '[["x", 20], ["y", 50]]' | b2sum -l 64
    panel = Panel("two", (game("y"), game("x", max_steps=20)))
    assert panel.panel_hash == "b056efd9d485b600"


def test_hash_depends_on_content_and_limit_only() -> None:
    panel = Panel("p", (game("x"), game("y")))
    moved = Panel("other", (replace(game("y"), spec="elsewhere", split="train"), game("x")))
    assert moved.panel_hash == panel.panel_hash
    assert Panel("p", (game("x"), game("z"))).panel_hash != panel.panel_hash
    assert Panel("p", (game("x"), game("y", max_steps=30))).panel_hash != panel.panel_hash


def test_an_empty_panel_is_refused() -> None:
    with pytest.raises(DataFault, match="'p' has no games"):
        Panel("p", ())


def test_a_game_twice_is_refused() -> None:
    with pytest.raises(DataFault, match=r"same game twice \(/games/x.tw-pddl and copy"):
        Panel("p", (game("x"), replace(game("x"), spec="copy")))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {"a": 1}),
        (3, {"a": 1, "b": 1, "c": 1}),
        (6, {"a": 3, "b": 2, "c": 1}),
        (9, {"a": 5, "b": 3, "c": 1}),
        (14, {"a": 10, "b": 3, "c": 1}),
        (None, {"a": 10, "b": 3, "c": 1}),
    ],
)
def test_families_get_even_shares_as_far_as_they_go(count: int | None, expected: dict[str, int]) -> None:
    drawn = [g.family for g in make_panel(pool(), count, seed=0).games]
    assert {family: drawn.count(family) for family in set(drawn)} == expected


def test_the_draw_depends_on_the_seed_and_not_on_the_order_given() -> None:
    panel = make_panel(pool(), 6, seed=3)
    assert make_panel(reversed(pool()), 6, seed=3) == panel
    assert len({make_panel(pool(), 6, seed=s).panel_hash for s in range(8)}) > 1


def test_equal_content_is_drawn_once() -> None:
    copies = [*pool(), *(replace(g, spec="copy") for g in pool())]
    assert len(make_panel(copies, None, seed=0).games) == 14


@pytest.mark.parametrize("count", [0, -1, 15])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(DataFault, match=f"shall have {count} games, but there are 14"):
        make_panel(pool(), count, seed=0)


def test_a_panel_of_nothing_is_refused() -> None:
    with pytest.raises(DataFault, match="there are 0 different ones"):
        make_panel([], None, seed=0)


def test_training_on_a_game_of_the_panel_is_refused() -> None:
    panel = Panel("p", (game("x"), game("y")))
    panel.require_disjoint([game("z")])
    with pytest.raises(DataFault, match=r"1 training games are in panel 'p' too, e\.g\. train/1"):
        panel.require_disjoint([game("z"), replace(game("y"), spec="train/1", split="train")])


def test_a_saved_panel_comes_back_equal(tmp_path) -> None:
    panel = make_panel(pool(), 6, seed=0, name="six")
    panel.save(tmp_path / "new" / "panel.json")
    assert Panel.load(tmp_path / "new" / "panel.json") == panel
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["panel.json"]


def test_a_panel_that_cant_be_written_leaves_nothing(tmp_path) -> None:
    panel = make_panel(pool(), 6, seed=0)
    (tmp_path / "panel.json").mkdir()
    with pytest.raises(DataFault, match=r"can't write .*panel\.json"):
        panel.save(tmp_path / "panel.json")
    assert [p.name for p in tmp_path.iterdir()] == ["panel.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFault, match=r"can't write .*file/panel\.json"):
        panel.save(tmp_path / "file" / "panel.json")


def _swap_game(record: dict) -> None:
    record["games"][0]["game_id"] = "other"


def _add_key(record: dict) -> None:
    record["gmaes"] = []


def _no_games(record: dict) -> None:
    record["games"] = []


def _no_limit(record: dict) -> None:
    record["games"][0]["max_steps"] = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_swap_game, "changed after it was made"),
        (_add_key, "gmaes"),
        (_no_games, "games: List should have at least 1 item"),
        (_no_limit, r"games\.0\.max_steps"),
    ],
)
def test_a_spoiled_file_is_refused(tmp_path, change, message: str) -> None:
    path = tmp_path / "panel.json"
    make_panel(pool(), 6, seed=0).save(path)
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(DataFault, match=message):
        Panel.load(path)


@pytest.mark.parametrize("content", [None, "", "[1, 2", b"\xff\xfe\x00"])
def test_no_panel_file_at_all_is_refused(tmp_path, content: str | bytes | None) -> None:
    path = tmp_path / "panel.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataFault, match=r"panel\.json"):
        Panel.load(path)


def test_games_are_drawn_once_each_and_in_their_order() -> None:
    games = pool()
    drawn = draw_games(games, 6, seed=0)
    assert len(set(drawn)) == 6
    assert list(drawn) == sorted(drawn, key=games.index)
    assert drawn == draw_games(games, 6, seed=0) != draw_games(games, 6, seed=1)
    assert draw_games(games, None, seed=0) == draw_games(games, 99, seed=0) == tuple(games)
