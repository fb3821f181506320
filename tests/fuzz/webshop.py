"""WebShop: files of products and goals, and what is typed in a shop."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

from fuzz.target import JSON_WORDS, Run, Target, play, text_of

DATA = Path(__file__).parents[1] / "data" / "webshop" / "fixture"
PART = b"\n---\n"
"""Between the files of an input that stands for several."""


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


TARGETS: dict[str, Target] = {
    "webshop_files": Target(_shop_files, _shop_seeds, JSON_WORDS, 2),
    "webshop_actions": Target(
        _shop_actions, lambda: [b"search[oak]\nclick[b000000001]\nclick[red]\nclick[buy now]"], _CLICKS, 2
    ),
}
