"""Plays ALFWorld's text games without TextWorld, text for text like the reference.

A ``game.tw-pddl`` file holds a PDDL domain, a PDDL problem and a grammar. :func:`load_game` reads the
three, and the game is interpreted from them: admissible commands are the domain's actions whose
preconditions hold, the answers are written by the grammar from the facts that then are true.
:mod:`envrl.envs.alfworld.compare` plays the same commands here and on the reference and prints every
difference.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from envrl.envs.alfworld.compiled import TASK, CompiledGame, GameState
from envrl.envs.alfworld.grammar import Text, parse_grammar, parse_symbols
from envrl.envs.alfworld.pddl import parse_domain, parse_problem
from envrl.envs.alfworld.rules import Rules, prepare
from envrl.errors import DataFault, EnvFault
from envrl.types import Game, Observation, StepResult
from envrl.untrusted import parse_json, read_bytes

__all__ = ["AlfworldEnv", "CompiledGame", "GameState", "clear_cache", "load_game"]

CACHED_GAMES = 1024
"""Games kept by :func:`load_game`; the one not asked for longest is dropped first."""
_KEYS = ("pddl_domain", "grammar", "pddl_problem")
_ACTIONS = frozenset(
    {
        "look", "inventory", "help", "examinereceptacle", "examineobject", "gotolocation", "openobject",
        "closeobject", "pickupobject", "putobject", "cleanobject", "heatobject", "coolobject", "toggleobject",
        "sliceobject",
    }
)  # fmt: skip
_PUT_TEMPLATES = {"move {o} to {r}": "2.1.2", "put {o} in/on {r}": "2.1.1"}
_PUT = re.compile(r'action\s+PutObject\s*\{\s*template\s*::\s*"([^"]*)"')
_TASK = re.compile(r'"task"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*("(?:[^"\\]|\\.)*")\s*\}\s*\]')
_REMEDY = "fetch the games again with alfworld-download, or write them with envrl.envs.alfworld.generate"

_games: OrderedDict[str, CompiledGame] = OrderedDict()
_games_lock = Lock()


def load_game(spec: str | Path | Mapping[str, Any]) -> CompiledGame:
    """Reads and compiles a game, or returns the one compiled earlier from the same content.

    Args:
        spec: Path of a ``.tw-pddl`` file, or its content as a mapping.

    Raises:
        DataFault: The file is missing, is not such a game, or needs something the engine doesn't do.
    """
    where = "game" if isinstance(spec, Mapping) else f"game file {str(spec)!r}"
    if isinstance(spec, Mapping):
        data = {k: spec[k] for k in _KEYS if k in spec}
        content = json.dumps(data, sort_keys=True, default=str).encode()
    else:
        content = _read(Path(spec), where)
        data = {}
    key = hashlib.blake2b(content, digest_size=16).hexdigest()
    with _games_lock:
        if key in _games:
            _games.move_to_end(key)
            return _games[key]
    try:
        game = _compile(data or _decode(content))
    except DataFault as error:
        raise DataFault(f"{where}: {error}") from error
    except (IndexError, KeyError, ValueError, RecursionError) as error:
        raise DataFault(f"{where}: PDDL or grammar is malformed ({error!r}); {_REMEDY}") from error
    with _games_lock:
        _games[key] = game
        while len(_games) > CACHED_GAMES:
            _games.popitem(last=False)
    return game


def clear_cache() -> None:
    """Forgets every loaded game (to measure loading, or to free memory)."""
    with _games_lock:
        _games.clear()


def _read(path: Path, where: str) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError as error:
        raise DataFault(f"{where} doesn't exist; check the path, or {_REMEDY}") from error
    except OSError as error:
        raise DataFault(
            f"{where} can't be read ({error.strerror}); give the path of a .tw-pddl file"
        ) from error


def _decode(content: bytes) -> dict[str, Any]:
    try:
        data = parse_json(content)
    except ValueError as error:
        raise DataFault(f"is not JSON ({error}); {_REMEDY}") from error
    if not isinstance(data, dict):
        raise DataFault(f"is JSON but not an object with the keys {', '.join(_KEYS)}; {_REMEDY}")
    return data


def _compile(data: Mapping[str, Any]) -> CompiledGame:
    for key in _KEYS:
        if not isinstance(data.get(key), str):
            raise DataFault(f"lacks the text {key!r}; {_REMEDY}")
    # Only the task sentence differs between the grammars of a format: the rest is parsed once.
    grammar, task = data["grammar"], ""
    match = _TASK.search(grammar)
    if match is not None:
        task = _task(match[1])
        grammar = f"{grammar[: match.start(1)]}{json.dumps(TASK)}{grammar[match.end(1) :]}"
    rules = _rules(data["pddl_domain"], grammar)
    return CompiledGame(parse_problem(data["pddl_problem"], rules.domain), rules, task)


def _task(quoted: str) -> str:
    symbols = parse_symbols(parse_json(quoted))
    if not all(isinstance(s, Text) for s in symbols):
        raise DataFault(f"grammar rule 'task' isn't plain text: {quoted}; {_REMEDY}")
    return "".join(s.text for s in symbols if isinstance(s, Text))


@lru_cache(maxsize=16)
def _rules(domain_text: str, grammar_text: str) -> Rules:
    domain = parse_domain(domain_text)
    names = {s.name for s in domain.schemas}
    if domain.name != "alfred" or not names:
        raise DataFault(f"PDDL domain {domain.name!r} isn't ALFWorld's ('alfred'); {_REMEDY}")
    if unknown := sorted(names - _ACTIONS):
        raise DataFault(
            f"PDDL domain has the action {unknown[0]!r}, which isn't supported (movable receptacles "
            f"are not); play this game with backend textworld"
        )
    put = _PUT.search(grammar_text)
    if put is None or put[1] not in _PUT_TEMPLATES:
        found = f"the PutObject template {put[1]!r}" if put else "no PutObject template"
        raise DataFault(f"grammar has {found}; known versions are {_PUT_TEMPLATES}; {_REMEDY}")
    grammar = parse_grammar(grammar_text)
    for rule in ("intro", "list_empty", "list_separator", "list_last_separator"):
        if rule not in grammar.rules:
            raise DataFault(f"grammar has no rule {rule!r}; {_REMEDY}")
    return prepare(domain, grammar, _PUT_TEMPLATES[put[1]])


class AlfworldEnv:
    """The native ALFWorld environment (protocol :class:`envrl.envs.base.TextEnv`).

    ``Game.spec`` is the path of the ``.tw-pddl`` file. The reward is 1.0 for the environment step
    that wins and 0.0 for every other.
    """

    def __init__(self) -> None:
        self._state: GameState | None = None
        self._steps_left = 0
        self._over = True

    def reset(self, game: Game, seed: int) -> Observation:
        """Starts an episode; the game has no randomness, so ``seed`` makes no difference.

        Raises:
            DataFault: The game can't be loaded (see :func:`load_game`).
        """
        del seed
        self._state = load_game(game.spec).new_state()
        self._steps_left = game.max_steps
        self._over = False
        return Observation(self._state.feedback, self._state.admissible())

    def step(self, action: str) -> StepResult:
        """Carries out a command; ``info`` has won, task_score and score (1.0 or 0.0).

        Raises:
            EnvFault: Before the first ``reset`` or after the end of the episode.
        """
        if self._state is None or self._over:
            raise EnvFault("step() without a running episode; call reset(game, seed) first")
        feedback = self._state.step(action)
        won = self._state.won
        self._steps_left -= 1
        truncated = not won and self._steps_left <= 0
        self._over = won or truncated
        score = 1.0 if won else 0.0
        return StepResult(
            Observation(feedback, self._state.admissible()),
            reward=score,
            terminated=won,
            truncated=truncated,
            info={"won": won, "task_score": score, "score": score},
        )

    def close(self) -> None:
        """Drops the episode; the environment can be reset again."""
        self._state = None
        self._over = True
