"""Replays recorded WebShop episodes and prints every difference.

    python -m envrl.envs.webshop.replay TRACES.json --items I.json --attributes A.json --human H.json

A recording is JSON with a list ``episodes``; each has ``human_goals``, ``seed``, ``session``, ``kwargs``,
``goal``, ``instruction_text``, ``steps`` and ``final_session``. The first step of an episode is its reset.
Of a step the action is played, and observation (in the recorded mode, and as ``rich`` in ``text_rich``),
address, clickables, reward and end are compared. A step that made the original raise (``raises``) has
nothing to compare: here it is a step like any other; it is named, but is no difference. Observations in
mode ``html`` are not compared.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.goals import human_goals, read_human, synthetic_goals
from envrl.envs.webshop.index import SearchIndex, documents
from envrl.envs.webshop.ordering import order_goals
from envrl.envs.webshop.records import Goal
from envrl.envs.webshop.session import SessionSettings, ShopSession, ShopStep
from envrl.envs.webshop.sessions import SessionStore
from envrl.envs.webshop.shop import Shop
from envrl.errors import DataFault, EnvrlError
from envrl.untrusted import parse_json, read_text, shown

_EPISODE_KEYS = ("human_goals", "seed", "session", "kwargs", "steps")
_SETTINGS = {
    "mode": "mode",
    "observation_mode": "mode",
    "num_prev_obs": "previous_observations",
    "num_prev_actions": "previous_actions",
    "session_prefix": "session_prefix",
}
_SHOP_KEYS = frozenset({"show_attrs", "num_products", "limit_goals"})
_NO_EFFECT = frozenset({"file_path", "attr_path", "human_goals", "session", "seed", "get_image"})
"""Arguments of the original that say where files are, or what the episode says beside them."""
_NUMBERS = frozenset({"num_prev_obs", "num_prev_actions", "num_products", "limit_goals"})
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class ShopPaths:
    """Files of the catalogue that was recorded."""

    items: Path
    attributes: Path
    human: Path


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that is not as recorded; ``step`` counts from 0, the reset, and is None for the episode."""

    episode: str
    step: int | None
    field: str
    recorded: object
    found: object

    def __str__(self) -> str:
        place = "" if self.step is None else f", step {self.step}"
        values = f"recorded {_short(self.recorded)}\n    found    {_short(self.found)}"
        return f"{self.episode}{place}, {self.field}:\n    {values}"


@dataclass(frozen=True, slots=True)
class Report:
    """Outcome of a replay; ``raising`` names the steps at which the original failed."""

    episodes: int
    steps: int
    differences: tuple[Difference, ...]
    raising: tuple[str, ...]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def read_recording(path: Path) -> list[dict[str, Any]]:
    """The episodes of a recording.

    Raises:
        DataFault: The file is missing, is not JSON, or has no such episodes.
    """
    try:
        data = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise DataFault(f"can't read {path} as JSON: {error}. Give a file of recorded episodes") from error
    episodes = data.get("episodes") if isinstance(data, dict) else None
    if not isinstance(episodes, list) or not episodes:
        raise DataFault(f"{path} has no list 'episodes': give a file of recorded episodes")
    for number, episode in enumerate(episodes):
        missing = [key for key in _EPISODE_KEYS if not isinstance(episode, dict) or key not in episode]
        if missing:
            raise DataFault(f"{path}: episode {number} (from 0) lacks {', '.join(missing)}: record it again")
        if problem := _episode_problem(episode):
            raise DataFault(f"{path}: episode {number} (from 0): {problem}: record it again")
    return episodes


def _episode_problem(episode: Mapping[str, Any]) -> str | None:
    """What of an episode can't be played, in words; None if it all can."""
    if not isinstance(episode["seed"], int):
        return f"'seed' holds {shown(episode['seed'])}, not a whole number"
    if not isinstance(episode["session"], int | str | None):
        return f"'session' holds {shown(episode['session'])}, not a number, a name or null"
    kwargs, steps = episode["kwargs"], episode["steps"]
    if not isinstance(kwargs, dict):
        return f"'kwargs' holds {shown(kwargs)}, not an object"
    for name in _NUMBERS & kwargs.keys():
        if not isinstance(kwargs[name], int) and not (name == "num_products" and kwargs[name] is None):
            return f"setting {name!r} holds {shown(kwargs[name])}, not a whole number"
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return f"'steps' holds {shown(steps)}, not a list of objects"
    # The first step is the reset, which needs no action.
    lacking = (i for i, step in enumerate(steps) if i > 0 and not isinstance(step.get("action"), str))
    if (place := next(lacking, None)) is not None:
        return f"step {place} (from 0) has no text 'action'"
    return None


def build_session(paths: ShopPaths, episode: Mapping[str, Any]) -> ShopSession:
    """A customer in the state in which the recorded one stood before its reset.

    Raises:
        DataFault: A file of the catalogue is missing or broken.
        EnvrlError: The episode has settings the shop doesn't know.
    """
    kwargs = dict(episode["kwargs"])
    if unknown := sorted(kwargs.keys() - _SETTINGS.keys() - _SHOP_KEYS - _NO_EFFECT):
        raise DataFault(f"episode {episode.get('name')!r} has the unknown setting {unknown[0]!r}: remove it")
    # One generator from loading to the last step, as all draws of the original come from one.
    rng = random.Random(episode["seed"])
    loaded = load_catalog(paths.items, paths.attributes, limit=kwargs.get("num_products"), rng=rng)
    if episode["human_goals"]:
        goals = human_goals(loaded.catalog, read_human(paths.human, loaded.catalog), rng).goals
    else:
        goals = synthetic_goals(loaded, rng)
    limit = kwargs.get("limit_goals", -1)
    ordered = order_goals(goals, rng, limit=limit if limit > 0 else None)
    index = SearchIndex.build(documents(loaded.catalog))
    shop = Shop(loaded.catalog, ordered.goals, index, show_attributes=bool(kwargs.get("show_attrs")))
    chosen = {name: kwargs[key] for key, name in _SETTINGS.items() if key in kwargs}
    session = ShopSession(shop, rng, SessionSettings(**chosen), SessionStore())
    # The original resets itself once when it is built, which draws a name and a goal.
    session.reset()
    return session


def _goal_values(goal: Goal) -> dict[str, Any]:
    options = dict(goal.options) if isinstance(goal.options, Mapping) else list(goal.options)
    return {
        "asin": goal.asin,
        "category": goal.category,
        "query": goal.query,
        "name": goal.name,
        "product_category": goal.product_category,
        "instruction_text": goal.instruction_text,
        "attributes": list(goal.attributes),
        "price_upper": goal.price_upper,
        "goal_options": options,
        "weight": goal.weight,
    }


def _step_values(session: ShopSession, observation: str, step: ShopStep | None) -> dict[str, Any]:
    available = session.available
    return {
        # The original's HTML is its site's; this shop has pages of its own.
        **({} if session.settings.mode == "html" else {"obs": observation}),
        "rich": session.text_rich,
        "url": session.url,
        "available": {
            "has_search_bar": available.has_search_bar,
            "clickables": list(available.clickables),
        },
        "reward": None if step is None else step.reward,
        "done": None if step is None else step.done,
    }


def _compare(
    name: str, step: int | None, recorded: Mapping[str, Any], found: Mapping[str, Any]
) -> Iterator[Difference]:
    for field, value in found.items():
        if field in recorded and recorded[field] != value:
            yield Difference(name, step, field, recorded[field], value)


def replay_episode(session: ShopSession, episode: Mapping[str, Any]) -> tuple[list[Difference], list[str]]:
    """Plays a recorded episode.

    Returns:
        What differs, and the steps at which the original raised.
    """
    name = str(episode.get("name", "episode"))
    differences: list[Difference] = []
    raising: list[str] = []
    observation, step = session.reset(episode["session"]), None
    about = {"goal": _goal_values(session.session_state.goal), "instruction_text": session.instruction_text}
    differences += _compare(name, None, episode, about)
    for number, recorded in enumerate(episode["steps"]):
        if number > 0:
            step = session.step(recorded["action"])
            observation = step.observation
        if "raises" in recorded:
            raising.append(f"{name}, step {number}, {recorded['action']}: {recorded['raises']}")
        differences += _compare(name, number, recorded, _step_values(session, observation, step))
    final = {"final_session": session.session_state.as_dict()}
    differences += _compare(name, None, episode, final)
    return differences, raising


def replay(path: Path, paths: ShopPaths) -> Report:
    """Replays every episode of a recording.

    Raises:
        DataFault: A file is missing or broken.
    """
    episodes = read_recording(path)
    differences: list[Difference] = []
    raising: list[str] = []
    for episode in episodes:
        found, raised = replay_episode(build_session(paths, episode), episode)
        differences += found
        raising += raised
    steps = sum(len(episode["steps"]) for episode in episodes)
    return Report(len(episodes), steps, tuple(differences), tuple(raising))


def main(arguments: Sequence[str] | None = None) -> int:
    """Replays recorded WebShop episodes and prints every difference; returns the exit code."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.envs.webshop.replay",
        description="Replays recorded WebShop episodes and prints every difference.",
    )
    parser.add_argument("traces", type=Path, metavar="TRACES.json", help="recorded episodes")
    parser.add_argument("--items", type=Path, required=True, help="product list of the recorded shop")
    parser.add_argument("--attributes", type=Path, required=True, help="attribute file that belongs to it")
    parser.add_argument("--human", type=Path, required=True, help="human instructions that belong to it")
    options = parser.parse_args(arguments)
    try:
        report = replay(options.traces, ShopPaths(options.items, options.attributes, options.human))
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for place in report.raising:
        print(f"the original failed here, this shop goes on: {place}")
    for difference in report.differences:
        print(difference)
    print(f"episodes={report.episodes} steps={report.steps} differences={len(report.differences)}")
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
