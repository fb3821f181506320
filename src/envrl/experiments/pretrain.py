"""Makes the embedded policies from generated games: tokenizer, language modelling, then cloning.

    python -m envrl.policy.tiny --help

There is one for each environment: with a million parameters, one for both would have to share its
vocabulary and its weights between texts that have nothing in common.

Phase 1 trains a small language model on environment text: observations and actions of expert play with
random detours and of random play, and both dynamics questions, so that the answers of the environment
are no news when reinforcement learning starts (as for a pretrained chat model). Phase 2 clones the
expert's actions, at a lower weight of everything else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from envrl.errors import ConfigFault, DataFault, EnvrlError
from envrl.experiments.house_corpus import CorpusSettings, record_corpus
from envrl.experiments.played import PlayedEpisode, corpus_texts
from envrl.experiments.pretrain_rows import question_rows, transcript_row
from envrl.experiments.shop_corpus import SHOP_PHRASES, ShopCorpusSettings, record_shop_corpus
from envrl.policy.chat import ChatMarkup
from envrl.policy.pretraining import (
    PhaseSettings,
    TinyArchitecture,
    WeightedRow,
    build_tiny,
    train_phase,
)
from envrl.policy.reading import read_tokenizer
from envrl.policy.settings import EMBEDDED
from envrl.policy.tokenizer import train_tokenizer
from envrl.seeding import derive_seed, generator


@dataclass(frozen=True)
class Stage:
    """One stage of training, on a corpus of its own."""

    name: str
    """What the log calls it."""
    corpus: CorpusSettings | ShopCorpusSettings
    """Games and play."""
    phase: PhaseSettings
    """Length, learning rate, update size."""
    environment_weight: float
    """Target weight of observations and questions; the expert's action tokens have 1."""
    choice_weight: float = 1.0
    """What the weight of clicks on products is multiplied by. Which of ten it is depends on one token, and
    that is lost among the tokens of queries and pages."""
    longest_row: int = 4096
    """Rows of more tokens are left out."""


_HOUSE, _SHOP = CorpusSettings(), ShopCorpusSettings()


@dataclass(frozen=True)
class PretrainSettings:
    """Everything an embedded checkpoint depends on."""

    stages: tuple[Stage, ...]
    """Stages in order; the tokenizer is trained on the first one's corpus."""
    architecture: TinyArchitecture = field(default_factory=TinyArchitecture)
    """Size of the model."""
    vocabulary: int = 768
    """Entries of the tokenizer's BPE part."""
    phrases: int | tuple[str, ...] = 250
    """Phrases that are one token each, or how many are to be found."""
    cased: bool = True
    """Whether the tokenizer keeps capitals."""
    seed: int = 0
    """Root of initialisation and order."""


EMBEDDED_POLICIES = {
    "alfworld": PretrainSettings(
        (
            Stage("language model", _HOUSE, PhaseSettings(epochs=2.0), 1.0),
            # Short on purpose: three epochs win twice as often and leave little to learn from reward.
            Stage("cloning", _HOUSE, PhaseSettings(epochs=0.25, lr=3e-4), 0.1),
        )
    ),
    "webshop": PretrainSettings(
        (
            Stage("language model", _SHOP, PhaseSettings(epochs=2.0), 1.0),
            # Long, in small updates: to copy names from a page is learnt late. Detours bring pages again,
            # which is practice in choosing.
            Stage(
                "cloning",
                replace(_SHOP, questions_per_episode=0.0, detour=0.2),
                PhaseSettings(epochs=4.0, lr=1.5e-3, tokens_per_update=2048),
                0.1,
            ),
            Stage(
                "choosing",
                replace(_SHOP, questions_per_episode=0.0, detour=0.2),
                PhaseSettings(epochs=3.0, lr=1.5e-3, tokens_per_update=2048),
                0.05,
                choice_weight=8.0,
            ),
            # The questions were forgotten meanwhile: inverse dynamics had come to 5.4 nats a token.
            Stage(
                "recalling",
                replace(_SHOP, questions_per_episode=1.0, detour=0.2),
                PhaseSettings(epochs=0.5, lr=6e-4, tokens_per_update=2048),
                0.3,
                choice_weight=8.0,
            ),
        ),
        vocabulary=2432,
        phrases=SHOP_PHRASES,
        cased=False,
    ),
}
"""How the embedded checkpoints were made."""


def pretrain(settings: PretrainSettings, out: Path, games_folder: Path, say: Console, first: int = 0) -> None:
    """Runs the stages and writes the checkpoint in Hugging Face format.

    Args:
        settings: Stages and size.
        out: Folder of the checkpoint; stage ``n`` of an unfinished rebuild is kept in ``<out>-stage<n>``.
        games_folder: Where the generated games are kept (reused when already there).
        say: Console for progress.
        first: Stage to go on with, from what the one before it left; 0 starts anew.

    Raises:
        DataFault: The stage before ``first`` left nothing.
    """
    started = time.perf_counter()
    torch.manual_seed(derive_seed(settings.seed, "model"))
    corpora: dict[CorpusSettings | ShopCorpusSettings, list[PlayedEpisode]] = {}
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerFast | None = None
    if first > 0:
        model, tokenizer = _left_by(first - 1, out)
    for number, stage in enumerate(settings.stages):
        if number < first:
            continue
        if stage.corpus not in corpora:
            corpora = {stage.corpus: _record(stage.corpus, games_folder, say)}
        episodes = corpora[stage.corpus]
        if model is None or tokenizer is None:
            texts = corpus_texts(episodes)
            tokenizer = train_tokenizer(
                texts, vocabulary=settings.vocabulary, phrases=settings.phrases, cased=settings.cased
            )
            model = build_tiny(tokenizer, settings.architecture)
            size = sum(p.numel() for p in model.parameters())
            say.print(f"{len(tokenizer)} tokens in the vocabulary, {size:,} parameters")
        rows = stage_rows(ChatMarkup(tokenizer), stage, episodes, settings.seed)
        say.print(f"{stage.name}: {len(rows)} rows, {sum(len(r.token_ids) for r in rows):,} tokens")

        def report(update: int, updates: int, loss: float, name: str = stage.name) -> None:
            seconds = time.perf_counter() - started
            say.print(f"{name} {update}/{updates} loss {loss:.3f} nats, {seconds:.0f} s")

        train_phase(model, rows, stage.phase, generator(settings.seed, "order", stage.name), report)
        last = number + 1 == len(settings.stages)
        folder = out if last else _stage_folder(number, out)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "pretraining.json").write_text(json.dumps(asdict(settings), indent=1) + "\n")
    say.print(f"written to {out} in {time.perf_counter() - started:.0f} s")


def _record(
    corpus: CorpusSettings | ShopCorpusSettings, games_folder: Path, say: Console
) -> list[PlayedEpisode]:
    if isinstance(corpus, CorpusSettings):
        return record_corpus(corpus, games_folder, say)
    return record_shop_corpus(corpus, say)


def stage_rows(
    chat: ChatMarkup, stage: Stage, episodes: Sequence[PlayedEpisode], seed: int
) -> list[WeightedRow]:
    """Transcripts and questions of a corpus with the stage's weights."""
    rng = generator(seed, "questions", stage.name)
    other, choice = stage.environment_weight, stage.choice_weight
    rows = [transcript_row(chat, e, 1.0, other, choice) for e in episodes]
    whole, part = divmod(stage.corpus.questions_per_episode, 1)
    for episode in episodes:
        count = int(whole) + int(part > 0 and rng.random() < part)
        rows += question_rows(chat, episode, count, stage.environment_weight, rng)
    return [r for r in rows if len(r.token_ids) <= stage.longest_row and any(r.weights)]


def _stage_folder(number: int, out: Path) -> Path:
    return out.with_name(f"{out.name}-stage{number + 1}")


def _left_by(number: int, out: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    folder = _stage_folder(number, out)
    if not (folder / "config.json").is_file():
        raise DataFault(f"stage {number + 1} left nothing in {folder}; start with an earlier --first-stage")
    tokenizer = cast(PreTrainedTokenizerFast, read_tokenizer(str(folder)))
    return AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False
    ), tokenizer


def scaled(stage: Stage, scale: float) -> Stage:
    """The stage with a share of its games and epochs."""
    if scale == 1.0:
        return stage
    corpus: CorpusSettings | ShopCorpusSettings
    if isinstance(stage.corpus, CorpusSettings):
        corpus = replace(
            stage.corpus,
            small_games=max(3, round(stage.corpus.small_games * scale)),
            full_games=round(stage.corpus.full_games * scale),
        )
    else:
        corpus = replace(
            stage.corpus,
            catalogues=1,
            goals=max(3, round(stage.corpus.catalogues * stage.corpus.goals * scale)),
        )
    return replace(stage, corpus=corpus, phase=replace(stage.phase, epochs=stage.phase.epochs * scale))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the rebuild."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m envrl.policy.tiny",
        description="Rebuild an embedded policy from generated games only.",
    )
    parser.add_argument(
        "--env",
        choices=sorted(EMBEDDED_POLICIES),
        default="alfworld",
        help="what it plays (default: alfworld)",
    )
    parser.add_argument("--out", type=Path, help="folder of the checkpoint (default: inside the package)")
    parser.add_argument("--games", type=Path, help="folder to keep ALFWorld games in (default: temporary)")
    parser.add_argument("--first-stage", type=int, default=1, help="stage to go on with (default: 1)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of games and epochs, to try it out (default: 1)"
    )
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2)), help="CPU threads")
    options = parser.parse_args(arguments)
    say = Console()
    made = EMBEDDED_POLICIES[options.env]
    try:
        if not 1 <= options.first_stage <= len(made.stages):
            raise ConfigFault(
                f"--first-stage {options.first_stage}: give a number from 1 to {len(made.stages)}"
            )
        if not 0 < options.scale <= 1:
            raise ConfigFault(f"--scale {options.scale}: give a share above 0 and up to 1")
        torch.set_num_threads(options.threads)
        settings = replace(made, stages=tuple(scaled(stage, options.scale) for stage in made.stages))
        out = options.out or EMBEDDED[f"tiny-{options.env}"]
        with tempfile.TemporaryDirectory() as scratch:
            pretrain(settings, out, options.games or Path(scratch), say, options.first_stage - 1)
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
