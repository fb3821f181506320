"""The one loop between environment, prompt and sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from envrl.envs.pool import EnvPool
from envrl.envs.slots import SlotResult
from envrl.policy.chat import ChatMarkup, TokenSpan
from envrl.policy.sampler import SampledTokens, SamplerSession, SamplingSettings
from envrl.prompts.parse import parse_action
from envrl.prompts.render import PastStep, follow_up, opening_message, step_message
from envrl.prompts.settings import PromptSettings
from envrl.seeding import generator
from envrl.types import (
    Finish,
    Game,
    Generation,
    Message,
    Observation,
    Role,
    StepResult,
    StopReason,
    Trajectory,
    Transition,
)

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

    slot: int
    plan: EpisodePlan
    rng: np.random.Generator
    initial: Observation
    current: Observation
    context: TokenSpan
    transitions: list[Transition] = field(default_factory=list)
    past: list[PastStep] = field(default_factory=list)


@dataclass(frozen=True)
class CollectorSettings:
    """What the loop needs to know: prompts, sampling, layout."""

    prompt: PromptSettings
    sampling: SamplingSettings
    layout: str


class Collector:
    """Plays episodes in lockstep: every live episode writes one answer, then every environment steps.

    Finished episodes leave the batch, so they cost nothing. An environment that raises or hangs ends
    its own episode with :attr:`StopReason.ENV_FAULT` and a text of what happened.

    Args:
        pool: Environments; its size bounds how many episodes are played at once.
        chat: Markup and tokenizer.
        settings: Prompts, sampling and layout.
    """

    def __init__(self, pool: EnvPool, chat: ChatMarkup, settings: CollectorSettings) -> None:
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
        for start in range(0, len(plans), len(self._pool)):
            wave = plans[start : start + len(self._pool)]
            for index, trajectory in self._play(wave, open_session, temperature, policy_version).items():
                done[start + index] = trajectory
        return [done[i] for i in range(len(plans))]

    def _play(
        self,
        plans: Sequence[EpisodePlan],
        open_session: SessionFactory,
        temperature: float,
        policy_version: int,
    ) -> dict[int, Trajectory]:
        done: dict[int, Trajectory] = {}
        live = self._begin(plans, done)
        keeps_cache = self._settings.layout == "transcript"
        session = open_session(len(live)) if live and keeps_cache else None
        fresh = [episode.context.token_ids for episode in live]
        while live:
            if session is None or not keeps_cache:
                session = open_session(len(live))
            session.append(fresh)
            answers = session.sample(
                [e.rng for e in live], temperature, self._settings.sampling.max_new_tokens
            )
            blocks = self._advance(live, answers, policy_version, done)
            kept = [i for i, block in enumerate(blocks) if block is not None]
            if keeps_cache and 0 < len(kept) < len(live):
                session.keep(kept)
            live = [live[i] for i in kept]
            fresh = [block for block in blocks if block is not None]
        return done

    def _begin(self, plans: Sequence[EpisodePlan], done: dict[int, Trajectory]) -> list[_Live]:
        live = []
        for slot, plan in enumerate(plans):
            result = self._pool.reset(slot, plan.game, plan.seed)
            if result.fault is not None or result.observation is None:
                done[slot] = _trajectory(plan, (), StopReason.ENV_FAULT, result)
                continue
            first = result.observation
            context = self._chat.opening(self._first_message(first))
            if not self._fits(context):
                done[slot] = _trajectory(plan, (), StopReason.TOKEN_LIMIT, result)
                continue
            live.append(_Live(slot, plan, generator(plan.seed, "sampler"), first, first, context))
        return live

    def _first_message(self, first: Observation) -> Message:
        if self._settings.layout == "transcript":
            return opening_message(self._settings.prompt, first)
        return step_message(self._settings.prompt, first, (), first)

    def _advance(
        self,
        live: Sequence[_Live],
        answers: Sequence[SampledTokens],
        policy_version: int,
        done: dict[int, Trajectory],
    ) -> list[tuple[int, ...] | None]:
        """Steps the environments; for each episode the tokens to append next, None where it ended."""
        prompt = self._settings.prompt
        tail = prompt.wording.tail_characters
        parsed = [
            parse_action(self._chat.decode(a.token_ids), prompt.form, tail_characters=tail) for a in answers
        ]
        results = self._pool.step([e.slot for e in live], [p.action or "" for p in parsed])
        blocks: list[tuple[int, ...] | None] = []
        for episode, answer, action, result in zip(live, answers, parsed, results, strict=True):
            if result.fault is not None or result.step is None:
                stop: StopReason | None = StopReason.ENV_FAULT
            else:
                generation = Generation(
                    episode.context.token_ids,
                    episode.context.roles,
                    answer.token_ids,
                    answer.logprobs,
                    answer.finish,
                    policy_version,
                )
                episode.transitions.append(
                    Transition(
                        episode.current,
                        generation,
                        action.action,
                        action.format_valid,
                        _admissible(action.action, episode.current, result.step),
                        result.step.reward,
                        result.step.observation,
                    )
                )
                stop = _stop_reason(result)
            block = None
            if stop is None:
                block, stop = self._continue(episode, answer, result)
            if stop is not None:
                done[episode.slot] = _trajectory(episode.plan, tuple(episode.transitions), stop, result)
                block = None
            blocks.append(block)
        return blocks

    def _continue(
        self, episode: _Live, answer: SampledTokens, result: SlotResult
    ) -> tuple[tuple[int, ...] | None, StopReason | None]:
        """Next prompt tokens of an episode that goes on, or TOKEN_LIMIT if they don't fit."""
        assert result.step is not None
        observation = result.step.observation
        if self._settings.layout == "transcript":
            turn = self._chat.later_turn(
                follow_up(self._settings.prompt, observation), answer_ended=answer.finish is Finish.END
            )
            written = TokenSpan(answer.token_ids, _action_roles(answer))
            episode.context = episode.context + written + turn
            block = turn.token_ids
        else:
            episode.past.append(PastStep(episode.current.text, episode.transitions[-1].action or ""))
            message = step_message(self._settings.prompt, episode.initial, episode.past, observation)
            episode.context = self._chat.opening(message)
            block = episode.context.token_ids
        episode.current = observation
        if not self._fits(episode.context):
            return None, StopReason.TOKEN_LIMIT
        return block, None

    def _fits(self, context: TokenSpan) -> bool:
        """Whether a whole answer still fits behind the prompt."""
        sampling = self._settings.sampling
        return len(context.token_ids) + sampling.max_new_tokens <= sampling.max_context


def _admissible(action: str | None, current: Observation, step: StepResult) -> bool:
    """What the environment says, where a list can't name every admissible action (a search has any words)."""
    return bool(step.info.get("admissible", action in current.admissible))


def _action_roles(answer: SampledTokens) -> bytes:
    return bytes([Role.ACTION]) * len(answer.token_ids)


def _stop_reason(result: SlotResult) -> StopReason | None:
    assert result.step is not None
    if result.step.terminated:
        return StopReason.WON if result.step.info.get("won") else StopReason.LOST
    return StopReason.STEP_LIMIT if result.step.truncated else None


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
