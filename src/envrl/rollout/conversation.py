"""What a policy is shown in one episode, and how its answers are read: the loop's side of the policy.

The collector plays many episodes by it in lockstep, ``envrl.play`` one at a person's pace; so both ask a
policy in the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from envrl.policy.chat import ChatMarkup, TokenSpan, span
from envrl.policy.sampler import SampledTokens, SamplingSettings
from envrl.prompts.parse import ParsedAction, parse_action
from envrl.prompts.render import PastStep, follow_up, opening_message, step_message
from envrl.prompts.settings import PromptSettings
from envrl.types import Finish, Observation, Role


@dataclass(frozen=True)
class CollectorSettings:
    """What the loop needs to know: prompts, sampling, layout."""

    prompt: PromptSettings
    sampling: SamplingSettings
    layout: str

    @property
    def keeps_cache(self) -> bool:
        """One sampler session serves a whole episode, because its conversation only grows."""
        return self.layout == "transcript"


def read_answer(answer: SampledTokens, chat: ChatMarkup, prompt: PromptSettings) -> ParsedAction:
    """The command in what a policy wrote."""
    text = chat.decode(answer.token_ids)
    return parse_action(text, prompt.form, tail_characters=prompt.wording.tail_characters)


class Conversation:
    """One episode in the tokens of its prompts.

    Args:
        chat: Markup and tokenizer.
        settings: Prompts, sampling and layout.
        initial: The episode's first observation.

    Attributes:
        current: What the policy has to act on.
        context: Every token it sees for that.
    """

    def __init__(self, chat: ChatMarkup, settings: CollectorSettings, initial: Observation) -> None:
        self._chat = chat
        self._settings = settings
        self._initial = self.current = initial
        self._past: list[PastStep] = []
        prompt = settings.prompt
        if settings.keeps_cache:
            self.context: TokenSpan = chat.opening(opening_message(prompt, initial))
        else:
            self.context = chat.opening(step_message(prompt, initial, (), initial))

    @property
    def fits(self) -> bool:
        """Whether a whole answer still fits behind the prompt."""
        sampling = self._settings.sampling
        return len(self.context.token_ids) + sampling.max_new_tokens <= sampling.max_context

    def go_on(self, answer: SampledTokens, action: str | None, observation: Observation) -> tuple[int, ...]:
        """Takes in a step.

        Args:
            answer: What was written.
            action: The command read from it.
            observation: What the environment answered.

        Returns:
            The tokens to append to a session that has just sampled the answer (``keeps_cache``), or else
            to a new one.
        """
        prompt = self._settings.prompt
        if self._settings.keeps_cache:
            turn = self._chat.later_turn(
                follow_up(prompt, observation), answer_ended=answer.finish is Finish.END
            )
            self.context = self.context + span(answer.token_ids, Role.ACTION) + turn
            block = turn.token_ids
        else:
            self._past.append(PastStep(self.current.text, action or ""))
            message = step_message(prompt, self._initial, self._past, observation)
            self.context = self._chat.opening(message)
            block = self.context.token_ids
        self.current = observation
        return block
