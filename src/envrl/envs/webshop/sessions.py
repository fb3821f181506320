"""How customers see a shop, and what the shop remembers of them, one record per session."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Literal, get_args

from envrl.envs.webshop.records import Goal
from envrl.envs.webshop.reward import RewardDetails
from envrl.errors import ConfigFault

Mode = Literal["text", "text_rich", "url", "html"]
REMEMBERED_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a customer sees the shop.

    Attributes:
        mode: What an observation is: ``text``, ``text_rich``, ``url`` or ``html``.
        previous_observations: Earlier observations shown before the current one; 0 shows none.
        previous_actions: Earlier actions shown between them; 0 shows none.
        session_prefix: Put before every session's name.
        instruction: Instruction in place of the one of every goal; None keeps the goals' own.
    """

    mode: Mode = "text"
    previous_observations: int = 0
    previous_actions: int = 0
    session_prefix: str = ""
    instruction: str | None = None

    def __post_init__(self) -> None:
        """Refuses unknown modes and negative counts.

        Raises:
            ConfigFault: The mode is unknown or a count is negative.
        """
        if self.mode not in get_args(Mode):
            raise ConfigFault(f"unknown observation mode {self.mode!r}: use {', '.join(get_args(Mode))}")
        if min(self.previous_observations, self.previous_actions) < 0:
            raise ConfigFault(
                f"{self.previous_observations} previous observations and {self.previous_actions} previous "
                "actions: give numbers >= 0"
            )


@dataclass(frozen=True, slots=True)
class SessionState:
    """Where a customer is and what happened since the last start page.

    Attributes:
        session_id: Name of the session, part of every address.
        goal: What the customer wants.
        done: Something was bought; stays so when the session goes on.
        keywords: Words of the last search.
        page: Number of the results page that was last shown.
        asin: Product that is open.
        asins: Products opened.
        options: Option group to the value chosen.
        actions: How often each kind of action was carried out.
        details: Reward of the last purchase with its parts.
    """

    session_id: str
    goal: Goal
    done: bool = False
    keywords: tuple[str, ...] | None = None
    page: int | None = None
    asin: str | None = None
    asins: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)
    actions: Mapping[str, int] = field(default_factory=dict)
    details: RewardDetails | None = None

    def restarted(self) -> SessionState:
        """The same customer on the start page; goal and purchase are kept."""
        return SessionState(self.session_id, self.goal, done=self.done, details=self.details)

    def counted(self, kind: str, **changes: Any) -> SessionState:
        """The state after one more action of a kind, with the given fields changed."""
        actions = {**self.actions, kind: self.actions.get(kind, 0) + 1}
        return replace(self, actions=actions, **changes)

    def as_dict(self) -> dict[str, Any]:
        """The state by its original names, without the goal, as recorded episodes hold it."""
        state: dict[str, Any] = {
            "done": self.done,
            "keywords": None if self.keywords is None else list(self.keywords),
            "page": self.page,
            "asin": self.asin,
            "asins": sorted(self.asins),
            "options": dict(self.options),
            "actions": dict(self.actions),
        }
        if self.details is not None:
            state |= {"verbose_info": self.details.as_dict(), "reward": self.details.total}
        return state


class SessionStore:
    """Sessions by their names, as the original server keeps them: a name that comes again keeps its goal.

    Several customers may share one store, and then act on the same session if they use the same name.

    Args:
        limit: Sessions kept; the one not used for longest is forgotten first.

    Raises:
        ConfigFault: ``limit`` is below 1.
    """

    def __init__(self, limit: int = REMEMBERED_SESSIONS) -> None:
        if limit < 1:
            raise ConfigFault(f"a store of {limit} sessions keeps none: give a limit of at least 1")
        self._limit = limit
        self._states: OrderedDict[str, SessionState] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        """Number of sessions kept."""
        return len(self._states)

    def get(self, session_id: str) -> SessionState | None:
        """State of a session, or None if the store doesn't know the name (any more)."""
        with self._lock:
            return self._states.get(session_id)

    def put(self, state: SessionState) -> None:
        """Keeps a session's state in place of the one before."""
        with self._lock:
            self._states[state.session_id] = state
            self._states.move_to_end(state.session_id)
            while len(self._states) > self._limit:
                self._states.popitem(last=False)
