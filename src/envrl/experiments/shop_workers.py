"""The WebShop in the order of the paper's training code: every worker has prices and goals of its own.

There a group of workers shares a seed, from which it draws prices, makes goals and shuffles them. A reset
hands out indices, so that an index means another goal in every group, and a goal that one group is tested
on is trained on by others (a known fault of that protocol; the fixed order doesn't have it).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from envrl.envs.panels import Panel
from envrl.envs.webshop.env import goal_games
from envrl.envs.webshop.ordering import PAPER_TEST_GOALS, PaperWorkers, PricedGoals, paper_goals
from envrl.envs.webshop.shop import Shop
from envrl.errors import ConfigFault, DataFault
from envrl.experiments.settings import EnvSettings, EvaluationSettings
from envrl.experiments.shop_games import check_shop_panel, human_instructions, open_stock
from envrl.types import Game

_WORKERS_KEPT = 32
"""Workers whose goals are remembered; others make theirs again, a tenth of a second per 1,000 products."""


class _Origin(NamedTuple):
    """Whose goal a game is."""

    seed: int
    place: int

    @property
    def spec(self) -> str:
        return f"worker {self.seed} goal {self.place}"

    @classmethod
    def of(cls, game: Game) -> _Origin:
        words = game.spec.split(" ")
        if len(words) != 4 or (words[0], words[2]) != ("worker", "goal"):
            raise DataFault(
                f"{game.spec!r} is no game of a worker: play it with env.webshop.order=fixed, or make the "
                "games again"
            )
        return cls(int(words[1]), int(words[3]))


class WorkerShops:
    """The workers' shops of a configuration; products and search index are shared.

    Each game of the panel and of the last iterations keeps a shop with its worker's prices, about 22 kB and
    4 ms for every 1,000 products: meant for the small catalogue.

    Args:
        env: Settings with ``env.webshop.order: workers``.
    """

    def __init__(self, env: EnvSettings) -> None:
        self._env = env
        self._stock = open_stock(env)
        self._human = human_instructions(env)
        self._worker = lru_cache(maxsize=_WORKERS_KEPT)(self._make_worker)
        # A shop has the goal that is played alone: thousands of goals for each would not fit in memory.
        self._shop = lru_cache(maxsize=4 * PAPER_TEST_GOALS)(self._make_shop)

    def shop(self, game: Game) -> Shop:
        """The shop a game is played in, with its goal as the only one.

        Raises:
            DataFault: The game isn't one of a worker's.
        """
        return self._shop(_Origin.of(game))

    def panel(self, evaluation: EvaluationSettings) -> Panel:
        """The first goals that the validation workers are reset with, one of each worker.

        The published code draws anew for every validation; a panel stays, so that evaluations of a run and
        of its rivals can be compared game by game (declared choice).
        """
        check_shop_panel(self._env, evaluation)
        workers = PaperWorkers(self._env.games_seed, evaluation.games, 1, validation=True)
        games = self._drawn(workers, 0, "test")
        return Panel(f"{self._env.games}-webshop-workers", tuple(games))

    def training_games(self, iteration: int, groups: int) -> Sequence[Game]:
        """What the training workers play in an iteration, a game for each group."""
        return self._drawn(PaperWorkers(self._env.games_seed, groups, 1), iteration, "train")

    def _drawn(self, workers: PaperWorkers, reset: int, split: Literal["test", "train"]) -> list[Game]:
        count = len(self._worker(workers.base_seed).ordered.goals)
        if not workers.validation and count - PAPER_TEST_GOALS < workers.groups:
            raise ConfigFault(
                f"env.webshop.order=workers needs {workers.groups} goals after the first {PAPER_TEST_GOALS}, "
                f"but there are only {count} in all; use more env.webshop.products, or order=fixed"
            )
        indices = workers.draws(count, reset + 1)[reset]
        origins = (_Origin(seed, index) for seed, index in zip(workers.seeds, indices, strict=True))
        return [self._game(origin, split) for origin in origins]

    def _game(self, origin: _Origin, split: str) -> Game:
        goal = self._worker(origin.seed).ordered.goals[origin.place]
        (known,) = goal_games([goal], split, self._env.steps)
        # Two workers may have the same goal: their games are two all the same.
        identifier = f"{known.game_id}@{origin.seed}"
        return Game(identifier, known.env, split, known.family, origin.spec, known.max_steps)

    def _make_worker(self, seed: int) -> PricedGoals:
        return paper_goals(self._stock.loaded, random.Random(0), seed, human=self._human)

    def _make_shop(self, origin: _Origin) -> Shop:
        worker = self._worker(origin.seed)
        return Shop(worker.catalog, [worker.ordered.goals[origin.place]], self._stock.index)


@lru_cache(maxsize=1)
def worker_shops(env: EnvSettings) -> WorkerShops:
    """The workers' shops of a configuration, once per process."""
    return WorkerShops(env)
