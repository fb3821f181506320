"""What the WebShop's embedded policy is made from."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from envrl.experiments.played import corpus_texts
from envrl.experiments.pretrain import EMBEDDED_POLICIES, stage_rows
from envrl.experiments.pretrain_rows import transcript_row
from envrl.experiments.settings import EnvSettings, WebShopSettings
from envrl.experiments.shop_corpus import (
    PRODUCT_CLICK,
    SHOP_PHRASES,
    ShopCorpusSettings,
    play,
    record_shop_corpus,
)
from envrl.experiments.shop_games import shop_training_games
from envrl.policy.chat import ChatMarkup
from envrl.policy.tokenizer import train_tokenizer

SHOP = EnvSettings(
    name="webshop", train_games=12, games_seed=5, webshop=WebShopSettings(products=80, test_goals=20)
)
CORPUS = ShopCorpusSettings(
    catalogues=1, products=1000, goals=12, random_share=0.5, random_steps=4, questions_per_episode=0.5
)


def test_choosing_a_product_weighs_more_than_other_commands() -> None:
    """Among the tokens of queries and pages, the one that says which product would be lost."""
    episode = play(SHOP, shop_training_games(SHOP)[0], np.random.default_rng(1), 0.0, 15)
    tokenizer = train_tokenizer(corpus_texts([episode]), vocabulary=600, phrases=SHOP_PHRASES, cased=False)
    chat = ChatMarkup(tokenizer)
    row = transcript_row(chat, episode, 1.0, 0.25, 8.0)
    assert len(row.weights) == len(row.token_ids)
    choices = [s.command for s in episode.steps if PRODUCT_CLICK.fullmatch(s.command)]
    others = [s.command for s in episode.steps if not PRODUCT_CLICK.fullmatch(s.command)]
    assert choices
    assert {c.split("[")[0] for c in others} == {"search", "click"}
    assert row.weights.count(8.0) == sum(len(chat.encode(c)) + 1 for c in choices)
    assert row.weights.count(1.0) == sum(len(chat.encode(c)) + 1 for c in others)
    assert 0.25 in row.weights


def test_the_expert_is_imitated_and_detours_are_not() -> None:
    games = shop_training_games(SHOP)
    assert len(games) == 12
    alone = [play(SHOP, game, np.random.default_rng(1), 0.0, 15) for game in games]
    assert all(step.expert for episode in alone for step in episode.steps)
    bought = [episode.steps[-1].answer.text.startswith("Thank you") for episode in alone]
    assert sum(bought) >= 11
    wandering = [play(SHOP, game, np.random.default_rng(1), 1.0, 4) for game in games]
    assert not any(step.expert for episode in wandering for step in episode.steps)
    assert max(len(episode.steps) for episode in wandering) == 4
    assert any(step.command.startswith("search[") for episode in wandering for step in episode.steps)
    again = [play(SHOP, game, np.random.default_rng(1), 0.5, 15) for game in games]
    assert again == [play(SHOP, game, np.random.default_rng(1), 0.5, 15) for game in games]


def test_long_demonstrations_are_left_out_and_play_becomes_rows() -> None:
    episodes = record_shop_corpus(CORPUS, Console(quiet=True))
    shown = [e for e in episodes if any(s.expert for s in e.steps)]
    assert 0 < len(shown) <= 12
    assert max(len(e.steps) for e in shown) <= CORPUS.most_steps
    tokenizer = train_tokenizer(corpus_texts(episodes), vocabulary=600, phrases=SHOP_PHRASES, cased=False)
    chat = ChatMarkup(tokenizer)
    stage = EMBEDDED_POLICIES["webshop"].stages[0]
    rows = stage_rows(chat, stage.__class__("s", CORPUS, stage.phase, 1.0), episodes, 0)
    questions = len(rows) - len(episodes)
    # Half of the episodes ask both questions.
    assert questions % 2 == 0
    assert 0 < questions < 2 * len(episodes)


@pytest.mark.parametrize("phrase", SHOP_PHRASES)
def test_every_phrase_stands_on_a_page_or_in_a_command(phrase: str) -> None:
    """One that stands nowhere would be a token that is never trained."""
    if not _SEEN:
        rng = np.random.default_rng(0)
        for game in shop_training_games(SHOP):
            for detour in (0.0, 0.3, 1.0):
                episode = play(SHOP, game, rng, detour, 15)
                _SEEN.append("\n".join(corpus_texts([episode])).lower())
    assert any(phrase in text for text in _SEEN)


_SEEN: list[str] = []
