"""Chat markup: tokens are made once, and a template that would make them anew is refused."""

import numpy as np
import pytest

from envrl.envs.pool import EnvPool
from envrl.errors import PolicyFault
from envrl.policy.chat import ChatMarkup
from envrl.policy.model import Policy
from envrl.policy.sampler import CachedSession, SampledTokens
from envrl.policy.settings import SamplingSettings
from envrl.policy.tokenizer import names_in, phrases_in, train_tokenizer
from envrl.prompts.settings import PromptSettings
from envrl.rollout.collector import Collector, CollectorSettings, EpisodePlan
from envrl.rollout.rows import policy_rows
from envrl.rollout.settings import AuxiliaryRows, RolloutSettings
from envrl.types import FollowUp, Group, Message, Role, StopReason
from support import (
    CHATML,
    ScriptedEnv,
    chatml_tokenizer,
    checkpoint,
    game,
    game_texts,
    nudge,
    policy_of,
    word_tokenizer,
)


def chatml_markup(template: str = CHATML) -> ChatMarkup:
    return ChatMarkup(chatml_tokenizer(template))


def raw(chat: ChatMarkup, ids: tuple[int, ...]) -> str:
    return str(chat.tokenizer.decode(list(ids)))


def test_the_markup_of_qwen_around_a_growing_conversation() -> None:
    chat = chatml_markup()
    opening = chat.opening(Message("user", "look around"))
    assert raw(chat, opening.token_ids) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nlook around<|im_end|>\n<|im_start|>assistant\n"
    )
    turn = chat.later_turn(FollowUp("You see a mug.", "\nWhat now?"), answer_ended=True)
    assert raw(chat, turn.token_ids) == (
        "\n<|im_start|>user\nYou see a mug.\nWhat now?<|im_end|>\n<|im_start|>assistant\n"
    )
    seen = [t for t, r in zip(turn.token_ids, turn.roles, strict=True) if r == Role.OBSERVATION]
    assert raw(chat, tuple(seen)) == "You see a mug."
    cut = chat.later_turn(FollowUp("You see a mug.", ""), answer_ended=False)
    assert raw(chat, cut.token_ids).startswith("<|im_end|>\n<|im_start|>user\nYou see")
    last = chat.last_observation("Done.", answer_ended=False)
    assert raw(chat, last.token_ids) == "<|im_end|>\n<|im_start|>user\nDone."
    assert last.roles[-1] == Role.OBSERVATION
    answered = chat.answered(Message("user", "which?"), "open fridge 1", Role.ACTION)
    assert raw(chat, answered.token_ids).endswith("assistant\nopen fridge 1<|im_end|>")
    assert answered.token_ids[-1] == chat.end_id == chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert answered.roles.count(Role.ACTION) == 1 + len(chat.encode("open fridge 1"))


REWRITES = (
    # keeps only the last message
    "{{ '<|im_start|>' + messages[-1]['content'] + '<|im_end|>' }}",
    # drops what earlier answers said
    "{% for m in messages %}{{ '<|im_start|>' + (m['content'] if m['role'] == 'user' else '') + "
    "'<|im_end|>' }}{% endfor %}",
    # numbers the turns, so a first turn looks different once others follow
    "{{ messages | length }}{% for m in messages %}{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}",
)


@pytest.mark.parametrize("template", REWRITES)
def test_a_template_that_rewrites_earlier_turns_is_refused_for_transcripts(template: str) -> None:
    chat = chatml_markup(template)
    with pytest.raises(PolicyFault, match=r"rollout\.layout: steps"):
        chat.later_turn(FollowUp("You see a mug.", ""), answer_ended=True)
    # One prompt, one answer: nothing earlier that could be rewritten.
    assert chat.opening(Message("user", "look around")).token_ids


@pytest.mark.parametrize(
    ("start", "written"),
    [
        (
            "\n {{ 'Today ' + strftime_now('%A %Y-%m-%d %H:%M:%S.%f') }}",
            "\n Today Friday 2024-07-26 00:00:00.000000",
        ),
        # How Llama 3.2 comes by its date.
        (
            "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
            "{%- endif %}{{- 'Today Date: ' + date_string }}",
            "Today Date: 26 Jul 2024",
        ),
    ],
)
def test_prompts_do_not_depend_on_the_clock(start: str, written: str) -> None:
    chat = chatml_markup(start + CHATML)
    opening = chat.opening(Message("user", "go"))
    assert raw(chat, opening.token_ids).startswith(written + "<|im_start|>")
    assert chat.opening(Message("user", "go")) == opening
    # Two renderings that differ would look like a template that rewrites earlier turns.
    chat.later_turn(FollowUp("You are in a room.", ""), answer_ended=True)


def test_a_template_whose_end_of_turn_is_another_token_is_refused() -> None:
    chat = chatml_markup(CHATML.replace("message.content + '<|im_end|>'", "message.content + '<|im_start|>'"))
    with pytest.raises(PolicyFault, match="eos_token"):
        chat.later_turn(FollowUp("You see a mug.", ""), answer_ended=True)


def test_tokenizers_without_template_end_or_letters_are_refused() -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(PolicyFault, match="no chat template"):
        ChatMarkup(tokenizer)
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(PolicyFault, match="no eos_token"):
        ChatMarkup(tokenizer)


def test_the_loaded_tokenizer_is_the_trained_one() -> None:
    """Its text must become the same tokens in pretraining and afterwards."""
    trained = train_tokenizer(game_texts(), vocabulary=400, phrases=60)
    loaded = policy_of(checkpoint()).chat
    for text in game_texts():
        assert loaded.encode(text) == trained.encode(text, add_special_tokens=False)
    # One token a number: transformers' own rules for this type of model would make two.
    assert len(loaded.encode("countertop 1")) == 2


def test_texts_survive_the_tokenizer() -> None:
    chat = policy_of(checkpoint()).chat
    for text in game_texts():
        assert chat.decode(chat.encode(text)) == text
    assert chat.decode([*chat.encode("open fridge 1"), chat.end_id]) == "open fridge 1"
    # The model's vocabulary is rounded up; such a token has no text.
    assert chat.decode([*chat.encode("open fridge 1"), 447]) == "open fridge 1"


class Witness:
    """A session that records every token it is given and every token it writes, anew for a rewritten row."""

    def __init__(self, inner: CachedSession, rows: int, log: dict[int, list[int]]) -> None:
        self._inner, self._log = inner, log
        self._name(rows)

    def _name(self, rows: int) -> None:
        self._names = [len(self._log) + n for n in range(rows)]
        self._log.update({name: [] for name in self._names})

    def rewrite(self, prompts: list[list[int]]) -> None:
        self._inner.rewrite(prompts)
        self._name(len(prompts))
        for name, prompt in zip(self._names, prompts, strict=True):
            self._log[name].extend(prompt)

    def append(self, blocks: list[list[int]]) -> None:
        self._inner.append(blocks)
        for name, block in zip(self._names, blocks, strict=True):
            self._log[name].extend(block)

    def sample(
        self, generators: list[np.random.Generator], temperature: float, most: int
    ) -> list[SampledTokens]:
        answers = self._inner.sample(generators, temperature, most)
        for name, answer in zip(self._names, answers, strict=True):
            self._log[name].extend(answer.token_ids)
        return answers

    def keep(self, rows: list[int]) -> None:
        self._inner.keep(rows)
        self._names = [self._names[r] for r in rows]


@pytest.fixture(scope="module")
def policy() -> Policy:
    loaded = policy_of(checkpoint())
    nudge(loaded)
    return loaded


@pytest.mark.parametrize("layout", ["transcript", "steps"])
def test_rows_hold_exactly_the_tokens_the_sampler_saw_and_wrote(policy: Policy, layout: str) -> None:
    texts = [t for t in game_texts() if t.startswith("You arrive")]
    scripts = {
        "long": [(t, 0.0, "") for t in texts[:3]] + [("last", 1.0, "won")],
        "short": [(texts[3], 0.0, ""), ("last", 0.0, "lost")],
    }
    plans = [EpisodePlan(game(name), seed) for seed, name in enumerate(("long", "short", "long", "short"))]
    log: dict[int, list[int]] = {}
    settings = CollectorSettings(
        PromptSettings(), SamplingSettings(max_new_tokens=4, max_context=400), layout
    )
    collector = Collector(EnvPool(lambda: ScriptedEnv(scripts), 4), policy.chat, settings)
    model = policy.sampling_model()
    played = collector.collect(
        plans,
        lambda rows: Witness(CachedSession(model, rows, policy.chat.end_id), rows, log),
        temperature=1.0,
        policy_version=0,
    )
    assert [len(t.transitions) for t in played] == [4, 2, 4, 2]
    auxiliary = AuxiliaryRows(skip_terminal=True)
    rows = policy_rows(
        [Group(game("long"), tuple(played))], policy.chat, RolloutSettings(layout=layout), auxiliary
    )
    assert sorted(r.token_ids for r in rows) == sorted(tuple(ids) for ids in log.values())
    # Random tokens seldom are what the text they spell would be encoded as.
    written = [tr.generation.token_ids for t in played for tr in t.transitions]
    assert any(tuple(policy.chat.encode(policy.chat.decode(ids))) != ids for ids in written)
    assert {t.stop for t in played} == {StopReason.WON, StopReason.LOST}


TEXTS = [f"You arrive at drawer {n}. On the drawer {n}, you see a mug {n}." for n in range(1, 30)]


def test_names_and_phrases_of_the_tokenizer() -> None:
    assert names_in(TEXTS) == ("drawer", "mug")
    # The texts split at the names and their numbers.
    # What stands between names and their numbers, 29 times each, in the order of the letters.
    assert phrases_in(TEXTS, names_in(TEXTS), 10) == (", you see a ", ". On the ", "You arrive at ")
    assert phrases_in(TEXTS, names_in(TEXTS), 10, least=30) == ()


def test_phrases_and_names_are_single_tokens_and_training_is_repeatable() -> None:
    tokenizer = train_tokenizer(TEXTS, vocabulary=300, phrases=10)
    pieces = [
        tokenizer.decode([t]) for t in tokenizer.encode("You arrive at drawer 2. On the drawer 2, you see a ")
    ]
    assert pieces == ["You arrive at ", "drawer", " 2", ". On the ", "drawer", " 2", ", you see a "]
    assert tokenizer.get_vocab() == train_tokenizer(TEXTS, vocabulary=300, phrases=10).get_vocab()


def test_without_capitals_a_word_is_the_same_tokens_wherever_it_stands() -> None:
    texts = ["find me a Red Mug", "'Buy Now' [SEP] 'Red Mug'", "click[buy now]"] * 9
    phrases = ("find me", "' [sep] '", "click[buy now]")
    tokenizer = train_tokenizer(texts, vocabulary=320, phrases=phrases, cased=False)
    assert tokenizer.encode("find me a Red MUG") == tokenizer.encode("FIND ME a red mug")
    single = [tokenizer.encode(piece) for piece in ("Find Me", "' [SEP] '", "click[Buy Now]")]
    assert [len(ids) for ids in single] == [1, 1, 1]
    assert tokenizer.decode(tokenizer.encode("'Buy Now' [SEP] 'Red Mug'")) == "'buy now' [sep] 'red mug'"
    kept = train_tokenizer(texts, vocabulary=320, phrases=("find me",))
    assert kept.decode(kept.encode("Red Mug")) == "Red Mug"
