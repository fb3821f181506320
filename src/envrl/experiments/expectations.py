"""Asks a run's trained policy what it expects in the turns of kept episodes, in the form it is trained in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from envrl.analysis.episodes import Episode, Turn
from envrl.analysis.predictions import (
    Answer,
    Asked,
    Predictions,
    answer_key,
    predictions_path,
    read_predictions,
    write_predictions,
)
from envrl.errors import DataFault
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.resume import CHECKPOINT, Found, newest_checkpoint, warn
from envrl.experiments.trained import trained_config, trained_policy
from envrl.prompts.dynamics import inverse_dynamics_question, state_prediction_question
from envrl.prompts.render import follow_up, opening_message, without_banner
from envrl.seeding import generator
from envrl.types import Finish, Observation, Role

if TYPE_CHECKING:
    from envrl.policy.chat import ChatMarkup
    from envrl.policy.model import Policy
    from envrl.policy.sampler import SamplerSession

Tell = Callable[[int, int], None]
"""Told how many questions are answered, and how many there are."""

_TOKENS_AT_ONCE = 8192
"""Tokens of a sampler session, answers and padding included."""
_LEAST_ANSWER = 32
"""Tokens an answer to a question may have, however short the true one is."""
_KEEP_EVERY = 16
"""Batches after which answers are written down."""


@dataclass(frozen=True, slots=True)
class _Question:
    """Tokens to go on from, and the most tokens of an answer."""

    key: str
    token_ids: tuple[int, ...]
    limit: int


def expectations(run: Path, episodes: Sequence[Episode], tell: Tell) -> Predictions:
    """What the policy in a run's checkpoint expects in every turn of the episodes.

    Answers are kept beside the episodes and computed once for a checkpoint and form of questions.
    A turn without a parsed action is no question of inverse dynamics, and of state prediction only where
    that is read off the conversation.

    Raises:
        DataFault: The run has no configuration or checkpoint, or its episodes don't fit them.
        PolicyFault: The model can't be loaded.
    """
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise DataFault(
            f"'{run}' holds no checkpoint ({CHECKPOINT}), so its policy can't be asked what it expects; "
            "leave out --predict, or train that run anew"
        )
    if checkpoint.note is not None:
        warn(checkpoint.note)
    config = config_from(trained_config(run))
    path = predictions_path(run, _file_hash(checkpoint.path), _form_hash(config))
    known = read_predictions(path)
    wanted = {
        answer_key(episode.turns[: number + 1], asked)
        for episode in episodes
        for number, turn in enumerate(episode.turns)
        for asked in _asked(turn, config)
    }
    if known is None or not wanted <= known.answers.keys():
        known = _ask(checkpoint, config, path, known, episodes, tell)
    return known


def _asked(turn: Turn, config: RunConfig) -> tuple[Asked, ...]:
    if config.sp_in_conversation:
        sp: tuple[Asked, ...] = ("sp",) if without_banner(turn.next_observation) else ()
        return sp if turn.action is None else (*sp, "id")
    return () if turn.action is None else ("sp", "id")


def _ask(
    checkpoint: Found,
    config: RunConfig,
    path: Path,
    known: Predictions | None,
    episodes: Sequence[Episode],
    tell: Tell,
) -> Predictions:
    import torch

    from envrl.rollout.source import session_factory

    torch.set_num_threads(config.train.threads)
    policy = trained_policy(config, checkpoint.content)
    answers = {} if known is None else dict(known.answers)
    questions = {
        question.key: question
        for episode in episodes
        for question in _questions(episode, config, policy.chat)
        if question.key not in answers
    }
    trained: dict[Asked, bool] = {"sp": config.loss.sp.weight > 0, "id": config.loss.id.weight > 0}

    def found() -> Predictions:
        return Predictions(
            iteration=checkpoint.completed,
            sp_form="conversation" if config.sp_in_conversation else "question",
            trained=tuple(name for name, used in trained.items() if used),
            answers=answers,
        )

    open_session, total = session_factory(policy), len(questions)
    tell(0, total)
    done = 0
    for number, batch in enumerate(_batches(list(questions.values())), start=1):
        answers |= _answers(policy, open_session(len(batch)), batch)
        done += len(batch)
        tell(done, total)
        if number % _KEEP_EVERY == 0:
            write_predictions(path, found())
    write_predictions(path, found())
    return found()


def _answers(policy: Policy, session: SamplerSession, batch: Sequence[_Question]) -> dict[str, Answer]:
    """What the policy writes, greedily, when it is asked some questions at once."""
    session.append([question.token_ids for question in batch])
    # The generators are drawn from and not looked at.
    rngs = [generator(0, "expectations") for _ in batch]
    sampled = session.sample(rngs, 0.0, max(question.limit for question in batch))
    return {
        question.key: _answer(policy, written.token_ids, question.limit)
        for question, written in zip(batch, sampled, strict=True)
    }


def _answer(policy: Policy, token_ids: Sequence[int], limit: int) -> Answer:
    """The text before the first token that is no text: end of turn, or markup that would follow."""
    markup = {policy.chat.end_id, *policy.chat.tokenizer.all_special_ids}
    end = next((n for n, token in enumerate(token_ids[:limit]) if token in markup), None)
    kept = token_ids[:limit] if end is None else token_ids[:end]
    return Answer(text=policy.chat.decode(kept), cut=end is None)


def _questions(episode: Episode, config: RunConfig, chat: ChatMarkup) -> Iterator[_Question]:
    ahead = _in_conversation if config.sp_in_conversation else _as_questions
    yield from ahead(episode, config, chat)
    for number, turn in enumerate(episode.turns):
        if turn.action is not None:
            key = answer_key(episode.turns[: number + 1], "id")
            question = inverse_dynamics_question(
                config.worded, turn.observation, turn.action, turn.next_observation
            )
            limit = max(_LEAST_ANSWER, 2 * len(chat.encode(question.target)))
            yield _Question(key, chat.opening(question.message).token_ids, limit)


def _as_questions(episode: Episode, config: RunConfig, chat: ChatMarkup) -> Iterator[_Question]:
    for number, turn in enumerate(episode.turns):
        if turn.action is not None:
            key = answer_key(episode.turns[: number + 1], "sp")
            question = state_prediction_question(
                config.worded, turn.observation, turn.action, turn.next_observation
            )
            limit = max(_LEAST_ANSWER, 2 * len(chat.encode(question.target)))
            yield _Question(key, chat.opening(question.message).token_ids, limit)


def _in_conversation(episode: Episode, config: RunConfig, chat: ChatMarkup) -> Iterator[_Question]:
    """The conversation up to each observation.

    Where an observation ends is not among the tokens the objective is trained on, so as many tokens are
    taken as the true one has.
    """
    # Here and not above: they bring torch, which known answers do without.
    from envrl.policy.sampler import SampledTokens
    from envrl.rollout.conversation import CollectorSettings, Conversation

    if not episode.turns:
        return
    settings = CollectorSettings(config.worded, config.sampling, config.rollout.layout)
    seen = [Observation(turn.observation, turn.admissible) for turn in episode.turns]
    conversation = Conversation(chat, settings, seen[0])
    given = conversation.context.token_ids
    for number, turn in enumerate(episode.turns):
        if chat.decode_all(given) != turn.prompt:
            raise DataFault(
                f"turn {number + 1} of game {episode.game_id} (iteration {episode.iteration}) was prompted "
                "in other words than this version writes, so its policy can't be asked in the form it was "
                "trained in; leave out --predict, or train that run anew"
            )
        written = _written_ids(turn, chat)
        ahead = chat.last_observation(
            without_banner(turn.next_observation), answer_ended=turn.finish is Finish.END
        )
        if target := ahead.roles.count(Role.OBSERVATION):
            before = conversation.context.token_ids + written + ahead.token_ids[:-target]
            yield _Question(answer_key(episode.turns[: number + 1], "sp"), before, target)
        if number + 1 < len(seen):
            answer = SampledTokens(written, (), turn.finish)
            given = conversation.go_on(answer, turn.action, seen[number + 1])


def _written_ids(turn: Turn, chat: ChatMarkup) -> tuple[int, ...]:
    """Tokens of an answer, piece by piece as they were sampled where the tokenizer allows that.

    Records keep texts: an answer that was cut off within a character is read as what stands in its place.
    """
    ids = tuple(token for text, _ in turn.pieces for token in chat.encode(text))
    return ids if chat.decode_all(ids) == turn.written else tuple(chat.encode(turn.written))


def _batches(questions: Sequence[_Question]) -> Iterator[list[_Question]]:
    """Questions of similar length together, longest first."""
    batch: list[_Question] = []
    width = limit = 0
    for question in sorted(questions, key=lambda q: (-len(q.token_ids), -q.limit)):
        width, limit = max(width, len(question.token_ids)), max(limit, question.limit)
        if batch and (len(batch) + 1) * (width + limit) > _TOKENS_AT_ONCE:
            yield batch
            batch, width, limit = [], len(question.token_ids), question.limit
        batch.append(question)
    if batch:
        yield batch


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataFault(f"{path} can't be read ({error.strerror or error}); make it readable") from error


def _form_hash(config: RunConfig) -> str:
    """Of the prompts as they come out, so that another wording is another form."""
    seen, wording = Observation("seen", ("look", "go")), config.worded
    asked = [
        config.embodied.model,
        config.sp_in_conversation,
        state_prediction_question(wording, "seen", "go", "then").message.content,
        inverse_dynamics_question(wording, "seen", "go", "then").message.content,
        opening_message(wording, seen).content,
        follow_up(wording, seen).appendix,
        _LEAST_ANSWER,
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
