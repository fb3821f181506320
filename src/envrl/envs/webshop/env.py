"""The WebShop as a text environment for agents: protocol :class:`envrl.envs.base.TextEnv`.

Observations and admissible actions follow the training code of the paper (verl-agent): the texts of a
page after the instruction, each in single quotes; ``search[<your query>]`` where there is a search bar,
then ``click[name]`` for every name on the page. The task stands in the first observation only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from envrl.envs.webshop.actions import SEARCH_PLACEHOLDER, admits
from envrl.envs.webshop.goal_sets import goal_id
from envrl.envs.webshop.pages import DonePage
from envrl.envs.webshop.records import Goal
from envrl.envs.webshop.render import SEPARATOR
from envrl.envs.webshop.session import ShopSession
from envrl.envs.webshop.shop import Shop
from envrl.errors import ConfigFault, EnvFault
from envrl.types import Game, Observation, StepResult

__all__ = ["ENV_NAME", "MAX_STEPS", "WebShopEnv", "admits", "goal_games"]

ENV_NAME = "webshop"
MAX_STEPS = 15
"""Environment steps of an episode in the published runs."""
_TASK_MARK = "Your task is to: "


def goal_games(goals: Iterable[Goal], split: str, max_steps: int = MAX_STEPS) -> tuple[Game, ...]:
    """Goals as games, known by their content; equal goals give one game.

    Args:
        goals: Goals of a shop.
        split: Name of what they are for, e.g. ``test``.
        max_steps: Environment steps after which an episode is cut off.

    Raises:
        ConfigFault: ``max_steps`` is below 1.
    """
    if max_steps < 1:
        raise ConfigFault(f"episodes of {max_steps} steps can't be played: give at least 1")
    named = {goal_id(goal): goal for goal in goals}
    return tuple(
        Game(identifier, ENV_NAME, split, goal.category, identifier, max_steps)
        for identifier, goal in named.items()
    )


class WebShopEnv:
    """Plays goals of a shop (protocol :class:`envrl.envs.base.TextEnv`).

    ``Game.spec`` is the goal's :func:`~envrl.envs.webshop.goal_sets.goal_id`, or whatever tells several
    shops apart. A purchase ends the
    episode. The reward is 1.0 for a purchase whose score is exactly 1 and 0.0 for everything else;
    the score itself is ``task_score``.

    Args:
        shop: The shop, which environments of a process should share; or a function from the game to a
            shop whose only goal it is.
    """

    def __init__(self, shop: Shop | Callable[[Game], Shop]) -> None:
        self._shop_of = shop
        self._session: ShopSession | None = None
        self._steps_left = 0
        self._admissible: tuple[str, ...] = ()

    def reset(self, game: Game, seed: int) -> Observation:
        """Starts an episode; ``seed`` matters only to searches for random products (``<r>``).

        Raises:
            DataFault: The shop doesn't have the game's goal.
        """
        shop_of = self._shop_of
        if isinstance(shop_of, Shop):
            shop, place = shop_of, shop_of.goal_place(game.spec)
        else:
            shop, place = shop_of(game), 0
        session = ShopSession(shop, random.Random(seed))
        session.reset(place)
        self._session, self._steps_left = session, game.max_steps
        self._admissible = _admissible(session)
        task = session.session_state.goal.instruction_text
        return Observation(f"{self._page_text(session)}\n\n{_TASK_MARK}{task}", self._admissible)

    def step(self, action: str) -> StepResult:
        """Carries out an action.

        ``info`` has won, task_score, admissible (searches are, with any words, where there is a search
        bar), and after a purchase its reward_parts.

        Raises:
            EnvFault: Before the first ``reset`` or after the end of the episode.
        """
        session = self._session
        if session is None:
            raise EnvFault("step() without a running episode; call reset(game, seed) first")
        admissible = admits(self._admissible, action)
        outcome = session.act(action)
        self._steps_left -= 1
        won = outcome.done and outcome.reward == 1.0
        truncated = not outcome.done and self._steps_left <= 0
        info: dict[str, object] = {"won": won, "task_score": outcome.reward, "admissible": admissible}
        details = session.session_state.details
        if outcome.done and details is not None:
            info["reward_parts"] = details.as_dict()
        self._admissible = _admissible(session)
        observation = Observation(self._page_text(session), self._admissible)
        if outcome.done or truncated:
            self._session = None
        return StepResult(observation, 1.0 if won else 0.0, outcome.done, truncated, info)

    def close(self) -> None:
        """Drops the episode; the environment can be reset again."""
        self._session = None

    def _page_text(self, session: ShopSession) -> str:
        texts = session.shop.body(session.page)
        if isinstance(session.page, DonePage):
            return SEPARATOR.join(texts)
        return "'" + f"'{SEPARATOR}'".join(texts) + "'"


def _admissible(session: ShopSession) -> tuple[str, ...]:
    available = session.available
    clicks = [f"click[{name}]" for name in available.clickables]
    return (SEARCH_PLACEHOLDER, *clicks) if available.has_search_bar else tuple(clicks)
