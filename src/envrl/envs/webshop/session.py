"""One customer in the shop: pages, clicks, searches and the purchase."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from string import ascii_lowercase
from typing import SupportsIndex

from envrl.envs.webshop import html, render
from envrl.envs.webshop.actions import parse_action
from envrl.envs.webshop.address import address
from envrl.envs.webshop.pages import (
    BACK,
    BUY,
    NEXT,
    PREVIOUS,
    SUB_PAGES,
    Available,
    DonePage,
    ItemPage,
    Page,
    ResultsPage,
    StartPage,
    SubPage,
    body_nodes,
    head_nodes,
)
from envrl.envs.webshop.records import Goal
from envrl.envs.webshop.sessions import SessionSettings, SessionState, SessionStore
from envrl.envs.webshop.shop import Shop
from envrl.errors import EnvFault

__all__ = ["Outcome", "SessionSettings", "ShopSession", "ShopStep"]

_BACK, _PREVIOUS, _NEXT, _BUY = (name.lower() for name in (BACK, PREVIOUS, NEXT, BUY))
_SUB_PAGES: Mapping[str, str] = {name.lower(): name for name in SUB_PAGES}
_NAME_LENGTH = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an action led to; ``reward`` in [0, 1] is that of the purchase, 0 for every other action."""

    reward: float
    done: bool


@dataclass(frozen=True, slots=True)
class ShopStep:
    """Answer to one action: what is shown now, and reward and end as :class:`Outcome` has them."""

    observation: str
    reward: float
    done: bool


_NOTHING = Outcome(0.0, done=False)


class ShopSession:
    """An episode after the other in a shared shop; the state of one is a page and a :class:`SessionState`.

    Args:
        shop: The shop.
        rng: Draws session names, goals and random products, in the original's order of draws.
        settings: How the shop is seen; None is mode ``text`` without history.
        store: Sessions that keep their goal when their name comes again; None plays every reset anew.
    """

    def __init__(
        self,
        shop: Shop,
        rng: random.Random,
        settings: SessionSettings | None = None,
        store: SessionStore | None = None,
    ) -> None:
        self.shop = shop
        self.instruction_text = ""
        self._rng = rng
        self.settings = settings = settings or SessionSettings()
        self._store = store
        self._page: Page = StartPage()
        self._own_state: SessionState | None = None
        self._observations: deque[str] = deque(maxlen=settings.previous_observations)
        self._actions: deque[str] = deque(maxlen=settings.previous_actions)

    def reset(self, session: SupportsIndex | str | None = None, instruction_text: str | None = None) -> str:
        """Begins an episode on the start page.

        Args:
            session: A whole number is the place of the goal (negative: from the end) and, as text, the
                session's name. Any other value is a name only, None draws a name; the goal is drawn.
            instruction_text: Kept as :attr:`instruction_text` instead of the goal's; pages don't change.

        Returns:
            The first observation.

        Raises:
            ConfigFault: There is no goal at that place.
        """
        # The name is drawn before the goal.
        name = self._draw_name() if session is None else str(session)
        session_id = self.settings.session_prefix + name
        known = self._store.get(session_id) if self._store is not None else None
        if known is None:
            known = SessionState(session_id, self._goal_of(session))
        if self.settings.instruction is not None:
            known = replace(known, goal=replace(known.goal, instruction_text=self.settings.instruction))
        self._move(StartPage(), known.restarted())
        self.instruction_text = instruction_text or f"Instruction: {known.goal.instruction_text}"
        first = self.observation
        self._actions.clear()
        self._observations.clear()
        self._observations.append(first)
        return first

    def step(self, action: str) -> ShopStep:
        """Carries out an action; what is not in the grammar or can't be clicked changes nothing.

        Searches work on every page, and nothing is closed after a purchase.

        Raises:
            EnvFault: Before the first ``reset``.
        """
        outcome = self.act(action)
        return ShopStep(self._remember(action), outcome.reward, outcome.done)

    def act(self, action: str) -> Outcome:
        """Carries out an action like :meth:`step`, without working out what is shown; it enters no history.

        Raises:
            EnvFault: Before the first ``reset``.
        """
        state = self.session_state
        parsed = parse_action(action)
        if parsed is not None and parsed.name == "search":
            self._search(state, tuple(parsed.argument.split(" ")), 1)
        elif parsed is not None and parsed.name == "click" and parsed.argument != "search":
            targets = self.shop.clicks(self._page).targets
            if parsed.argument in targets:
                self._click(state, parsed.argument, targets[parsed.argument])
                if isinstance(self._page, DonePage):
                    return Outcome(self._page.score, done=True)
        return _NOTHING

    @property
    def session_state(self) -> SessionState:
        """State of the session, as the store has it.

        Raises:
            EnvFault: Before the first ``reset``.
        """
        own = self._own_state
        if own is None:
            raise EnvFault("the shop has no customer yet; call reset() first")
        if self._store is None:
            return own
        return self._store.get(own.session_id) or own

    @property
    def page(self) -> Page:
        """The page that is open."""
        return self._page

    @property
    def available(self) -> Available:
        """What can be done on the page that is open."""
        return self.shop.clicks(self._page).available

    @property
    def observation(self) -> str:
        """The page that is open in the chosen mode, without history."""
        mode = self.settings.mode
        if mode == "text":
            return self.text
        if mode == "text_rich":
            return self.text_rich
        return self.url if mode == "url" else self.html

    @property
    def text(self) -> str:
        """Mode ``text`` of the page that is open."""
        head = render.segments(head_nodes(self._page, self._instruction))
        return render.SEPARATOR.join((*head, *self.shop.body(self._page)))

    @property
    def text_rich(self) -> str:
        """Mode ``text_rich`` of the page that is open."""
        body = body_nodes(self._page, self.shop.catalog.by_asin, self.shop.show_attributes)
        nodes = head_nodes(self._page, self._instruction) + body
        return render.text_rich(nodes, self.url, self.session_state.asins)

    @property
    def url(self) -> str:
        """Address of the page that is open."""
        return address(self._page, self.session_state.session_id)

    @property
    def html(self) -> str:
        """The page that is open as HTML."""
        products = self.shop.catalog.by_asin
        return html.page_html(self._page, self._instruction, products, self.shop.show_attributes)

    @property
    def _instruction(self) -> str:
        return self.session_state.goal.instruction_text

    def _goal_of(self, session: SupportsIndex | str | None) -> Goal:
        return (
            self.shop.goal(session) if isinstance(session, SupportsIndex) else self.shop.draw_goal(self._rng)
        )

    def _draw_name(self) -> str:
        return "".join(self._rng.choices(ascii_lowercase, k=_NAME_LENGTH))

    def _move(self, page: Page, state: SessionState) -> None:
        self._page, self._own_state = page, state
        if self._store is not None:
            self._store.put(state)

    def _search(self, state: SessionState, keywords: tuple[str, ...], number: int) -> None:
        page = self.shop.results_page(keywords, number, self._rng)
        self._move(page, state.counted("search", keywords=keywords, page=number, asin=None, options={}))

    def _click(self, state: SessionState, name: str, target: str | None) -> None:
        """Follows a clickable name of the open page; ``target`` is the product or group behind it."""
        page = self._page
        if name == _BACK:
            self._move(StartPage(), state.restarted())
        elif isinstance(page, ResultsPage):
            if target is not None:
                self._open(state, page, target)
            else:
                self._search(state, page.keywords, page.number + (1 if name == _NEXT else -1))
        elif isinstance(page, SubPage):
            self._move(page.item, state)
        elif isinstance(page, ItemPage):
            self._click_on_item(state, page, name, target)

    def _open(self, state: SessionState, page: ResultsPage, asin: str) -> None:
        item = ItemPage(asin, page.keywords, page.number, state.options)
        self._move(item, state.counted("asin", asin=asin, asins=state.asins | {asin}))

    def _click_on_item(self, state: SessionState, page: ItemPage, name: str, group: str | None) -> None:
        if group is not None:
            options = {**page.options, group: name}
            self._move(replace(page, options=options), state.counted("options", options=options))
        elif name == _BUY:
            details = self.shop.reward(page.asin, state.goal, page.options)
            done = DonePage(page.asin, page.options, details.total)
            self._move(done, state.counted("purchase", done=True, details=details))
        elif name == _PREVIOUS:
            self._search(state, page.keywords, page.number)
        else:
            title = _SUB_PAGES[name]
            self._move(SubPage(page, title), state.counted(title))

    def _remember(self, action: str) -> str:
        """The observation after an action, with as much history before it as the settings ask for."""
        observation = self.observation
        self._actions.append(action)
        parts = [observation]
        for pair in zip_longest(reversed(self._actions), reversed(self._observations)):
            parts += [past for past in pair if past is not None]
        self._observations.append(observation)
        return render.SEPARATOR.join(reversed(parts))
