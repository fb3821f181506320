"""The one loop between environment, prompt and sampler."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from envrl.envs.base import was_admissible
from envrl.envs.pool import Pool
from envrl.envs.slots import SlotResult
from envrl.errors import PolicyFault
from envrl.policy.chat import ChatMarkup
from envrl.policy.sampler import SampledTokens, SamplerSession
from envrl.prompts.parse import ParsedAction
from envrl.rollout.conversation import CollectorSettings, Conversation, read_answer
from envrl.seeding import generator
from envrl.types import Game, Generation, StepResult, StopReason, Trajectory, Transition

__all__ = ["Collector", "CollectorSettings", "EpisodePlan", "SessionFactory"]

_ROUNDING = 1e-3

SessionFactory = Callable[[int], SamplerSession]
"""Opens a sampler session for a number of rows, on the policy's current weights."""


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """One episode to play: its game and the seed of everything random in it."""

    game: Game
    seed: int


@dataclass
class _Live:
    """An episode being played."""

    index: int
    slot: int
    plan: EpisodePlan
    rng: np.random.Generator
    conversation: Conversation
    transitions: list[Transition] = field(default_factory=list)


class Collector:
    """Plays episodes in lockstep: every live episode writes one answer, then every environment steps.

    An episode that ends makes room for one that waits; if none does, its row leaves the batch. An
    environment that raises or hangs ends its own episode with :attr:`StopReason.ENV_FAULT` and a text of
    what happened.

    Args:
        pool: Environments; its size bounds how many episodes are played at once.
        chat: Markup and tokenizer.
        settings: Prompts, sampling and layout.
    """

    def __init__(self, pool: Pool, chat: ChatMarkup, settings: CollectorSettings) -> None:
        self._pool = pool
        self._chat = chat
        self._settings = settings

    def collect(
        self,
        plans: Sequence[EpisodePlan],
        open_session: SessionFactory,
        *,
        temperature: float,
        policy_version: int,
    ) -> list[Trajectory]:
        """Plays every plan once; the result is in the order of the plans.

        Args:
            plans: Episodes to play.
            open_session: Sampler on the current weights.
            temperature: Softmax temperature, 0 = greedy.
            policy_version: Optimiser updates the sampling weights have seen.
        """
        done: dict[int, Trajectory] = {}
        waiting = deque(enumerate(plans))
        begun = (self._begin(slot, waiting, done) for slot in range(min(len(self._pool), len(plans))))
        live = [episode for episode in begun if episode is not None]
        session: SamplerSession | None = None
        while live:
            if session is None:
                session = open_session(len(live))
                session.append([episode.conversation.context.token_ids for episode in live])
            answers = session.sample(
                [e.rng for e in live], temperature, self._settings.sampling.max_new_tokens
            )
            _refuse_impossible(answers)
            blocks = self._advance(live, answers, policy_version, done)
            live = self._go_on(session, live, blocks, waiting, done)
        return [done[i] for i in range(len(plans))]

    def _go_on(
        self,
        session: SamplerSession,
        live: Sequence[_Live],
        blocks: Sequence[tuple[int, ...] | None],
        waiting: deque[tuple[int, EpisodePlan]],
        done: dict[int, Trajectory],
    ) -> list[_Live]:
        """Gives the session what comes next: answers of environments, and episodes in place of ended ones.

        Returns:
            The episodes of the session's rows.
        """
        kept: list[int] = []
        going: list[_Live] = []
        begun: list[int] = []
        for row, (episode, block) in enumerate(zip(live, blocks, strict=True)):
            following = episode if block is not None else self._begin(episode.slot, waiting, done)
            if following is None:
                continue
            if following is not episode:
                begun.append(len(going))
            kept.append(row)
            going.append(following)
        if not going:
            return going
        if len(going) < len(live):
            session.keep(kept)
        if self._settings.keeps_cache:
            session.append([blocks[row] or () for row in kept])
            if begun:
                session.rewrite([going[place].conversation.context.token_ids for place in begun], begun)
        else:
            session.rewrite([episode.conversation.context.token_ids for episode in going])
        return going

    def _begin(
        self, slot: int, waiting: deque[tuple[int, EpisodePlan]], done: dict[int, Trajectory]
    ) -> _Live | None:
        """The next episode that can be played, in a slot that is free; None if there is no more."""
        while waiting:
            index, plan = waiting.popleft()
            result = self._pool.reset(slot, plan.game, plan.seed)
            if result.fault is not None or result.observation is None:
                done[index] = _trajectory(plan, (), StopReason.ENV_FAULT, result)
                continue
            conversation = Conversation(self._chat, self._settings, result.observation)
            if conversation.fits:
                return _Live(index, slot, plan, generator(plan.seed, "sampler"), conversation)
            done[index] = _trajectory(plan, (), StopReason.TOKEN_LIMIT, result)
        return None

    def _advance(
        self,
        live: Sequence[_Live],
        answers: Sequence[SampledTokens],
        policy_version: int,
        done: dict[int, Trajectory],
    ) -> list[tuple[int, ...] | None]:
        """Steps the environments; for each episode the tokens to append next, None where it ended."""
        parsed = [read_answer(a, self._chat, self._settings.prompt) for a in answers]
        results = self._pool.step([e.slot for e in live], [p.action or "" for p in parsed])
        blocks: list[tuple[int, ...] | None] = []
        for episode, answer, action, result in zip(live, answers, parsed, results, strict=True):
            conversation = episode.conversation
            if result.fault is not None or result.step is None:
                stop: StopReason | None = StopReason.ENV_FAULT
            else:
                lived = _transition(conversation, answer, action, result.step, policy_version)
                episode.transitions.append(lived)
                stop = result.step.stop
            block = None
            if stop is None and result.step is not None:
                block = conversation.go_on(answer, action.action, result.step.observation)
                stop = None if conversation.fits else StopReason.TOKEN_LIMIT
            if stop is not None:
                done[episode.index] = _trajectory(episode.plan, tuple(episode.transitions), stop, result)
                block = None
            blocks.append(block)
        return blocks


def _transition(
    conversation: Conversation,
    answer: SampledTokens,
    action: ParsedAction,
    step: StepResult,
    policy_version: int,
) -> Transition:
    """One turn of an episode, before the conversation goes on."""
    generation = Generation(
        conversation.context.token_ids,
        conversation.context.roles,
        answer.token_ids,
        answer.logprobs,
        answer.finish,
        policy_version,
    )
    return Transition(
        conversation.current,
        generation,
        action.action,
        action.format_valid,
        was_admissible(action.action, conversation.current, step),
        step.reward,
        step.observation,
    )


def _refuse_impossible(answers: Sequence[SampledTokens]) -> None:
    """Stops before an update learns from log-probabilities that are none, whoever gave them.

    Raises:
        PolicyFault: A number is missing, not finite or above 0.
    """
    for answer in answers:
        if len(answer.logprobs) != len(answer.token_ids):
            raise PolicyFault(
                f"the sampler gives {len(answer.logprobs)} log-probabilities for {len(answer.token_ids)} "
                "tokens; it must give one for each token that it drew"
            )
        for value in answer.logprobs:
            # NaN is not smaller than anything. Rounding may lift a certain token's a hair above 0.
            if value is None or not -math.inf < value < _ROUNDING:
                raise PolicyFault(
                    f"the sampler gives {value} as a log-probability of a token it drew, which is none; if "
                    "the weights have diverged, lower optim.lr or use a wider policy.dtype; otherwise repair "
                    "the sampler"
                )


def _trajectory(
    plan: EpisodePlan, transitions: tuple[Transition, ...], stop: StopReason, result: SlotResult
) -> Trajectory:
    info = result.step.info if result.step is not None else {}
    return Trajectory(
        plan.game.game_id,
        plan.game.family,
        plan.seed,
        transitions,
        stop,
        stop is StopReason.WON,
        float(info.get("task_score", 0.0)),
        str(result.fault) if result.fault is not None else None,
    )
