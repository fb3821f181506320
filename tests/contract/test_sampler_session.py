"""What every sampler session promises; an implementation adds a class with a fixture."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from envrl.policy.sampler import CachedSession, SamplerSession
from envrl.policy.served import ServedSampler
from envrl.policy.server import InferenceServer
from envrl.policy.settings import ServerSettings
from envrl.types import Finish
from fake_server import FakeServer, serving
from support import ScriptedSession, checkpoint, nudge, policy_of

Open = Callable[[int], SamplerSession]
PROMPTS = [[2, 40, 41, 42, 5, 3], [2, 50, 8, 3], [2, 60, 61, 62, 63, 64, 65, 11, 3]]


def generators(seeds: list[int]) -> list[np.random.Generator]:
    return [np.random.default_rng(s) for s in seeds]


class SamplerSessionContract:
    """Inherit and add a fixture ``open_session``; the end-of-turn token is 1."""

    end_id = 1

    def test_one_answer_per_row_with_a_logprob_per_token(self, open_session: Open) -> None:
        session = open_session(3)
        session.append(PROMPTS)
        answers = session.sample(generators([0, 1, 2]), 1.0, 6)
        assert len(answers) == 3
        for answer in answers:
            assert 1 <= len(answer.token_ids) <= 6
            assert len(answer.logprobs) == len(answer.token_ids)
            assert all(p <= 0 for p in answer.logprobs)

    def test_finish_says_whether_the_end_was_written(self, open_session: Open) -> None:
        for limit in (1, 2, 5):
            session = open_session(3)
            session.append(PROMPTS)
            for answer in session.sample(generators([3, 4, 5]), 1.0, limit):
                assert self.end_id not in answer.token_ids[:-1]
                if answer.finish is Finish.END:
                    assert answer.token_ids[-1] == self.end_id
                else:
                    assert len(answer.token_ids) == limit
                    assert answer.token_ids[-1] != self.end_id

    def test_the_same_generators_give_the_same_answers(self, open_session: Open) -> None:
        seen = []
        for _ in range(2):
            session = open_session(3)
            session.append(PROMPTS)
            seen.append(session.sample(generators([7, 8, 9]), 1.0, 5))
        assert seen[0] == seen[1]

    def test_a_row_is_the_same_alone_and_among_others_over_two_turns(self, open_session: Open) -> None:
        together = open_session(3)
        together.append(PROMPTS)
        rngs = generators([1, 2, 3])
        first = together.sample(rngs, 1.0, 5)
        together.keep([2, 0])
        together.append([[70, 5, 3], [8, 3]])
        second = together.sample([rngs[2], rngs[0]], 1.0, 5)
        for row, turn, place in ((0, [8, 3], 1), (2, [70, 5, 3], 0)):
            alone, rng = open_session(1), generators([1, 2, 3])[row]
            alone.append([PROMPTS[row]])
            assert alone.sample([rng], 1.0, 5)[0].token_ids == first[row].token_ids
            alone.append([turn])
            assert alone.sample([rng], 1.0, 5)[0].token_ids == second[place].token_ids

    def test_a_rewritten_row_is_like_one_that_was_begun_with_that_prompt(self, open_session: Open) -> None:
        session = open_session(3)
        session.append(PROMPTS)
        session.sample(generators([1, 2, 3]), 1.0, 5)
        session.keep([0, 2])
        # The first keeps a part of what it was, the second is cut short, and both then go on.
        prompts = [[2, 40, 41, 70, 8, 3], [2, 60, 61, 5, 3]]
        session.rewrite(prompts)
        rngs = generators([4, 5])
        found = [session.sample(rngs, 1.0, 5)]
        session.append([[8, 3], [5, 3]])
        found.append(session.sample(rngs, 1.0, 5))
        fresh, rngs = open_session(2), generators([4, 5])
        fresh.append(prompts)
        assert [a.token_ids for a in fresh.sample(rngs, 1.0, 5)] == [a.token_ids for a in found[0]]
        fresh.append([[8, 3], [5, 3]])
        assert [a.token_ids for a in fresh.sample(rngs, 1.0, 5)] == [a.token_ids for a in found[1]]

    def test_rows_may_begin_anew_while_others_go_on(self, open_session: Open) -> None:
        together, rngs = open_session(3), generators([1, 2, 3])
        together.append(PROMPTS)
        first = together.sample(rngs, 1.0, 5)
        together.append([[8, 3], [], [5, 3]])
        # It begins like what stood there, so that something of it is left.
        anew = [*PROMPTS[1][:2], 70, 5, 3]
        together.rewrite([anew], [1])
        second = together.sample([rngs[0], *generators([4]), rngs[2]], 1.0, 5)
        for row, turn in ((0, [8, 3]), (2, [5, 3])):
            alone, rng = open_session(1), generators([1, 2, 3])[row]
            alone.append([PROMPTS[row]])
            assert alone.sample([rng], 1.0, 5)[0].token_ids == first[row].token_ids
            alone.append([turn])
            assert alone.sample([rng], 1.0, 5)[0].token_ids == second[row].token_ids
        alone = open_session(1)
        alone.append([anew])
        assert alone.sample(generators([4]), 1.0, 5)[0].token_ids == second[1].token_ids

    def test_rows_that_begin_alike_go_their_own_ways(self, open_session: Open) -> None:
        together, seeds = open_session(4), [1, 2, 3, 4]
        prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
        together.append(prompts)
        rngs = generators(seeds)
        first = together.sample(rngs, 1.0, 5)
        together.append([[8, 3]] * 4)
        second = together.sample(rngs, 1.0, 5)
        for row, seed in enumerate(seeds):
            alone, rng = open_session(1), generators([seed])
            alone.append([prompts[row]])
            assert alone.sample(rng, 1.0, 5)[0].token_ids == first[row].token_ids
            alone.append([[8, 3]])
            assert alone.sample(rng, 1.0, 5)[0].token_ids == second[row].token_ids

    def test_a_wrong_number_of_blocks_is_refused(self, open_session: Open) -> None:
        session = open_session(3)
        with pytest.raises(ValueError):  # noqa: PT011
            session.append(PROMPTS[:2])


class TestMergedCopy(SamplerSessionContract):
    """Adapters merged into a copy of the base."""

    @pytest.fixture
    def open_session(self) -> Open:
        policy = policy_of(checkpoint())
        nudge(policy)
        model = policy.sampling_model()
        return lambda rows: CachedSession(model, rows, policy.chat.end_id)


class TestActiveAdapters(SamplerSessionContract):
    """Adapters left in place, model in training mode as between two updates."""

    @pytest.fixture
    def open_session(self) -> Open:
        policy = policy_of(checkpoint(), merge_for_sampling=False, gradient_checkpointing=True)
        nudge(policy)
        policy.train()
        model = policy.sampling_model()
        return lambda rows: CachedSession(model, rows, policy.chat.end_id)


class TestPadded(SamplerSessionContract):
    """A model whose attention knows no flat sequence."""

    @pytest.fixture
    def open_session(self) -> Open:
        policy = policy_of(checkpoint(), packed=False)
        nudge(policy)
        model = policy.sampling_model()
        return lambda rows: CachedSession(model, rows, policy.chat.end_id)


class TestServed(SamplerSessionContract):
    """A server with vLLM's documented interface."""

    @pytest.fixture
    def open_session(self, tmp_path: Path) -> Iterator[Open]:
        policy = policy_of(checkpoint(), merge_for_sampling=False)
        nudge(policy)
        with serving(FakeServer(checkpoint())) as server:
            settings = ServerSettings(url=server.url, adapters=str(tmp_path))
            yield ServedSampler(InferenceServer(settings, str(checkpoint())), settings)(policy)


class TestScript(SamplerSessionContract):
    """The script that stands in for a policy in the collector's tests."""

    @pytest.fixture
    def open_session(self) -> Open:
        answers = {5: (6, 7, 1), 8: (9, 9, 9, 9, 9, 9), 11: (1,)}
        return lambda rows: ScriptedSession(rows, answers, [])
