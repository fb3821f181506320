"""What a policy knows of its environment, measured on fixed questions."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.dynamics import DynamicsProbe, with_dynamics
from envrl.experiments.evaluation import play_panel
from envrl.experiments.games import evaluation_panel
from envrl.experiments.run import build_collector, build_pool
from envrl.policy.chat import ChatMarkup
from envrl.policy.model import Policy
from envrl.prompts.dynamics import inverse_dynamics_question, state_prediction_question
from envrl.prompts.render import without_banner
from envrl.prompts.settings import PromptSettings
from envrl.rollout.collector import EpisodePlan
from envrl.rollout.probe import probe_items
from envrl.rollout.random_play import play_at_random, random_query
from envrl.seeding import generator
from envrl.tracking.metrics import check_name
from envrl.types import Trajectory
from studies import tiny
from support import checkpoint, nudge, policy_of

BASE = {
    "env": {"receptacles": 5, "train_games": 4, "max_steps": 8},
    "rollout": {"games": 2, "episodes_per_game": 2},
    "evaluation": {"games": 6, "dynamics": 12},
    "train": {"iterations": 1},
}


def configured(**changes: Any) -> RunConfig:
    return config_from(tiny(checkpoint()), BASE, changes)


@pytest.fixture(scope="module")
def played() -> list[Trajectory]:
    """Random play on the panel."""
    config = configured()
    panel = evaluation_panel(config.env, config.evaluation)
    with build_pool(config, panel) as pool:
        return play_at_random(pool, [EpisodePlan(g, n) for n, g in enumerate(panel.games)], 0)


@pytest.fixture(scope="module")
def chat() -> ChatMarkup:
    return policy_of(checkpoint()).chat


@pytest.mark.parametrize("form", ["compact", "reasoned"])
@pytest.mark.parametrize("in_conversation", [True, False])
def test_only_the_action_differs_and_the_answer_stands_at_the_end(
    played: list[Trajectory], chat: ChatMarkup, form: Any, in_conversation: bool
) -> None:
    prompt = PromptSettings(form=form)
    rng = generator(0, "probe")
    items = probe_items(played, chat, prompt, count=10, rng=rng, in_conversation=in_conversation)
    assert len(items) == 10
    transitions = [t for trajectory in played for t in trajectory.transitions]
    answers = {without_banner(t.next_observation.text) for t in transitions}
    for item in items:
        assert item.other_action is not None
        count = item.observation_tokens
        text = chat.decode(item.predicted[-count:])
        assert text in answers
        assert item.other_action[-count:] == item.predicted[-count:]
        assert item.other_action != item.predicted
        # What differs is one action: an admissible one in the place of the one that was taken.
        rows = (item.predicted[:-count], item.other_action[:-count])
        same = next(n for n, (a, b) in enumerate(zip(*rows, strict=False)) if a != b)
        behind = next(n for n, (a, b) in enumerate(zip(rows[0][::-1], rows[1][::-1], strict=False)) if a != b)
        shared = min(same, *(len(row) - behind for row in rows))
        taken, other = (chat.decode(row[shared : len(row) - behind]) for row in rows)
        assert taken.strip()
        assert other.strip()
        assert any(taken.strip() in (t.action or "") for t in transitions)
        assert any(other.strip() in a for t in transitions for a in t.observation.admissible)
        asked = chat.decode(item.inverse[-item.action_tokens :])
        assert asked in {t.action for t in transitions}
        tagged = f"<action>{asked}</action>" in chat.decode(item.predicted)
        assert tagged is (in_conversation and form == "reasoned")
        assert item.inverse[-1] == chat.end_id
        assert (item.predicted[-1] == chat.end_id) is not in_conversation


def test_questions_are_those_that_are_trained_on(played: list[Trajectory], chat: ChatMarkup) -> None:
    prompt = PromptSettings()
    few = [replace(played[0], transitions=played[0].transitions[:1])]
    (item,) = probe_items(few, chat, prompt, count=5, rng=generator(0, "probe"), in_conversation=False)
    step = few[0].transitions[0]
    assert step.action is not None
    before, after = step.observation.text, step.next_observation.text
    predicted = state_prediction_question(prompt, before, step.action, after)
    inverse = inverse_dynamics_question(prompt, before, step.action, after)
    end = [chat.end_id]
    opened = list(chat.opening(predicted.message).token_ids)
    assert list(item.predicted) == [*opened, *chat.encode(predicted.target), *end]
    opened = list(chat.opening(inverse.message).token_ids)
    assert list(item.inverse) == [*opened, *chat.encode(inverse.target), *end]


def test_all_transitions_can_be_asked_about(played: list[Trajectory], chat: ChatMarkup) -> None:
    rng = generator(0, "probe")
    items = probe_items(played, chat, PromptSettings(), count=999, rng=rng, in_conversation=True)
    assert len(items) == sum(len(t.transitions) for t in played)
    assert probe_items([], chat, PromptSettings(), count=9, rng=rng, in_conversation=True) == []


def reference(policy: Policy, ids: tuple[int, ...], count: int) -> tuple[float, bool]:
    """Nats and exactness of a row's last tokens, one row at a time through the whole model."""
    with torch.no_grad():
        logits = policy.causal(torch.tensor([ids])).logits[0].double()
    places = range(len(ids) - count, len(ids))
    nats = -sum(float(torch.log_softmax(logits[n - 1], -1)[ids[n]]) for n in places)
    return nats, all(int(logits[n - 1].argmax()) == ids[n] for n in places)


def test_measures_are_those_of_the_rows_one_by_one() -> None:
    config = configured()
    policy = policy_of(checkpoint())
    nudge(policy)
    policy.train()
    panel = evaluation_panel(config.env, config.evaluation)
    with build_pool(config, panel) as pool:
        probe = DynamicsProbe(config, panel, pool, policy)
    found = probe.measure(policy)
    assert policy.training
    items = probe._items
    policy.eval()
    true = [reference(policy, i.predicted, i.observation_tokens) for i in items]
    other = [reference(policy, i.other_action or (), i.observation_tokens) for i in items]
    inverse = [reference(policy, i.inverse, i.action_tokens) for i in items]
    tokens = sum(i.observation_tokens for i in items)
    assert found["dynamics/sp_ce"] == pytest.approx(sum(n for n, _ in true) / tokens, rel=1e-5)
    gap = sum(a - b for (a, _), (b, _) in zip(other, true, strict=True)) / tokens
    assert found["dynamics/sp_action_gap"] == pytest.approx(gap, abs=1e-5)
    acted = sum(i.action_tokens for i in items)
    assert found["dynamics/id_ce"] == pytest.approx(sum(n for n, _ in inverse) / acted, rel=1e-5)
    assert found["dynamics/id_exact_match"] == sum(e for _, e in inverse) / len(items)
    families = Counter(i.family for i in items)
    parts = sum(found[f"dynamics/id_exact_match/{f}"] * n for f, n in families.items())
    assert parts / len(items) == pytest.approx(found["dynamics/id_exact_match"])
    for name in found:
        check_name(name)


def test_the_questions_depend_on_the_panel_alone() -> None:
    def asked(config: RunConfig) -> list[Any]:
        policy = policy_of(checkpoint())
        panel = evaluation_panel(config.env, config.evaluation)
        with build_pool(config, panel) as pool:
            return DynamicsProbe(config, panel, pool, policy)._items

    assert asked(configured()) == asked(configured(seed=5))
    assert asked(configured()) != asked(configured(**{"evaluation.seed": 1}))


def test_a_policy_that_knows_the_games_is_measured_as_one() -> None:
    """The embedded policy was trained on such texts; a random one was not."""

    def measured(model: str | None) -> dict[str, float]:
        config = configured(**({"policy.model": model} if model else {}))
        policy = policy_of(checkpoint()) if model is None else _embedded(config)
        panel = evaluation_panel(config.env, config.evaluation)
        with build_pool(config, panel) as pool:
            return DynamicsProbe(config, panel, pool, policy).measure(policy)

    trained, random = measured("tiny"), measured(None)
    assert trained["dynamics/sp_ce"] < 1.0 < random["dynamics/sp_ce"]
    assert trained["dynamics/sp_action_gap"] > 0.5
    assert abs(random["dynamics/sp_action_gap"]) < 0.5
    assert trained["dynamics/sp_exact_match"] > 0.1
    assert random["dynamics/sp_exact_match"] == 0.0


def _embedded(config: RunConfig) -> Policy:
    from envrl.policy.model import load_policy

    return load_policy(config.embodied)


def test_an_evaluation_keeps_the_measures_over_all_task_types() -> None:
    config = configured()
    policy = policy_of(checkpoint())
    panel = evaluation_panel(config.env, config.evaluation)
    with build_pool(config, panel) as pool:
        result = play_panel(
            policy, build_collector(config, policy, pool), panel, temperature=1.0, iteration=0
        )
        known = DynamicsProbe(config, panel, pool, policy).measure(policy)
    assert 0.0 <= result.metrics["eval/imagined_rate"] <= 1.0
    kept = with_dynamics(result.evaluation, known).dynamics
    assert set(kept) == {
        "dynamics/sp_ce",
        "dynamics/sp_exact_match",
        "dynamics/sp_action_gap",
        "dynamics/id_ce",
        "dynamics/id_exact_match",
    }
    assert all(math.isfinite(value) for value in kept.values())


def test_random_searches_have_words_of_the_task() -> None:
    rng = generator(0, "words")
    for _ in range(20):
        words = random_query("green tea, cheap", rng).removeprefix("search[").removesuffix("]").split()
        assert 1 <= len(words) <= 4
        assert set(words) <= {"green", "tea,", "cheap"}


def test_random_play_never_searches_for_the_placeholder() -> None:
    config = config_from(
        {
            "env": {"name": "webshop", "max_steps": 6, "webshop": {"products": 60, "test_goals": 20}},
            "evaluation": {"games": 8},
        }
    )
    panel = evaluation_panel(config.env, config.evaluation)
    with build_pool(config, panel) as pool:
        played = play_at_random(pool, [EpisodePlan(g, n) for n, g in enumerate(panel.games)], 0)
    searches = [
        t.action for trajectory in played for t in trajectory.transitions if "search[" in (t.action or "")
    ]
    assert len(searches) > 4
    assert not any("<your query>" in (a or "") for a in searches)
    chat = policy_of(checkpoint()).chat
    rng = generator(0, "probe")
    items = probe_items(played, chat, PromptSettings(), count=99, rng=rng, in_conversation=False)
    asked = [chat.decode(i.other_action) for i in items if i.other_action is not None]
    assert any("> search[" in text for text in asked)
    assert not any("> search[<your query>]" in text for text in asked)
