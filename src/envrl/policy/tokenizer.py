"""The embedded policy's tokenizer: byte-level BPE plus the phrases of the environment's own texts.

Environment texts are a few phrases around names of things ("You arrive at X. On the X, you see a Y").
Each phrase between two names becomes one token, names stay apart from their numbers, so a sentence is
about half as long as in plain BPE and a name looks the same in the task and in an observation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_NUMBERED = re.compile(r"\b([a-z]+) \d+\b")


def names_in(texts: Iterable[str]) -> tuple[str, ...]:
    """Words that occur with a number behind them ("drawer 3"), longest first, then by letter."""
    found = {match for text in texts for match in _NUMBERED.findall(text)}
    return tuple(sorted(found, key=lambda name: (-len(name), name)))


def phrases_in(texts: Sequence[str], names: Sequence[str], count: int, least: int = 20) -> tuple[str, ...]:
    """The most frequent pieces of text between names, at least ``least`` occurrences and 3 characters.

    Ties are broken by the text itself, so the result depends on nothing but the arguments.
    """
    between = re.compile(r"(?<![a-z])(?:" + "|".join(map(re.escape, names)) + r")(?: \d+)?(?![a-z\d])")
    pieces: Counter[str] = Counter()
    for text in texts:
        pieces.update(line for piece in between.split(text) for line in piece.split("\n"))
    usable = [(n, piece) for piece, n in pieces.items() if n >= least and 3 <= len(piece) <= 90]
    return tuple(piece for _, piece in sorted(usable, key=lambda item: (-item[0], item[1]))[:count])


def train_tokenizer(
    texts: Sequence[str],
    *,
    vocabulary: int = 1024,
    phrases: int | Sequence[str] = 300,
    cased: bool = True,
) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on environment texts.

    Args:
        texts: Observations, tasks and commands.
        vocabulary: Entries of the BPE part, the 256 bytes and the markup tokens included.
        phrases: Phrases that become tokens of their own on top of that; a number finds the most
            frequent ones between numbered names.
        cased: Whether capitals are kept. Without them a word is the same tokens in a title, a task and a
            command, and texts come back in small letters.

    Returns:
        A tokenizer with a chat template whose end-of-turn token is its ``eos_token``.
    """
    names = names_in(texts) if isinstance(phrases, int) else ()
    chosen = phrases_in(texts, names, phrases) if isinstance(phrases, int) else phrases
    core = Tokenizer(models.BPE())
    if not cased:
        core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Names are counted alone as well, so each of them becomes one token without a blank before it.
    core.train_from_iterator([*texts, *(name for name in names for _ in range(1000))], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=END)
    tokenizer.add_tokens([AddedToken(piece, normalized=not cased) for piece in chosen])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
