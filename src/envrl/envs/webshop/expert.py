"""A hand-written customer who reads the instruction and the pages only. Makes the demonstrations.

It searches for what the instruction says, opens the result that promises most, looks up its features where
the title doesn't tell, and buys the first product that offers everything.

    python -m envrl.envs.webshop.expert [--items … --attributes … [--human …]] [--goals N]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np

from envrl.envs.demonstrate import Demonstration, demonstrate
from envrl.envs.webshop.catalog import load_catalog
from envrl.envs.webshop.env import MAX_STEPS, WebShopEnv, goal_games
from envrl.envs.webshop.files import ShopFiles
from envrl.envs.webshop.generate import generate_catalogue
from envrl.envs.webshop.goal_sets import report_unreachable
from envrl.envs.webshop.goals import human_goals, read_human, synthetic_goals
from envrl.envs.webshop.index import load_index
from envrl.envs.webshop.judging import RESULTS_A_PAGE, Candidate, Judge
from envrl.envs.webshop.ordering import order_goals
from envrl.envs.webshop.reading import NO_WISH, Page, PageKind, Wish, find_instruction, read_page, read_wish
from envrl.envs.webshop.shop import Shop
from envrl.errors import ConfigFault, EnvrlError
from envrl.types import Observation

_MOST_PAGES = 5
"""Results pages with something on them: a search gives at most 50 results, ten a page."""
_BUY, _BACK, _NEXT, _FEATURES = "click[buy now]", "click[< prev]", "click[next >]", "click[features]"
_SHARE_KEPT = 0.75
"""Chance that a varied query keeps an attribute or an option value."""


class Expert:
    """Player that searches, compares and buys.

    :meth:`act` takes for granted that its command is carried out; :meth:`follow` tells it of another one.

    Args:
        max_steps: Commands of an episode. Before they run out, the expert settles for the best it knows.
        rng: Varies the words of the query, for demonstrations that differ; None always uses all of them.
    """

    def __init__(self, max_steps: int = MAX_STEPS, rng: np.random.Generator | None = None) -> None:
        self._max_steps = max_steps
        self._rng = rng
        self._begin(NO_WISH)

    def _begin(self, wish: Wish) -> None:
        self._wish = wish
        self._judge = Judge(wish)
        self._known: dict[str, Candidate] = {}
        self._current = ""
        self._results_page = 1
        self._command = ""
        self._steps_left = self._max_steps
        self._settled = False
        self._searches = 0

    def reset(self, text: str) -> None:
        """Starts an episode.

        Args:
            text: First observation, with the instruction.

        Raises:
            DataFault: The instruction is missing.
        """
        self._begin(read_wish(find_instruction(text)))

    def follow(self, command: str) -> None:
        """Tells which command was carried out instead of the one last chosen."""
        self._command = command

    def act(self, observation: Observation) -> str:
        """Takes in an observation and chooses the next command."""
        page = read_page(observation)
        self._take_in(page)
        command = self._next(page, frozenset(observation.admissible))
        if not command.startswith("search[") and command not in observation.admissible:
            command = _BACK if _BACK in observation.admissible else "click[back to search]"
        self._command = command
        self._steps_left -= 1
        return command

    def _take_in(self, page: Page) -> None:
        if page.kind is PageKind.RESULTS:
            self._results_page, self._current = page.number, ""
            for i, offer in enumerate(page.offers):
                fresh = Candidate(offer.title, offer.low, offer.high, (page.number, i), offer.title)
                self._known.setdefault(offer.asin.lower(), fresh).place = (page.number, i)
        elif page.kind is PageKind.ITEM:
            self._take_in_item(page)
        elif page.kind is PageKind.TEXTS and self._current:
            candidate = self._known[self._current]
            candidate.text = " ".join([candidate.text, *page.texts])
            candidate.read |= self._command == _FEATURES

    def _take_in_item(self, page: Page) -> None:
        clicked = self._command.removeprefix("click[").removesuffix("]")
        if clicked in self._known:
            self._current = clicked
            self._known[clicked].chosen = {}
        elif not self._current:
            # Opened by somebody else's hand: found again by its title, or new.
            titles = {candidate.title: asin for asin, candidate in self._known.items()}
            self._current = titles.get(page.title, page.title)
        here = (self._results_page, 0)
        candidate = self._known.setdefault(
            self._current, Candidate(page.title, page.low, page.high, here, page.title)
        )
        candidate.opened = True
        wanted = self._judge.wanted(page.options)
        candidate.missing = max(0, len(self._wish.options) - len(wanted))
        group = next((name for name, values in page.options.items() if clicked in values), None)
        if group is not None:
            candidate.chosen[group] = clicked

    def _next(self, page: Page, admissible: frozenset[str]) -> str:
        if page.kind is PageKind.START:
            return f"search[{self._query()}]"
        if page.kind is PageKind.RESULTS:
            return self._choose()
        if page.kind is PageKind.TEXTS:
            return _BACK
        return self._inspect(page, admissible)

    def _query(self) -> str:
        """Everything asked for, options twice: they are what titles don't show. Then only what it is."""
        self._searches += 1
        wish = self._wish
        kept = [True] * (len(wish.attributes) + len(wish.options))
        if self._rng is not None:
            kept = [self._rng.random() < _SHARE_KEPT for _ in kept]
        attributes = compress(() if wish.free else wish.attributes, kept)
        options = list(compress(wish.options.items(), kept[len(wish.attributes) :]))
        stated = [value for _, value in options]
        stated += [value if group in value else f"{group} {value}" for group, value in options]
        words = " ".join([*attributes, wish.kind, *stated] if self._searches == 1 else [wish.kind])
        return words.replace("[", " ").replace("]", " ").strip() or "anything"

    def _choose(self) -> str:
        """On a results page: opens what promises most, turns the page, or goes back to the best seen."""
        if not self._known:
            return "click[back to search]"
        judge = self._judge
        fresh = {name: judge.promise(c) for name, c in self._known.items() if not c.opened}
        asin = max(fresh, key=lambda name: fresh[name], default="")
        seen = max(candidate.place[0] for candidate in self._known.values())
        if len(self._known) >= seen * RESULTS_A_PAGE and seen < _MOST_PAGES:
            cost = seen + 1 - self._results_page + 1 + self._purchase_cost()
            if cost <= self._steps_left and fresh.get(asin, 0.0) < judge.unseen_promise(seen):
                return _NEXT
        # One more product can be opened and left again only if the steps allow to come back.
        last_chance = self._steps_left < 3 + self._purchase_cost()
        chances = {name: judge.chance(c) for name, c in self._known.items() if c.opened}
        best = max(chances, key=lambda name: chances[name], default="")
        if not asin or (last_chance and best and chances[best] >= fresh[asin]):
            asin, self._settled = best, True
        page = self._known[asin].place[0]
        if page == self._results_page:
            return f"click[{asin}]"
        return _NEXT if page > self._results_page else _BACK

    def _purchase_cost(self) -> int:
        return len(self._wish.options) + 1

    def _inspect(self, page: Page, admissible: frozenset[str]) -> str:
        """On a product's page: buys it, reads on, or leaves it."""
        candidate = self._known[self._current]
        if self._settled or self._judge.fits(candidate):
            return self._buy(page, candidate)
        if self._steps_left < 2 + self._purchase_cost():
            return self._buy(page, candidate)
        reads = self._judge.worth_reading(candidate) and _FEATURES in admissible
        return _FEATURES if reads else _BACK

    def _buy(self, page: Page, candidate: Candidate) -> str:
        for group, value in self._judge.wanted(page.options).items():
            if candidate.chosen.get(group) != value and self._steps_left > 1:
                return f"click[{value}]"
        return _BUY


def _open_shop(files: ShopFiles, seed: int) -> Shop:
    """The shop of these files: human goals if a human file is given, else synthetic ones."""
    rng = random.Random(seed)
    loaded = load_catalog(files.items, files.attributes, rng=rng)
    if files.human is None:
        goals = synthetic_goals(loaded, rng)
    else:
        goals = human_goals(loaded.catalog, read_human(files.human, loaded.catalog), rng).goals
    return Shop(loaded.catalog, order_goals(goals, rng).goals, load_index(loaded.catalog))


def _shop_of(options: argparse.Namespace) -> Shop:
    """The shop asked for; without files, the default catalogue with synthetic goals.

    Raises:
        ConfigFault: Only one of the two files every shop needs is named.
    """
    if options.items and options.attributes:
        return _open_shop(ShopFiles(options.items, options.attributes, options.human), options.seed)
    if options.items or options.attributes or options.human:
        raise ConfigFault("name --items and --attributes together, or neither for invented products")
    with tempfile.TemporaryDirectory() as folder:
        made = generate_catalogue(Path(folder) / "shop")
        return _open_shop(ShopFiles(made.items, made.attributes), options.seed)


def _print_transcript(run: Demonstration) -> None:
    print(run.observations[0].text)
    for command, answer in zip(run.commands, run.observations[1:], strict=True):
        print(f"> {command}\n{answer.text}")
    print(f"= {run.task_score}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays goals of a shop with the expert and prints how it does; returns the exit code."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.envs.webshop.expert",
        description="Plays WebShop goals with the page-reading expert and counts purchases at reward 1.",
    )
    parser.add_argument("--items", type=Path, help="products, official format (default: invented ones)")
    parser.add_argument("--attributes", type=Path, help="their attribute file")
    parser.add_argument("--human", type=Path, help="human instructions, to be played instead of synthetic")
    parser.add_argument("--goals", type=int, help="number of goals, from the first (default: all)")
    parser.add_argument(
        "--max-steps", type=int, default=MAX_STEPS, help="commands of an episode (default: 15)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of drawn prices (default: 0)")
    parser.add_argument("--show", type=int, default=0, help="print so many episodes in full (default: 0)")
    options = parser.parse_args(arguments)
    try:
        if options.goals is not None and options.goals < 1:
            raise ConfigFault(f"--goals {options.goals}: ask for at least 1 goal")
        if options.show < 0:
            raise ConfigFault(f"--show {options.show}: ask for 0 or more episodes")
        shop = _shop_of(options)
        games = goal_games(shop.goals, "all", options.max_steps)[: options.goals]
        env, expert = WebShopEnv(shop), Expert(options.max_steps)
        runs = [demonstrate(env, game, expert) for game in games]
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for run in runs[: options.show]:
        _print_transcript(run)
    print(report_unreachable(shop.goals, shop.catalog).summary())
    success = sum(run.won for run in runs) / len(runs)
    mean_reward = sum(run.task_score for run in runs) / len(runs)
    mean_steps = sum(len(run.commands) for run in runs) / len(runs)
    print(
        f"goals={len(runs)} success={success:.4f} mean_reward={mean_reward:.4f} mean_steps={mean_steps:.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
