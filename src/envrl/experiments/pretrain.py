"""Makes the embedded policy from generated games: tokenizer, language modelling, then cloning.

    python -m envrl.policy.tiny --help

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

import numpy as np
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from envrl.envs.alfworld.engine import AlfworldEnv
from envrl.envs.alfworld.expert import Expert
from envrl.envs.alfworld.generate import RoomSettings, generate_games
from envrl.errors import ConfigFault, DataFault, EnvrlError
from envrl.policy.chat import ChatMarkup
from envrl.policy.model import TINY_CHECKPOINT, read_tokenizer
from envrl.policy.pretraining import (
    PhaseSettings,
    TinyArchitecture,
    WeightedRow,
    build_tiny,
    train_phase,
)
from envrl.policy.tokenizer import train_tokenizer
from envrl.prompts.dynamics import inverse_dynamics_question, state_prediction_question
from envrl.prompts.render import follow_up, opening_message, without_banner
from envrl.prompts.settings import PromptSettings
from envrl.seeding import derive_seed, generator
from envrl.types import Game, Observation, Role

_PROMPTS = PromptSettings()


@dataclass(frozen=True)
class CorpusSettings:
    """Games and play the embedded policy learns from."""

    small_games: int = 5000
    """Generated games with 6 to 10 receptacles."""
    full_games: int = 400
    """Generated games in full rooms."""
    random_share: float = 0.15
    """Share of the games that are also played at random (for the language model only)."""
    detour: float = 0.1
    """Probability that an expert's step is replaced by a random command (never cloned)."""
    questions_per_episode: int = 1
    """State-prediction and inverse-dynamics questions drawn from each episode, of each kind."""
    seed: int = 0
    """Root of every random choice."""


@dataclass(frozen=True)
class Stage:
    """One stage of training, on a corpus of its own."""

    name: str
    """What the log calls it."""
    corpus: CorpusSettings
    """Games and play."""
    phase: PhaseSettings
    """Length, learning rate, update size."""
    environment_weight: float
    """Target weight of observations and questions; the expert's action tokens have 1."""
    longest_row: int = 4096
    """Rows of more tokens are left out."""


_CORPUS = CorpusSettings()
STAGES = (
    Stage("language model", _CORPUS, PhaseSettings(epochs=2.0), 1.0),
    # Short on purpose: three epochs of cloning win twice as often and leave little to learn from reward.
    Stage("cloning", _CORPUS, PhaseSettings(epochs=0.25, lr=3e-4), 0.1),
)
"""How the embedded checkpoint was made."""


@dataclass(frozen=True)
class PretrainSettings:
    """Everything the embedded checkpoint depends on."""

    stages: tuple[Stage, ...] = STAGES
    """Stages in order; the tokenizer is trained on the first one's corpus."""
    architecture: TinyArchitecture = field(default_factory=TinyArchitecture)
    """Size of the model."""
    vocabulary: int = 768
    """Entries of the tokenizer's BPE part."""
    phrases: int = 250
    """Phrases that are one token each."""
    seed: int = 0
    """Root of initialisation and order."""


@dataclass(frozen=True, slots=True)
class PlayedStep:
    """One step of a recorded episode; ``expert`` tells whether the command is worth imitating."""

    command: str
    answer: Observation
    expert: bool


@dataclass(frozen=True, slots=True)
class PlayedEpisode:
    """A recorded episode of whoever played."""

    opening: Observation
    steps: tuple[PlayedStep, ...]


def play(game: Game, rng: np.random.Generator, detour: float) -> PlayedEpisode:
    """Plays one game: the expert's command, or with probability ``detour`` a random one.

    A random command is drawn by verb first, so that rare verbs are seen often; one in five of them is an
    inadmissible one (a verb with a wrong place), whose answer the language model must know too.
    """
    env, expert = AlfworldEnv(), Expert()
    observation = opening = env.reset(game, 0)
    expert.reset(observation.text)
    steps: list[PlayedStep] = []
    for _ in range(game.max_steps):
        command = expert.act(observation)
        by_expert = rng.random() >= detour
        if not by_expert:
            command = _random_command(observation, rng)
        result = env.step(command)
        observation = result.observation
        steps.append(PlayedStep(command, observation, by_expert))
        if result.terminated or result.truncated:
            break
    return PlayedEpisode(opening, tuple(steps))


def _random_command(observation: Observation, rng: np.random.Generator) -> str:
    commands = [c for c in observation.admissible if c != "help"]
    verbs = sorted({c.split(" ", 1)[0] for c in commands})
    verb = verbs[int(rng.integers(len(verbs)))]
    chosen = [c for c in commands if c.startswith(verb)]
    command = chosen[int(rng.integers(len(chosen)))]
    if rng.random() < 0.2:
        head, blank, number = command.rpartition(" ")
        if blank and number.isdigit():
            return f"{head} {int(number) + int(rng.integers(1, 4))}"
    return command


def record_corpus(settings: CorpusSettings, folder: Path, say: Console) -> list[PlayedEpisode]:
    """Generates the games below ``folder`` and plays them."""
    games: list[Game] = []
    for receptacles in (6, 8, 10):
        rooms = RoomSettings(receptacles=receptacles, objects_per_receptacle=1.5, max_steps=30)
        count = settings.small_games // 3
        games += generate_games(rooms, count, derive_seed(settings.seed, receptacles), "train", folder)
    if settings.full_games:
        full = RoomSettings(max_steps=50)
        games += generate_games(
            full, settings.full_games, derive_seed(settings.seed, "full"), "train", folder
        )
    say.print(f"{len(games)} games generated")
    episodes = []
    for game in games:
        rng = generator(settings.seed, "play", game.game_id)
        episodes.append(play(game, rng, settings.detour))
        if rng.random() < settings.random_share:
            episodes.append(play(game, rng, 1.0))
    return episodes


def corpus_texts(episodes: Sequence[PlayedEpisode]) -> list[str]:
    """What the tokenizer is trained on: every observation and every command."""
    texts = []
    for episode in episodes:
        texts.append(without_banner(episode.opening.text))
        for step in episode.steps:
            texts += [step.command, step.answer.text]
    return texts


def transcript_row(chat: ChatMarkup, episode: PlayedEpisode, action: float, other: float) -> WeightedRow:
    """An episode as one conversation.

    Args:
        chat: Markup.
        episode: What was played.
        action: Target weight of the expert's commands.
        other: Target weight of observations and of random commands.
    """
    opened = chat.opening(opening_message(_PROMPTS, episode.opening))
    ids, weights = list(opened.token_ids), [other] * len(opened.token_ids)
    for step in episode.steps:
        command = [*chat.encode(step.command), chat.end_id]
        ids += command
        # A random command is never imitated, only survived.
        weights += [action if step.expert else 0.0] * len(command)
        turn = chat.later_turn(follow_up(_PROMPTS, step.answer), answer_ended=True)
        ids += turn.token_ids
        weights += [other if role == Role.OBSERVATION else 0.0 for role in turn.roles]
    return WeightedRow(tuple(ids), tuple(weights))


def question_rows(
    chat: ChatMarkup, episode: PlayedEpisode, count: int, weight: float, rng: np.random.Generator
) -> list[WeightedRow]:
    """State-prediction and inverse-dynamics questions about ``count`` random steps of an episode."""
    rows = []
    picked = rng.choice(len(episode.steps), size=min(count, len(episode.steps)), replace=False)
    for index in picked.tolist():
        before = episode.opening if index == 0 else episode.steps[index - 1].answer
        step = episode.steps[index]
        for ask, role in (
            (state_prediction_question, Role.OBSERVATION),
            (inverse_dynamics_question, Role.ACTION),
        ):
            question = ask(_PROMPTS, before.text, step.command, step.answer.text)
            tokens = chat.answered(question.message, question.target, role)
            weights = tuple(weight if r == role else 0.0 for r in tokens.roles)
            rows.append(WeightedRow(tokens.token_ids, weights))
    return rows


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
    corpora: dict[CorpusSettings, list[PlayedEpisode]] = {}
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerFast | None = None
    if first > 0:
        model, tokenizer = _left_by(first - 1, out)
    for number, stage in enumerate(settings.stages):
        if number < first:
            continue
        if stage.corpus not in corpora:
            corpora = {stage.corpus: record_corpus(stage.corpus, games_folder, say)}
        episodes = corpora[stage.corpus]
        if model is None or tokenizer is None:
            texts = corpus_texts(episodes)
            tokenizer = train_tokenizer(texts, vocabulary=settings.vocabulary, phrases=settings.phrases)
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


def stage_rows(
    chat: ChatMarkup, stage: Stage, episodes: Sequence[PlayedEpisode], seed: int
) -> list[WeightedRow]:
    """Transcripts and questions of a corpus with the stage's weights."""
    rng = generator(seed, "questions", stage.name)
    rows = [transcript_row(chat, e, 1.0, stage.environment_weight) for e in episodes]
    for episode in episodes:
        rows += question_rows(
            chat, episode, stage.corpus.questions_per_episode, stage.environment_weight, rng
        )
    return [r for r in rows if len(r.token_ids) <= stage.longest_row and any(r.weights)]


def _stage_folder(number: int, out: Path) -> Path:
    return out.with_name(f"{out.name}-stage{number + 1}")


def _left_by(number: int, out: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    folder = _stage_folder(number, out)
    if not (folder / "config.json").is_file():
        raise DataFault(f"stage {number + 1} left nothing in {folder}; start with an earlier --first-stage")
    tokenizer = cast(PreTrainedTokenizerFast, read_tokenizer(str(folder)))
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer


def scaled(stage: Stage, scale: float) -> Stage:
    """The stage with a share of its games and epochs."""
    if scale == 1.0:
        return stage
    corpus = replace(
        stage.corpus,
        small_games=max(3, round(stage.corpus.small_games * scale)),
        full_games=round(stage.corpus.full_games * scale),
    )
    return replace(stage, corpus=corpus, phase=replace(stage.phase, epochs=stage.phase.epochs * scale))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the rebuild."""
    parser = argparse.ArgumentParser(
        prog="python -m envrl.policy.tiny",
        description="Rebuild the embedded policy from generated games only.",
    )
    parser.add_argument("--out", type=Path, default=TINY_CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--games", type=Path, help="folder to keep generated games in (default: temporary)")
    parser.add_argument(
        "--first-stage", type=int, default=1, help=f"stage to go on with, 1 to {len(STAGES)} (default: 1)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of games and epochs, to try it out (default: 1)"
    )
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2)), help="CPU threads")
    options = parser.parse_args(arguments)
    say = Console()
    try:
        if not 1 <= options.first_stage <= len(STAGES):
            raise ConfigFault(f"--first-stage {options.first_stage}: give a number from 1 to {len(STAGES)}")
        if not 0 < options.scale <= 1:
            raise ConfigFault(f"--scale {options.scale}: give a share above 0 and up to 1")
        torch.set_num_threads(options.threads)
        settings = PretrainSettings(stages=tuple(scaled(stage, options.scale) for stage in STAGES))
        with tempfile.TemporaryDirectory() as scratch:
            pretrain(settings, options.out, options.games or Path(scratch), say, options.first_stage - 1)
    except EnvrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
