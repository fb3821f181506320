"""What the fuzzer throws at this package: one function of bytes per border, with valid inputs to start from.

Every function may raise an :class:`envrl.errors.EnvrlError` and nothing else; whatever other exception it
raises is a crash. Needs no fuzzer: tests call the same functions.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

Run = Callable[[bytes], object]
DATA = Path(__file__).parents[1] / "data" / "webshop" / "fixture"
PART = b"\n---\n"
"""Between the files of an input that stands for several."""


@dataclass(frozen=True)
class Target:
    """One border.

    Attributes:
        make: Given an empty folder, imports what is tested and returns the function of bytes.
        seeds: Inputs that are accepted.
        words: What mutations put in.
        weight: Share of the time.
    """

    make: Callable[[Path], Run]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...] = ()
    weight: float = 1.0


def text_of(data: bytes) -> str:
    """The bytes as text; what is none becomes the sign for it."""
    return data.decode("utf-8", errors="replace")


def play(env: Any, observation: Any, actions: Sequence[str]) -> None:
    """Steps through an episode until it ends."""
    from envrl.types import Observation

    assert isinstance(observation, Observation)
    for action in actions:
        result = env.step(action)
        assert 0.0 <= result.info["task_score"] <= 1.0
        result.observation.text.encode()
        if result.terminated or result.truncated:
            return


# ALFWorld


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


# WebShop


def _cut(path: Path, entries: int) -> bytes:
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = content[:entries] if isinstance(content, list) else dict(islice(content.items(), entries))
    return json.dumps(kept).encode()


def _shop_seeds() -> list[bytes]:
    product = {
        "asin": "B000000001",
        "name": "Oak Stool",
        "full_description": "A stool of oak.",
        "small_description": ["Solid oak"],
        "pricing": "$20.00$30",
        "category": "garden",
        "query": " Stools ",
        "product_category": "Home › Furniture › Stools",
        "customization_options": {
            "Color": [{"value": "Red", "image": None}, {"value": "Blue/x", "image": "b"}]
        },
        "images": ["one", "two"],
    }
    asked = {"attributes": ["oak"], "instruction": "Find me oak", "instruction_attributes": ["oak"]}
    wish = {"instruction": "red oak", "instruction_attributes": ["oak"], "instruction_options": ["red"]}
    asin = product["asin"]
    files = ([product], {asin: asked}, {asin: [wish]})
    return [
        PART.join(json.dumps(content).encode() for content in files),
        PART.join(_cut(DATA / name, 3) for name in ("items.json", "items_ins.json", "items_human_ins.json")),
    ]


def _shop_files(folder: Path) -> Run:
    from envrl.envs.webshop.catalog import load_catalog
    from envrl.envs.webshop.env import WebShopEnv, goal_games
    from envrl.envs.webshop.goals import human_goals, read_human, synthetic_goals
    from envrl.envs.webshop.index import SearchIndex, documents
    from envrl.envs.webshop.ordering import order_goals
    from envrl.envs.webshop.reading import read_wish
    from envrl.envs.webshop.shop import Shop

    items, attributes, human = (folder / name for name in ("items.json", "ins.json", "human.json"))

    def run(data: bytes) -> None:
        parts = [*data.split(PART, 2), b"", b""]
        for path, content in zip((items, attributes, human), parts, strict=False):
            path.write_bytes(content)
        rng = random.Random(0)
        loaded = load_catalog(items, attributes, rng=rng)
        goals = order_goals(synthetic_goals(loaded, rng), rng).goals
        shop = Shop(loaded.catalog, goals, SearchIndex.build(documents(loaded.catalog)))
        read_wish(goals[0].instruction_text)
        env = WebShopEnv(shop)
        observation = env.reset(goal_games(goals[:1], "test")[0], 0)
        product = loaded.catalog.products[0]
        chosen = [f"click[{values[0]}]" for values in product.options.values() if values]
        opened = [f"search[{product.title}]", f"click[{product.asin.lower()}]"]
        play(env, observation, [*opened, *chosen, "click[description]", "click[< prev]", "click[buy now]"])
        human_goals(loaded.catalog, read_human(human, loaded.catalog), rng)

    return run


def _shop_actions(folder: Path) -> Run:
    from envrl.envs.webshop.catalog import load_catalog
    from envrl.envs.webshop.env import WebShopEnv, goal_games
    from envrl.envs.webshop.goals import synthetic_goals
    from envrl.envs.webshop.index import SearchIndex, documents
    from envrl.envs.webshop.reading import read_page
    from envrl.envs.webshop.shop import Shop

    items, attributes = folder / "items.json", folder / "ins.json"
    for path, content in zip((items, attributes), _shop_seeds()[0].split(PART), strict=False):
        path.write_bytes(content)
    rng = random.Random(0)
    loaded = load_catalog(items, attributes, rng=rng)
    goals = synthetic_goals(loaded, rng)
    env = WebShopEnv(Shop(loaded.catalog, goals, SearchIndex.build(documents(loaded.catalog))))
    game = goal_games(goals, "test")[0]

    def run(data: bytes) -> None:
        play(env, read_and_keep(env.reset(game, 0)), text_of(data).split("\n"))

    def read_and_keep(observation: Any) -> Any:
        read_page(observation)
        return observation

    return run


# What a model writes, and the server that samples from it


def _model_output(folder: Path) -> Run:
    from envrl.envs.webshop.actions import admits, parse_action
    from envrl.prompts.parse import parse_action as parse_output

    del folder
    admissible = ("search[<your query>]", "click[b000000001]")

    def run(data: bytes) -> None:
        text = text_of(data)
        for tail in (20, 30):
            reasoned = parse_output(text, "reasoned", tail_characters=tail)
            assert reasoned.action is None or reasoned.action == reasoned.action.strip() != ""
        compact = parse_output(text, "compact")
        assert compact.action is None or 0 < len(compact.action) <= 200
        for action in (reasoned.action, compact.action):
            if action is not None:
                parse_action(action)
                admits(admissible, action)

    return run


def _server_answer(folder: Path) -> Run:
    from envrl.policy.server import Draw, InferenceServer
    from envrl.policy.settings import ServerSettings

    del folder
    server = InferenceServer(ServerSettings(url="http://127.0.0.1:1"), "model")
    wanted = Draw((1, 2), 1.0, 4, 7, 0)
    answer = [""]
    server._transport.call = lambda *_, **__: answer[0]  # type: ignore[method-assign]

    def run(data: bytes) -> None:
        answer[0] = text_of(data[1:])
        if data[:1] == b"m":
            server.models()
        else:
            drawn = server.draw("model", wanted)
            assert len(drawn.token_ids) == len(drawn.logprobs)

    return run


def _answer_seeds() -> list[bytes]:
    choice = {"token_ids": [5, 7], "logprobs": {"token_logprobs": [-0.5, -1.0]}, "finish_reason": "stop"}
    models = {"data": [{"id": "model", "max_model_len": 2048}]}
    return [b"d" + json.dumps({"choices": [choice]}).encode(), b"m" + json.dumps(models).encode()]


# Configurations


def _study_file(folder: Path) -> Run:
    from envrl.experiments.study_file import load_study

    path = folder / "study.yaml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load_study(path)

    return run


def _sweep_file(folder: Path) -> Run:
    from envrl.experiments.sweep_file import load_sweep

    path = folder / "sweep.yaml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load_sweep(path)

    return run


def _run_config(folder: Path) -> Run:
    from envrl.experiments.config import config_from
    from envrl.experiments.trained import trained_config

    def run(data: bytes) -> None:
        (folder / "config.yaml").write_bytes(data)
        config_from(trained_config(folder))

    return run


def _option(folder: Path) -> Run:
    from envrl.experiments.plain import assignments

    del folder
    return lambda data: assignments([text_of(data)])


_STUDY = b"""name: s
baseline: a
seeds: [0, 1]
base: {env.max_steps: 5, loss: {sp.weight: 0.1}}
arms: {a: {}, b: {loss.id.weight: 0.2}}
factors: {f: {none: {}, x: {optim.lr: 1e-3}}}
more_seeds: {b: [2]}
jobs: 1
"""
_SWEEP = b"""name: s
base: {env.max_steps: 5}
space: {optim.lr: {low: 1.0e-5, high: 1.0e-3, log: true}, batch.updates: {choices: [1, 2]}}
sampler: {kind: random}
trials: 3
seeds: [0]
enqueue: [{optim.lr: 1.0e-4, batch.updates: 1}]
"""
_CONFIG = b"""seed: 3
env: {name: alfworld, max_steps: 5, train_games: 8}
rollout: {layout: transcript, games: 2, episodes_per_game: 2}
loss: {sp: {weight: 0.1, kind: linear, length: 2}, objectives: []}
optim: {lr: 0.001}
train: {iterations: 3}
"""
_YAML_WORDS = (
    *(b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"!!int ", b"!!binary ", b"!!timestamp "),
    *(b"null", b"true", b"-1", b"1e400", b".nan", b".inf", b"0x_", b"2001-99-99", b"99999999999999999999"),
    *(b"extends: ", b"../", b"- ", b": ", b"{}", b"[]", b"\x00", b"a.b.c", b"os:system"),
)

# What runs leave


def _json_file(folder: Path) -> Run:
    from envrl.analysis.frames import baseline_of
    from envrl.analysis.records import load_record
    from envrl.envs.panels import Panel
    from envrl.envs.webshop.replay import read_recording

    path = folder / "study.json"
    readers: dict[bytes, Callable[[Path], object]] = {
        b"r": load_record,
        b"p": Panel.load,
        b"w": read_recording,
        b"s": lambda place: baseline_of(place.parent),
    }

    def run(data: bytes) -> None:
        path.write_bytes(data[1:])
        readers.get(data[:1], load_record)(path)

    return run


def _json_seeds() -> list[bytes]:
    outcome = {"game_id": "g", "family": "f", "won": True, "steps": 3, "task_score": 1.0}
    record = {
        "arm": "grpo",
        "seed": 0,
        "status": "finished",
        "panel_hash": "0",
        "evaluations": [{"iteration": 0, "outcomes": [outcome], "dynamics": {"dynamics/sp": 0.5}}],
        "config": {"seed": 0},
    }
    from envrl.envs.panels import Panel
    from envrl.types import Game

    games = (Game("g", "alfworld", "train", "f", "g.tw-pddl", 5),)
    game = {**{k: getattr(games[0], k) for k in ("game_id", "env", "split", "family", "spec", "max_steps")}}
    panel = {"name": "p", "panel_hash": Panel("p", games).panel_hash, "games": [game]}
    episode = {"human_goals": 0, "seed": 1, "session": None, "kwargs": {}, "steps": [{}, {"action": "x"}]}
    study = {"study": {"baseline": "grpo"}}
    named = ((b"r", record), (b"p", panel), (b"w", {"episodes": [episode]}), (b"s", study))
    return [kind + json.dumps(content).encode() for kind, content in named]


def _episodes(folder: Path) -> Run:
    from envrl.analysis.episodes import episodes_path, read_episodes
    from envrl.analysis.predictions import read_predictions

    path = episodes_path(folder, 0)
    path.parent.mkdir()

    def run(data: bytes) -> None:
        # As it is, or packed, so that mutations reach what is inside.
        path.write_bytes(data[1:] if data[:1] in b"GZ" else gzip.compress(data[1:], 1))
        if data[:1] in b"pZ":
            read_predictions(path)
        else:
            for episode in read_episodes(folder):
                assert episode.episode_return is not None

    return run


def _episode_seeds() -> list[bytes]:
    turn = {
        "prompt": "p",
        "observation": "o",
        "admissible": ["a"],
        "pieces": [["a", -0.5]],
        "finish": "end",
        "action": "a",
        "format_valid": True,
        "action_admissible": True,
        "reward": 0.0,
        "next_observation": "n",
    }
    episode = {
        "arm": "grpo",
        "seed": 0,
        "iteration": 0,
        "game_id": "g",
        "family": "f",
        "stop": "won",
        "won": True,
        "task_score": 1.0,
        "turns": [turn],
    }
    answers = {"sp-0": {"text": "t", "cut": False}}
    predictions = {"iteration": 1, "sp_form": "question", "trained": ["sp"], "answers": answers}
    lines = json.dumps(episode).encode() + b"\n"
    packed = gzip.compress(json.dumps(predictions).encode(), mtime=0)
    return [
        *(b"e" + lines, b"p" + json.dumps(predictions).encode()),
        *(b"G" + gzip.compress(lines, mtime=0), b"Z" + packed),
    ]


def torch_archive(pickled: bytes) -> bytes:
    """A checkpoint file around a pickle of its own, with one storage of four bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (
            *(("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")),
            *(("data/0", b"\0\0\0\0"), (".format_version", b"1")),
        ):
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def _checkpoint(folder: Path) -> Run:
    from envrl.experiments.resume import completed_iterations, read_checkpoint

    path = folder / "last.ckpt"

    def run(data: bytes) -> None:
        path.write_bytes(data[1:] if data[:1] == b"z" else torch_archive(data[1:]))
        completed_iterations(read_checkpoint(path))

    return run


def _checkpoint_seeds() -> list[bytes]:
    import torch

    progress = {"fit_loop": {"epoch_progress": {"current": {"processed": 2}}}}
    content = {"state_dict": {"policy.w": torch.zeros(1)}, "loops": progress}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as archive:
        inner = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    plain = pickle.dumps({"state_dict": {}, "loops": progress}, protocol=2)
    return [b"p" + inner, b"p" + plain, b"z" + buffer.getvalue()]


_JSON_WORDS = (
    *(b"null", b"true", b"-1", b"1e400", b"NaN", b"{}", b"[]", b'""', b'"\\ud800"', b'"\\u0000"'),
    *(b"9" * 30, b"[" * 40, b'"$"', b'"$.."', b'"nan"', b"\xff", b","),
)
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
_CLICKS = (
    *(b"\nsearch[", b"\nclick[", b"]", b"[", b"oak stool", b"b000000001", b"red", b"buy now", b"next >"),
    *(
        b"< prev",
        b"back to search",
        b"description",
        b"features",
        b"reviews",
        b"<r>",
        b"<a> oak",
        b"<c> garden",
    ),
    *(b"<q> stools", b"blue | x"),
)
_TAGS = (
    b"<think>",
    b"</think>",
    b"<action>",
    b"</action>",
    b"search[",
    b"click[",
    b"]",
    b"[",
    b"\n",
    "新".encode(),
)


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
    "alfworld_game_file": Target(_game_file, _game_seeds, _JSON_WORDS),
    "alfworld_actions": Target(
        _alfworld_actions, lambda: [b"go to countertop 1\ntake mug 1 from countertop 1\nlook"], _COMMANDS, 2
    ),
    "webshop_files": Target(_shop_files, _shop_seeds, _JSON_WORDS, 2),
    "webshop_actions": Target(
        _shop_actions, lambda: [b"search[oak]\nclick[b000000001]\nclick[red]\nclick[buy now]"], _CLICKS, 2
    ),
    "model_output": Target(
        _model_output, lambda: [b"<think>so</think><action>search[oak]</action>", b"go to desk 1"], _TAGS, 2
    ),
    "server_answer": Target(_server_answer, _answer_seeds, _JSON_WORDS),
    "study_file": Target(_study_file, lambda: [_STUDY], _YAML_WORDS),
    "sweep_file": Target(_sweep_file, lambda: [_SWEEP], _YAML_WORDS),
    "run_config": Target(_run_config, lambda: [_CONFIG], _YAML_WORDS),
    "option": Target(_option, lambda: [b"train.iterations=3", b"a.b={c: [1, 2]}"], _YAML_WORDS),
    "json_file": Target(_json_file, _json_seeds, _JSON_WORDS),
    "episodes": Target(_episodes, _episode_seeds, _JSON_WORDS),
    "checkpoint": Target(
        _checkpoint,
        _checkpoint_seeds,
        (b"cos\nsystem\n", b"cbuiltins\neval\n", b"R", b".", b"\x85", b"(", b"b"),
    ),
}
"""Every border by name."""
