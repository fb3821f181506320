"""Small policies made on the spot, and fakes that play a script."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from envrl.envs.alfworld.furnish import RoomSettings
from envrl.envs.alfworld.generate import generate_games
from envrl.experiments.house_corpus import play
from envrl.experiments.played import corpus_texts
from envrl.policy.chat import ChatMarkup
from envrl.policy.model import Policy, load_policy
from envrl.policy.pretraining import TinyArchitecture, build_tiny
from envrl.policy.reading import read_tokenizer
from envrl.policy.sampler import SampledTokens
from envrl.policy.settings import LoraSettings, PolicySettings
from envrl.policy.tokenizer import ASSISTANT, CHAT_TEMPLATE, END, PAD, USER, train_tokenizer
from envrl.types import Finish, Game, Observation, StepResult

WORDS = (
    *(PAD, END, USER, ASSISTANT),  # 0 to 3
    *("start", "room", "go", "saw", "key", "take", "Nothing", "happens.", "win"),  # 4 to 12
    *(">", "?", "you", "won"),  # 13 to 16
)
"""Vocabulary of the word tokenizer; a word's place is its id."""

COLOURS = (PAD, END, USER, ASSISTANT, "red", "green", "blue", "won", ">", "?")
"""Vocabulary of a policy that plays :class:`IdentityEnv`."""


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="envrl-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def game_texts() -> tuple[str, ...]:
    """Observations and commands of four generated games."""
    rooms = RoomSettings(receptacles=6, objects_per_receptacle=1.5, max_steps=20)
    games = generate_games(rooms, 4, 1, "train", _scratch() / "games")
    return tuple(corpus_texts([play(g, np.random.default_rng(0), 0.3) for g in games]))


@cache
def checkpoint() -> Path:
    """A random two-layer Qwen2 with a tokenizer trained on generated games, made once per session."""
    return _random_model(
        train_tokenizer(game_texts(), vocabulary=400, phrases=60), positions=512, name="checkpoint"
    )


def _random_model(tokenizer: PreTrainedTokenizerFast, positions: int, name: str) -> Path:
    """A random two-layer Qwen2 for the tokenizer, in a folder of that name."""
    shape = TinyArchitecture(hidden=32, layers=2, heads=2, feed_forward=64, positions=positions)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_tiny(tokenizer, shape)
    folder = _scratch() / name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
CHATML = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\n" + _SYSTEM + "<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    '{%- if (message.role == "user") or (message.role == "system" and not loop.first)'
    ' or (message.role == "assistant") %}'
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""Template of Qwen2.5-Instruct, without its parts on tools."""


def chatml_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """The tokenizer of :func:`checkpoint` with the markup of a chat model."""
    tokenizer = read_tokenizer(str(checkpoint()))
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"}
    )
    tokenizer.chat_template = template
    return tokenizer


@cache
def chat_checkpoint() -> Path:
    """A random two-layer Qwen2 with the chat template of Qwen2.5-Instruct, in place of the hub's model."""
    return _random_model(chatml_tokenizer(), positions=8192, name="chat-checkpoint")


def word_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token per word, ids in the order of ``words``; the embedded policy's chat template."""
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([PAD, END, USER, ASSISTANT])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=END)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@cache
def word_checkpoint(words: tuple[str, ...] = WORDS) -> Path:
    """A random one-layer Qwen2 whose vocabulary is exactly ``words``."""
    tokenizer = word_tokenizer(words)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    # A folder of its own for each vocabulary: two of the same length would overwrite each other.
    folder = Path(tempfile.mkdtemp(prefix="words-", dir=_scratch()))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def policy_of(folder: Path, *, seed: int = 0, **settings: Any) -> Policy:
    """Loads a policy from a folder; the adapters' first weights depend on ``seed`` alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load_policy(PolicySettings(model=str(folder), **settings))


def nudge(policy: Policy, seed: int = 0, size: float = 0.2) -> None:
    """Moves every trained weight at random, as an update would: fresh adapters change nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight += size * torch.randn(weight.shape, generator=generator)


class ScriptedSession:
    """A :class:`envrl.policy.sampler.SamplerSession` that answers by script.

    Args:
        rows: Number of sequences.
        answers: Answer to the token that stands before the assistant's mark.
        log: Gets the state of all rows after every sampling.
    """

    def __init__(
        self, rows: int, answers: Mapping[int, tuple[int, ...]], log: list[list[tuple[int, ...]]]
    ) -> None:
        self._rows: list[list[int]] = [[] for _ in range(rows)]
        self._answers = answers
        self._log = log

    def append(self, blocks: Sequence[Sequence[int]]) -> None:
        for row, block in zip(self._rows, blocks, strict=True):
            row.extend(block)

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[r] for r in rows]

    def rewrite(self, prompts: Sequence[Sequence[int]], rows: Sequence[int] | None = None) -> None:
        for row, prompt in zip(range(len(self._rows)) if rows is None else rows, prompts, strict=True):
            self._rows[row] = list(prompt)

    def sample(
        self, generators: Sequence[np.random.Generator], temperature: float, max_new_tokens: int
    ) -> list[SampledTokens]:
        assert len(generators) == len(self._rows)
        sampled = []
        for row in self._rows:
            answer = self._answers[row[-2]][:max_new_tokens]
            row.extend(answer)
            finish = Finish.END if answer[-1] == 1 else Finish.LENGTH
            sampled.append(SampledTokens(answer, tuple(-0.5 - n for n in range(len(answer))), finish))
        self._log.append([tuple(row) for row in self._rows])
        return sampled


Answer = tuple[str, float, str]
"""What a scripted environment answers: text, reward, and one of going, won, lost, truncated."""


@dataclass
class ScriptedEnv:
    """Plays the script that stands in the game's spec; ``raise`` and ``hang`` are answers too."""

    scripts: Mapping[str, Sequence[Answer]]
    actions: list[tuple[str, str]] = field(default_factory=list)
    _game: str = ""
    _at: int = 0

    def reset(self, game: Game, seed: int) -> Observation:
        self._game, self._at = game.spec, 0
        return self._look("start room" if self._misbehave("reset") else "")

    def step(self, action: str) -> StepResult:
        self.actions.append((self._game, action))
        text, reward, ending = self.scripts[self._game][self._at]
        self._misbehave(text)
        self._at += 1
        won = ending == "won"
        return StepResult(
            self._look(text),
            reward,
            terminated=ending in ("won", "lost"),
            truncated=ending == "truncated",
            info={"won": won, "task_score": 1.0 if won else 0.25},
        )

    def close(self) -> None:
        pass

    def _look(self, text: str) -> Observation:
        return Observation(text, ("go", "win", "help"))

    def _misbehave(self, text: str) -> bool:
        if text == "raise" or (text == "reset" and self._game == "broken"):
            raise ZeroDivisionError("the kitchen is on fire")
        if text == "hang":
            time.sleep(30.0)
        return True


def game(spec: str, max_steps: int = 9) -> Game:
    """A game of a fake environment."""
    return Game(f"id-{spec}", "fake", "train", "fake", spec, max_steps)


class IdentityEnv:
    """Shows a word; the same word wins, anything else goes on, or loses in the last turn.

    Args:
        turns: Answers until the episode is lost.
    """

    def __init__(self, turns: int = 1) -> None:
        self._turns = turns
        self._word = ""
        self._left = 0

    def reset(self, game: Game, seed: int) -> Observation:
        self._word, self._left = game.spec, self._turns
        return Observation(self._word, (self._word,))

    def step(self, action: str) -> StepResult:
        self._left -= 1
        won = action == self._word
        done = won or self._left == 0
        return StepResult(
            Observation("won" if won else self._word, (self._word,)),
            float(won),
            terminated=done,
            truncated=False,
            info={"won": won, "task_score": float(won)},
        )

    def close(self) -> None:
        pass


def word_chat() -> ChatMarkup:
    """Markup over the word tokenizer."""
    return ChatMarkup(word_tokenizer())


def adapters(rank: int = 4, **settings: Any) -> LoraSettings:
    """Small adapters."""
    return LoraSettings(rank=rank, alpha=2.0 * rank, **settings)
