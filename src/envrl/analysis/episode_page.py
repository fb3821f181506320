"""One self-contained HTML page to read episodes in: filters, turns, log-probabilities, predictions.

The page holds its data, style and script and asks nobody for anything; its content security policy says so to
the browser. Data is JSON in which no character can end the element it stands in, and the script writes it
with ``textContent`` alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from envrl.analysis.episodes import Episode, Turn
from envrl.analysis.predictions import Answer, Predictions, answer_key
from envrl.prompts.render import without_banner

_SCRIPTS = ("episodes_text.js", "episodes_data.js", "episodes_turn.js", "episodes.js")
_SHORTEST_SHARED = 24
"""Characters from which on an observation inside a prompt is stored once for both."""
_NONE = -1


@dataclass(frozen=True)
class PageRun:
    """A run and those of its episodes that the page shows.

    Attributes:
        name: What tells it apart from the other runs of the page.
        folder: Where it lies, as the reader knows it.
        episodes: In the order they are listed.
        settings: Its configuration as text by dotted key.
        predictions: What its trained policy answered; None if it was not asked.
    """

    name: str
    folder: str
    episodes: Sequence[Episode]
    settings: Mapping[str, str] = field(default_factory=dict)
    predictions: Predictions | None = None


def episode_page(runs: Sequence[PageRun], *, left_out: int = 0) -> str:
    """The page as HTML; the same episodes give the same text.

    Args:
        runs: What is shown, at least one run.
        left_out: Episodes that were kept and are not on the page, to be said on it.
    """
    environment = Environment(
        loader=PackageLoader("envrl.analysis"), autoescape=True, undefined=StrictUndefined
    )
    folder = files("envrl.analysis") / "templates"
    style = (folder / "episodes.css").read_text(encoding="utf-8")
    script = "".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    return environment.get_template("episodes.html.j2").render(
        title=f"Episodes of {runs[0].name}" if len(runs) == 1 else f"Episodes of {len(runs)} runs",
        # From our own package, and as hashed in the policy.
        style=Markup(style),
        script=Markup(script),
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
        data=Markup(inert_json(page_data(runs, left_out=left_out))),
    )


def inert_json(value: Any) -> str:
    """JSON of ASCII characters without ``<``, ``>`` and ``&``: nothing an HTML parser looks for."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page_data(runs: Sequence[PageRun], *, left_out: int = 0) -> dict[str, Any]:
    """What the page's script reads.

    ``strings`` and ``lists`` hold every text and every list of texts once; elsewhere stands its number, -1
    for none. An episode is ``[run, iteration, game, family, stop, won, score, fault, turns]``, a turn
    ``[prompt, observation, admissible, pieces, surprises, finish, action, flags, reward, next, answers]``:
    prompt, admissible and pieces are lists; surprises are thousandths of a nat, the negative log-probability
    of each piece; flags add 1 for a valid format and 2 for an admissible action; answers are 0, or
    ``[sp, sp cut, id, id cut]``.
    """
    table = _Table()
    episodes = [_episode(e, number, run, table) for number, run in enumerate(runs) for e in run.episodes]
    return {
        "runs": [_run(run) for run in runs],
        "differences": differing_settings(runs),
        "left_out": left_out,
        "episodes": episodes,
        "strings": list(table.strings),
        "lists": [list(numbers) for numbers in table.lists],
    }


def differing_settings(runs: Sequence[PageRun]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, with the value of each; ``seed`` stands elsewhere."""
    keys = sorted({key for run in runs for key in run.settings} - {"seed"})
    values = [(key, [run.settings.get(key, "–") for run in runs]) for key in keys]
    return [(key, found) for key, found in values if len(set(found)) > 1]


class _Table:
    """Every text once, and every list of texts once, in the order they were first met."""

    def __init__(self) -> None:
        self.strings: dict[str, int] = {}
        self.lists: dict[tuple[int, ...], int] = {}

    def text(self, text: str | None) -> int:
        return _NONE if text is None else self.strings.setdefault(text, len(self.strings))

    def texts(self, texts: Sequence[str]) -> int:
        return self.lists.setdefault(tuple(self.text(text) for text in texts), len(self.lists))


def _run(run: PageRun) -> dict[str, Any]:
    first = run.episodes[0] if run.episodes else None
    asked = run.predictions
    return {
        "name": run.name,
        "folder": run.folder,
        "arm": first.arm if first else "",
        "seed": first.seed if first else 0,
        "asked": asked and {"iteration": asked.iteration, "form": asked.sp_form, "trained": asked.trained},
    }


def _episode(episode: Episode, number: int, run: PageRun, table: _Table) -> list[Any]:
    seen: list[str] = []
    turns = []
    for place, turn in enumerate(episode.turns):
        if (shown := without_banner(turn.observation)) not in seen and len(shown) >= _SHORTEST_SHARED:
            seen.append(shown)
        turns.append(_turn(turn, seen, _answers(episode, place, run.predictions, table), table))
    return [
        *(number, episode.iteration, table.text(episode.game_id), table.text(episode.family)),
        *(table.text(episode.stop.value), int(episode.won), round(episode.task_score, 4)),
        *(table.text(episode.fault), turns),
    ]


def _turn(turn: Turn, seen: Sequence[str], answers: Any, table: _Table) -> list[Any]:
    return [
        table.texts(_split(turn.prompt, seen)),
        table.text(turn.observation),
        table.texts(turn.admissible),
        table.texts([text for text, _ in turn.pieces]),
        [round(-1000 * logprob) for _, logprob in turn.pieces],
        table.text(turn.finish.value),
        table.text(turn.action),
        turn.format_valid + 2 * turn.action_admissible,
        round(turn.reward, 4),
        table.text(turn.next_observation),
        answers,
    ]


def _answers(episode: Episode, place: int, predictions: Predictions | None, table: _Table) -> Any:
    if predictions is None:
        return 0
    turns = episode.turns[: place + 1]
    found = [predictions.answers.get(answer_key(turns, asked)) for asked in ("sp", "id")]
    return [part for answer in found for part in _answer(answer, table)] if any(found) else 0


def _answer(answer: Answer | None, table: _Table) -> tuple[int, int]:
    return (_NONE, 0) if answer is None else (table.text(answer.text), int(answer.cut))


def _split(prompt: str, seen: Sequence[str]) -> list[str]:
    """The prompt in pieces that repeat: the observations it shows, and what stands between them."""
    pieces = [prompt]
    # Later ones first: they are shown most often.
    for text in reversed(seen):
        cut: list[str] = []
        for piece in pieces:
            before, found, after = piece.partition(text)
            cut += [before, found, after] if found and piece != text else [piece]
        pieces = [piece for piece in cut if piece]
    return pieces


def _policy_hash(text: str) -> str:
    """Of an inline element's content, as a content security policy names it."""
    # Browsers hash what their parser has read, and that has no carriage returns.
    digest = hashlib.sha256(text.replace("\r\n", "\n").encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
