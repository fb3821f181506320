"""Chat markup of a tokenizer: prompts and later turns as token ids, made once and with roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from envrl.errors import PolicyFault
from envrl.types import FollowUp, Message, Role

_MOST_REMEMBERED = 20_000
_ANSWER, _NEXT, _FIRST = "ANSWERMARK", "NEXTMARK", "FIRSTMARK"
_TODAY = datetime(2024, 7, 26)
"""The date for templates that write one: that of Llama's templates where they know no clock."""
_DIRECTIVES = "a A b B c d -d e f F H I j m -m M p S T w x X y Y"
# transformers hands no function on to a template, so a macro takes the place of the one that it offers. The
# line break at its end is what Jinja drops behind a block: the template itself begins as it did.
_CLOCK = (
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(f" | replace('%{d}', '{_TODAY.strftime('%' + d)}')" for d in _DIRECTIVES.split())
    + " -}}{%- endmacro %}\n"
)


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Token ids with the role of each."""

    token_ids: tuple[int, ...]
    roles: bytes

    def __add__(self, other: TokenSpan) -> TokenSpan:
        return TokenSpan(self.token_ids + other.token_ids, self.roles + other.roles)


def span(token_ids: Sequence[int], role: Role) -> TokenSpan:
    """A span in which every token has the same role."""
    return TokenSpan(tuple(token_ids), bytes([role]) * len(token_ids))


class ChatMarkup:
    """Turns messages into token ids with the tokenizer's own chat template.

    A template that writes today's date gets 26 July 2024 on every day: a run that is resumed on another day
    makes the same prompts, and a conversation that lasts past midnight keeps its own.

    Args:
        tokenizer: A tokenizer with a chat template and an end-of-turn token (``eos_token``).

    Raises:
        PolicyFault: The tokenizer has no chat template or no end-of-turn token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise PolicyFault(
                f"the tokenizer of '{tokenizer.name_or_path}' has no chat template; "
                "use an instruction-tuned model or set tokenizer.chat_template"
            )
        if tokenizer.eos_token_id is None:
            raise PolicyFault(f"the tokenizer of '{tokenizer.name_or_path}' has no eos_token (end of turn)")
        if not tokenizer.encode("look", add_special_tokens=False):
            raise PolicyFault(
                f"the tokenizer of '{tokenizer.name_or_path}' knows no letters: its files are missing or "
                "empty; save the tokenizer beside the model"
            )
        self.tokenizer = tokenizer
        self.end_id = int(tokenizer.eos_token_id)
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id)
        self._turn: tuple[str, str] | None = None
        self._encoded: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain piece of text, without markup."""
        known = self._encoded.get(text)
        if known is None:
            known = tuple(self.tokenizer.encode(text, add_special_tokens=False))
            # Games repeat themselves: markup in every turn, observations across the episodes of a group.
            if len(self._encoded) >= _MOST_REMEMBERED:
                self._encoded.clear()
            self._encoded[text] = known
        return list(known)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def decode_all(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special tokens included, nothing tidied up."""
        return str(
            self.tokenizer.decode(
                list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def opening(self, message: Message) -> TokenSpan:
        """A conversation's first user turn, up to where the assistant begins to write."""
        return span(self.encode(self._template([message], generate=True)), Role.PROMPT)

    def later_turn(self, turn: FollowUp, *, answer_ended: bool) -> TokenSpan:
        """What follows the assistant's tokens: a user turn, up to where the assistant writes again.

        Args:
            turn: The observation and what is said after it.
            answer_ended: The generation ended with the end-of-turn token (it is not repeated).
        """
        before, after = self._turn_markup()
        if answer_ended:
            end = str(self.tokenizer.eos_token)
            before = before.removeprefix(end)
        return (
            span(self.encode(before), Role.PROMPT)
            + span(self.encode(turn.observation), Role.OBSERVATION)
            + span(self.encode(turn.appendix + after), Role.PROMPT)
        )

    def last_observation(self, text: str, *, answer_ended: bool) -> TokenSpan:
        """An episode's final observation, for state prediction only (nothing is asked after it)."""
        before, _ = self._turn_markup()
        if answer_ended:
            before = before.removeprefix(str(self.tokenizer.eos_token))
        return span(self.encode(before), Role.PROMPT) + span(self.encode(text), Role.OBSERVATION)

    def answered(self, message: Message, target: str, role: Role) -> TokenSpan:
        """A question followed by its true answer and the end-of-turn token, both in ``role``."""
        return self.opening(message) + span([*self.encode(target), self.end_id], role)

    def _template(self, messages: Sequence[Message], *, generate: bool) -> str:
        chat = [{"role": m.role, "content": m.content} for m in messages]
        template = self.tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _CLOCK + template
        text = self.tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, add_generation_prompt=generate
        )
        return str(text)

    def _turn_markup(self) -> tuple[str, str]:
        """Markup between an answer and the next observation, and between that and the next answer."""
        if self._turn is None:
            first, answer = Message("user", _FIRST), Message("assistant", _ANSWER)
            whole = self._template([first, answer, Message("user", _NEXT)], generate=True)
            head, found_answer, rest = whole.partition(_ANSWER)
            before, found_next, after = rest.partition(_NEXT)
            if not (found_answer and found_next) or head != self._template([first], generate=True):
                raise PolicyFault(
                    f"the chat template of '{self.tokenizer.name_or_path}' rewrites earlier turns, so a "
                    "growing conversation would not match its own tokens; use rollout.layout: steps"
                )
            if not before.startswith(str(self.tokenizer.eos_token)):
                raise PolicyFault(
                    f"the chat template of '{self.tokenizer.name_or_path}' ends an answer with "
                    f"{before!r:.40}, not with the eos_token {self.tokenizer.eos_token!r} that sampling "
                    "stops at; set the tokenizer's eos_token to its end-of-turn token"
                )
            self._turn = (before, after)
        return self._turn
