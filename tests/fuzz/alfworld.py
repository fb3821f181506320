"""ALFWorld: files of games, their grammar and logic, and what is typed in one."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from fuzz.target import JSON_WORDS, Run, Target, play, text_of

_PDDL_WORDS = (
    *(b"(and ", b"(or ", b"(not ", b"(exists (?x - object) ", b"(when ", b"(= ?a ?b)", b" - object ", b"()"),
    *(b"(increase ", b":objects", b":init", b":goal", b"; ", b"?o", b"agent1", b"(forall ", b"(", b")", b"-"),
)
_GRAMMAR_WORDS = (
    *(b"#list_empty#", b"{o.name | contains(r, o)}", b"[{o | p(o : t)}]", b" + ", b" or ", b"o.id", b'"""'),
    *(b"{", b"}", b"[", b"]", b"|", b"#", b'"', b"::", b";", b"//", b"\\n", b"\x00", b"__import__('os')"),
)
_COMMANDS = (
    *(b"\n", b"go to ", b"take ", b" from ", b"open ", b"heat ", b" with ", b"mug 1", b"fridge 1", b"move "),
    *(b"look", b"inventory", b"countertop 1", b"microwave 1", b"examine ", b"desklamp 1", b"use ", b" to "),
)


def _tiny() -> dict[str, str]:
    from unit.alfworld_tiny import tiny_game

    return tiny_game()


def _alfworld_field(field: str) -> Callable[[Path], Run]:
    def make(folder: Path) -> Run:
        from envrl.envs.alfworld.engine import load_game

        del folder
        game = _tiny()

        def run(data: bytes) -> None:
            state = load_game(game | {field: text_of(data)}).new_state()
            for command in islice(state.admissible(), 3):
                state.step(command)
            state.admissible()

        return run

    return make


def _game_file(folder: Path) -> Run:
    from envrl.envs.alfworld.engine import AlfworldEnv
    from envrl.envs.alfworld.games import read_game

    path = folder / "game.tw-pddl"
    env = AlfworldEnv()

    def run(data: bytes) -> None:
        path.write_bytes(data)
        game = read_game(path, "test")
        observation = env.reset(game, 0)
        play(env, observation, observation.admissible[:2])

    return run


def _game_seeds() -> list[bytes]:
    return [json.dumps(_tiny() | {"task_type": "pick_heat_then_place_in_recep"}).encode()]


def _grammar_parts(folder: Path) -> Run:
    from envrl.envs.alfworld.grammar import parse_expression, parse_query, parse_rules

    del folder

    def run(data: bytes) -> None:
        kind, text = data[:1], text_of(data[1:])
        if kind == b"q":
            parse_query(text)
        elif kind == b"e":
            parse_expression(text)
        else:
            parse_rules("rule", [{"rhs": text}])

    return run


def _alfworld_actions(folder: Path) -> Run:
    from envrl.envs.alfworld.engine import AlfworldEnv
    from envrl.envs.alfworld.games import read_game

    path = folder / "game.tw-pddl"
    path.write_bytes(_game_seeds()[0])
    game = read_game(path, "test")
    env = AlfworldEnv()

    def run(data: bytes) -> None:
        observation = env.reset(game, 0)
        play(env, observation, text_of(data).split("\n"))

    return run


def _field_seed(field: str) -> Callable[[], list[bytes]]:
    return lambda: [_tiny()[field].encode()]


TARGETS: dict[str, Target] = {
    "alfworld_problem": Target(_alfworld_field("pddl_problem"), _field_seed("pddl_problem"), _PDDL_WORDS, 2),
    "alfworld_domain": Target(_alfworld_field("pddl_domain"), _field_seed("pddl_domain"), _PDDL_WORDS),
    "alfworld_grammar": Target(_alfworld_field("grammar"), _field_seed("grammar"), _GRAMMAR_WORDS),
    "alfworld_grammar_parts": Target(
        _grammar_parts,
        lambda: [
            b"r{o.indefinite + ' ' + o.name | at(a, o)}#x# y",
            b"eo.name or 'b'",
            b"qat(a : t, b : t) & not_p(a)",
        ],
        _GRAMMAR_WORDS,
    ),
    "alfworld_game_file": Target(_game_file, _game_seeds, JSON_WORDS),
    "alfworld_actions": Target(
        _alfworld_actions, lambda: [b"go to countertop 1\ntake mug 1 from countertop 1\nlook"], _COMMANDS, 2
    ),
}
