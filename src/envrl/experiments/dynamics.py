"""How much a policy knows of its environment, measured on the panel's games whatever it does in them.

The questions are about random play, so they are the same for every policy, arm and seed of a study, and a
policy that sees more of the environment than before is not measured on harder questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from envrl.analysis.records import Evaluation
from envrl.envs.panels import Panel
from envrl.envs.pool import Pool
from envrl.experiments.config import RunConfig
from envrl.policy.model import Policy
from envrl.policy.sampler import evaluation_mode
from envrl.rollout.collector import EpisodePlan
from envrl.rollout.probe import ProbeItem, probe_items
from envrl.rollout.random_play import play_at_random
from envrl.seeding import derive_seed, generator

_TOKENS_AT_ONCE = 8192
"""Tokens of a forward pass, padding included."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a policy makes of the tokens at the end of a row."""

    nats: float
    """Sum of their negative log-probabilities."""
    exact: bool
    """Each of them is the likeliest, so greedy decoding writes all of them."""


class DynamicsProbe:
    """Fixed questions about the panel's games.

    Args:
        config: How many transitions (``evaluation.dynamics``), and in which form state prediction is asked
            for: the one it is trained in, so runs of another ``auxiliary.sp_rows``, layout or prompt are
            asked in other words.
        panel: The games.
        pool: Environments to play them in.
        policy: Whose markup the questions are written in.
    """

    def __init__(self, config: RunConfig, panel: Panel, pool: Pool, policy: Policy) -> None:
        rng = generator(0, "dynamics", panel.panel_hash)
        count = config.evaluation.dynamics
        # As many games as questions: two from one game are likely to be alike.
        games = rng.choice(len(panel.games), size=min(count, len(panel.games)), replace=False)
        plans = [
            EpisodePlan(game, derive_seed(0, "dynamics", game.game_id))
            for game in (panel.games[n] for n in sorted(games.tolist()))
        ]
        self._items = probe_items(
            play_at_random(pool, plans, 0),
            policy.chat,
            config.worded,
            count=count,
            rng=rng,
            in_conversation=config.sp_in_conversation,
        )

    def measure(self, policy: Policy) -> dict[str, float]:
        """Metrics ``dynamics/…``, over all questions and by task type."""
        items = self._items
        if not items:
            return {}
        altered = [item for item in items if item.other_action is not None]
        with torch.no_grad(), evaluation_mode(policy):
            predicted = _told(policy, [(i.predicted, i.observation_tokens) for i in items])
            other = _told(policy, [(i.other_action or (), i.observation_tokens) for i in altered])
            inverse = _told(policy, [(i.inverse, i.action_tokens) for i in items])
        by_altered = dict(zip(map(id, altered), other, strict=True))
        rows = list(zip(items, predicted, inverse, strict=True))
        metrics: dict[str, float] = {}
        for family in (None, *sorted({item.family for item in items})):
            mine = [row for row in rows if family in (None, row[0].family)]
            found = _metrics(mine, by_altered)
            suffix = "" if family is None else f"/{family}"
            metrics |= {f"dynamics/{name}{suffix}": value for name, value in found.items()}
        return metrics


def with_dynamics(evaluation: Evaluation, metrics: Mapping[str, float]) -> Evaluation:
    """The evaluation with what was measured over all task types."""
    known = {name: value for name, value in metrics.items() if name.count("/") == 1}
    return evaluation.model_copy(update={"dynamics": known})


def _metrics(
    rows: Sequence[tuple[ProbeItem, _Told, _Told]], by_altered: dict[int, _Told]
) -> dict[str, float]:
    """Measures over some questions; the gap is left out where no question has another action."""
    tokens = sum(item.observation_tokens for item, _, _ in rows)
    metrics = {
        "sp_ce": sum(told.nats for _, told, _ in rows) / tokens,
        "sp_exact_match": sum(told.exact for _, told, _ in rows) / len(rows),
        "id_ce": sum(told.nats for _, _, told in rows) / sum(item.action_tokens for item, _, _ in rows),
        "id_exact_match": sum(told.exact for _, _, told in rows) / len(rows),
    }
    pairs = [(item, told, by_altered[id(item)]) for item, told, _ in rows if id(item) in by_altered]
    if pairs:
        shared = sum(item.observation_tokens for item, _, _ in pairs)
        metrics["sp_action_gap"] = sum(other.nats - told.nats for _, told, other in pairs) / shared
    return metrics


def _told(policy: Policy, rows: Sequence[tuple[tuple[int, ...], int]]) -> list[_Told]:
    """For each row and its number of last tokens, what the policy makes of them."""
    found: dict[int, _Told] = {}
    for members in _batches([len(ids) for ids, _ in rows]):
        width = max(len(rows[n][0]) for n in members)
        filler = policy.chat.pad_id
        device = next(policy.parameters()).device
        ids = torch.tensor([[*rows[n][0], *[filler] * (width - len(rows[n][0]))] for n in members])
        hidden = policy.hidden_states(ids.to(device))
        for place, n in enumerate(members):
            end, count = len(rows[n][0]), rows[n][1]
            targets = ids[place, end - count : end].to(device)
            logits = policy.logits(hidden[place, end - count - 1 : end - 1]).float()
            nats = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            found[n] = _Told(float(nats), bool((logits.argmax(-1) == targets).all()))
    return [found[n] for n in range(len(rows))]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of similar length together, longest first."""
    batch: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch
