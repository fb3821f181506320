"""Whom one can watch: the expert, random play, a policy. Each plays as it does everywhere else.

All of them answer to the whole episode, so a step that was taken back, or chosen by a person, changes what
they answer to and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from envrl.envs.alfworld.expert import Expert as HouseExpert
from envrl.envs.webshop.expert import Expert as ShopExpert
from envrl.errors import EnvFault, PolicyFault
from envrl.experiments.config import RunConfig
from envrl.experiments.play_session import Move, Played, Proposal
from envrl.prompts.parse import written_answer
from envrl.prompts.render import task_of
from envrl.seeding import generator
from envrl.types import Finish

if TYPE_CHECKING:
    from envrl.policy.model import Policy
    from envrl.policy.sampler import SampledTokens, SamplerSession
    from envrl.rollout.conversation import Conversation
    from envrl.rollout.source import Sampler


class ExpertProposer:
    """The hand-written player that made the demonstrations."""

    name = "expert"

    def propose(self, played: Played) -> Proposal:
        """See :class:`~envrl.experiments.play_session.Proposer`.

        Raises:
            DataFault: It does not understand the task.
        """
        if played.game.env == "webshop":
            customer = ShopExpert(played.game.max_steps)
            customer.reset(played.opening.text)
            for move in played.moves:
                customer.act(move.seen)
                customer.follow(move.action)
            return Proposal(customer.act(played.current))
        expert = HouseExpert()
        expert.reset(played.opening.text)
        for move in played.moves:
            expert.act(move.seen)
        return Proposal(expert.act(played.current))


class RandomProposer:
    """Admissible actions drawn uniformly, with the draws of :mod:`envrl.rollout.random_play`."""

    name = "random"

    def propose(self, played: Played) -> Proposal:
        """See :class:`~envrl.experiments.play_session.Proposer`.

        Raises:
            EnvFault: The environment names no admissible action.
        """
        from envrl.rollout.random_play import random_action

        rng = generator(played.seed, "random-play")
        task = task_of(played.opening.text)
        for move in played.moves:
            random_action(move.seen, task, rng)
        action = random_action(played.current, task, rng)
        if action is None:
            raise EnvFault("the game names no admissible action, so none can be drawn; type one")
        return Proposal(action)


class PolicyProposer:
    """A policy, asked in the tokens and with the draws of an evaluation.

    What a person typed stands in its conversation as its own answer.

    Args:
        config: Prompts, layout, and sampling at the temperature of evaluations.
        policy: The policy.
        sampler: What draws its tokens.
        name: What the screen calls it.
    """

    def __init__(self, config: RunConfig, policy: Policy, sampler: Sampler, name: str) -> None:
        from envrl.rollout.conversation import CollectorSettings

        self.name = name
        self._settings = CollectorSettings(config.worded, config.sampling, config.rollout.layout)
        self._chat = policy.chat
        self._open = sampler(policy)
        self._temperature = config.sampling.eval_temperature
        self._played: Played | None = None
        self._conversation: Conversation | None = None
        self._session: SamplerSession | None = None
        self._proposal: Proposal | None = None
        self._draws: dict[int, Mapping[str, Any]] = {}

    def propose(self, played: Played) -> Proposal:
        """See :class:`~envrl.experiments.play_session.Proposer`.

        Raises:
            PolicyFault: The conversation has outgrown the policy's context.
        """
        from envrl.rollout.conversation import read_answer

        conversation, session = self._caught_up(played)
        if not conversation.fits:
            raise PolicyFault(
                f"the conversation no longer fits sampling.max_context={self._settings.sampling.max_context} "
                "tokens, and an evaluation ends here; type an action, or raise it by --set"
            )
        rng = generator(played.seed, "sampler")
        turn = len(played.moves)
        # The draws of a turn are the same again after a step was taken back.
        if before := [n for n in self._draws if n <= turn]:
            rng.bit_generator.state = self._draws[max(before)]
        else:
            self._draws[turn] = rng.bit_generator.state
        (answer,) = session.sample([rng], self._temperature, self._settings.sampling.max_new_tokens)
        self._draws[turn + 1] = rng.bit_generator.state
        read = read_answer(answer, self._chat, self._settings.prompt)
        text = self._chat.decode(answer.token_ids)
        self._proposal = Proposal(read.action, text, answer, read.format_valid)
        return self._proposal

    def _caught_up(self, played: Played) -> tuple[Conversation, SamplerSession]:
        """The conversation with all moves in it, and a session that has read all of it."""
        from envrl.rollout.conversation import Conversation

        known = self._played
        if known is None or (known.game, known.seed) != (played.game, played.seed):
            self._draws = {}
        went_on = (
            known is not None
            and (known.game, known.seed, known.opening) == (played.game, played.seed, played.opening)
            and played.moves[:-1] == known.moves
            and len(played.moves) > 0
            and played.moves[-1].proposal is self._proposal
        )
        self._played = played
        if went_on and self._conversation is not None and self._session is not None:
            block = self._take_in(self._conversation, played.moves[-1])
            if self._settings.keeps_cache:
                self._session.append([block])
                return self._conversation, self._session
        else:
            self._conversation = Conversation(self._chat, self._settings, played.opening)
            for move in played.moves:
                self._take_in(self._conversation, move)
        self._session = self._open(1)
        self._session.append([self._conversation.context.token_ids])
        return self._conversation, self._session

    def _take_in(self, conversation: Conversation, move: Move) -> tuple[int, ...]:
        proposal = move.proposal
        if proposal is not None and proposal.answer is not None:
            return conversation.go_on(proposal.answer, proposal.action, move.step.observation)
        return conversation.go_on(self._typed(move.action), move.action, move.step.observation)

    def _typed(self, action: str) -> SampledTokens:
        """What the policy would have written to take that action."""
        from envrl.policy.sampler import SampledTokens

        ids = (*self._chat.encode(written_answer(action, self._settings.prompt.form)), self._chat.end_id)
        return SampledTokens(ids, (0.0,) * len(ids), Finish.END)
