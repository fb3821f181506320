"""The cached sampler against whole forward passes, and how it draws."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from envrl.errors import ConfigFault, PolicyFault
from envrl.policy.model import Policy
from envrl.policy.sampler import CachedSession, draw
from envrl.policy.settings import SamplingSettings
from envrl.types import Finish
from support import checkpoint, nudge, policy_of


@pytest.fixture(scope="module", params=[True, False], ids=["flat", "padded"])
def policy(request: pytest.FixtureRequest) -> Policy:
    loaded = policy_of(checkpoint(), packed=request.param)
    nudge(loaded)
    return loaded


def open_session(policy: Policy, rows: int, end_id: int | None = None) -> CachedSession:
    return CachedSession(policy.sampling_model(), rows, policy.chat.end_id if end_id is None else end_id)


def whole_pass(policy: Policy, row: list[int]) -> torch.Tensor:
    """Log-probability of each token but the first, from one forward pass through the adapters."""
    with torch.no_grad():
        scores = policy.logits(policy.hidden_states(torch.tensor([row])))[0]
    return torch.log_softmax(scores, -1)[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0]


def random_block(rng: np.random.Generator, most: int) -> list[int]:
    return [int(t) for t in rng.integers(4, 400, size=int(rng.integers(1, most)))]


# 131 is frequent enough in what the random model writes to end some rows early in most turns.
@pytest.mark.parametrize("end_id", [1, 131])
def test_every_logprob_is_that_of_a_whole_forward_pass(policy: Policy, end_id: int) -> None:
    rng = np.random.default_rng(4)
    session = open_session(policy, 6, end_id)
    rows: list[list[int]] = [[] for _ in range(6)]
    found: list[list[tuple[int, float]]] = [[] for _ in range(6)]
    rngs = [np.random.default_rng(n) for n in range(6)]
    for turn in range(4):
        if turn in (1, 3):
            # Rows drop out in the middle and the rest changes places.
            kept = [4, 0, 2, 5] if turn == 1 else [2, 0, 3]
            session.keep(kept)
            rows, found, rngs = ([those[k] for k in kept] for those in (rows, found, rngs))
        blocks = [random_block(rng, 12) for _ in rows]
        session.append(blocks)
        for row, block, written, answer in zip(
            rows, blocks, found, session.sample(rngs, 1.0, 7), strict=True
        ):
            row.extend(block)
            for token, logprob in zip(answer.token_ids, answer.logprobs, strict=True):
                written.append((len(row), logprob))
                row.append(token)
    checked = 0
    for row, written in zip(rows, found, strict=True):
        true = whole_pass(policy, row)
        for position, logprob in written:
            assert logprob == pytest.approx(float(true[position - 1]), abs=1e-4)
            checked += 1
    assert checked >= 3 * 4


def test_the_cache_grows_beyond_its_first_capacity(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    session = open_session(policy, 2)
    rows: list[list[int]] = [[], []]
    for length in (100, 3, 60, 150):  # a capacity is a multiple of 128
        blocks = [[int(t) for t in rng.integers(4, 400, size=n)] for n in (length, max(1, length // 3))]
        session.append(blocks)
        answers = session.sample([rng, rng], 1.0, 5)
        for row, block, answer in zip(rows, blocks, answers, strict=True):
            row.extend(block)
            row.extend(answer.token_ids)
    assert len(rows[0]) > 256
    for row, answer in zip(rows, answers, strict=True):
        true = whole_pass(policy, row)[-len(answer.token_ids) :]
        assert answer.logprobs == pytest.approx(true.tolist(), abs=1e-4)


def test_given_tokens_are_computed_without_filler() -> None:
    policy = policy_of(checkpoint())
    session = open_session(policy, 4)
    computed, counting = tokens_computed(policy)
    # Two rows begin alike; blocks of the second turn have 1, 3, 2 and 9 tokens, and one written before each.
    session.append([[2, 60, 61, 3], [2, 3], [2, 60, 61, 3], [2, 7, 3]])
    rngs = [np.random.default_rng(n) for n in range(4)]
    session.sample(rngs, 1.0, 1)
    session.append([[5], [6, 7, 8], [5, 6], list(range(10, 19))])
    session.sample(rngs, 1.0, 1)
    counting.remove()
    assert computed == [4 + 2 + 3, 1 + 3 + 2 + 9 + 4]


def tokens_computed(policy: Policy) -> tuple[list[int], Any]:
    """Tokens of every pass from now on, and what ends the counting."""
    computed: list[int] = []
    embed = policy.sampling_model().get_decoder().embed_tokens
    return computed, embed.register_forward_hook(lambda module, inputs, _: computed.append(inputs[0].numel()))


def test_rows_are_computed_once_for_as_long_as_they_do_the_same() -> None:
    policy = policy_of(checkpoint())
    session = open_session(policy, 3)
    computed, counting = tokens_computed(policy)
    rngs = [np.random.default_rng(n) for n in range(3)]
    # Greedy, so rows 0 and 2 write the same.
    session.append([[2, 60, 61, 3], [2, 3], [2, 60, 61, 3]])
    session.sample(rngs, 0.0, 1)
    session.append([[5, 6], [6, 7, 8], [5, 6]])
    answers = session.sample(rngs, 0.0, 1)
    session.append([[9], [9], [7, 8]])
    last = session.sample(rngs, 0.0, 1)
    counting.remove()
    # One written token before each block.
    assert computed == [4 + 2, 3 + 4, 2 + 2 + 3]
    assert answers[0] == answers[2]
    written = [answers[row].token_ids[0] for row in range(3)]
    first = int(whole_scores(policy, [2, 60, 61, 3]).argmax())
    row = [2, 60, 61, 3, first, 5, 6, written[2], 7, 8]
    assert last[2].token_ids[0] == int(whole_scores(policy, row).argmax())
    true = float(torch.log_softmax(whole_scores(policy, row), -1).max())
    assert last[2].logprobs[0] == pytest.approx(true, abs=1e-4)


def test_of_rows_that_come_to_hold_the_same_the_one_that_knows_most_is_computed(policy: Policy) -> None:
    session = open_session(policy, 3)
    rngs = [np.random.default_rng(n) for n in range(3)]
    session.append([[2, 60, 3], [2, 60, 61, 62, 63, 3], [2, 9, 3]])
    session.sample(rngs, 1.0, 2)
    wanted = [2, 60, 61, 62, 63, 64, 3]
    computed, counting = tokens_computed(policy)
    session.rewrite([wanted, wanted, [2, 9, 8, 3]])
    answers = session.sample(rngs, 0.0, 1)
    counting.remove()
    # Row 1 keeps five tokens, where row 0 has two; row 2 keeps two. Without a flat layout there is filler.
    if policy.settings.packed:
        assert computed == [2 + 2]
    scores = whole_scores(policy, wanted)
    for row in (0, 1):
        assert answers[row].token_ids[0] == int(scores.argmax())
        assert answers[row].logprobs[0] == pytest.approx(float(torch.log_softmax(scores, -1).max()), abs=1e-4)


def whole_scores(policy: Policy, row: list[int]) -> torch.Tensor:
    """Scores after the last token of a row, from one forward pass through the adapters."""
    with torch.no_grad():
        return policy.logits(policy.hidden_states(torch.tensor([row])))[0, -1]


def test_greedy_takes_the_likeliest_token(policy: Policy) -> None:
    session = open_session(policy, 1)
    session.append([[2, 60, 61, 3]])
    answer = session.sample([np.random.default_rng(0)], 0.0, 5)[0]
    row = [2, 60, 61, 3]
    for token in answer.token_ids:
        assert token == int(whole_scores(policy, row).argmax())
        row.append(token)


def test_one_new_token(policy: Policy) -> None:
    session = open_session(policy, 2)
    session.append([[2, 60, 3], [2, 3]])
    first = session.sample([np.random.default_rng(n) for n in (0, 1)], 1.0, 1)
    assert [len(a.token_ids) for a in first] == [1, 1]
    session.append([[5], [6, 7]])
    second = session.sample([np.random.default_rng(n) for n in (2, 3)], 1.0, 1)
    row = [2, 60, 3, first[0].token_ids[0], 5, second[0].token_ids[0]]
    assert second[0].logprobs[0] == pytest.approx(float(whole_pass(policy, row)[-1]), abs=1e-4)


def test_nothing_is_sampled_from_an_empty_row(policy: Policy) -> None:
    session = open_session(policy, 2)
    session.append([[2, 3], []])
    with pytest.raises(ValueError, match="at least one token"):
        session.sample([np.random.default_rng(0)] * 2, 1.0, 3)


def test_sampling_leaves_the_mode_of_the_model_as_it_was(policy: Policy) -> None:
    model = policy.causal
    for training in (True, False):
        model.train(training)
        session = CachedSession(model, 1, 1)
        session.append([[2, 3]])
        session.sample([np.random.default_rng(0)], 1.0, 2)
        assert model.training is training
    policy.train()


def test_a_policy_without_finite_scores_is_a_fault() -> None:
    policy = policy_of(checkpoint())
    with torch.no_grad():
        next(p for p in policy.parameters() if p.requires_grad).fill_(float("nan"))
    session = open_session(policy, 1)
    session.append([[2, 3]])
    with pytest.raises(PolicyFault, match="not finite"):
        session.sample([np.random.default_rng(0)], 1.0, 2)


def test_draw_inverts_the_cumulative_distribution() -> None:
    # Probabilities 0.5, 0.25, 0, 0.25: bounds at 0.5, 0.75, 0.75.
    logits = torch.tensor([[math.log(2.0), 0.0, -math.inf, 0.0]]).repeat(7, 1)
    uniforms = torch.tensor([0.0, 0.4999, 0.5001, 0.7499, 0.7501, 0.9, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = draw(logits, uniforms, 1.0)
    assert tokens.tolist() == [0, 0, 1, 1, 3, 3, 3]
    quarter, half = -1.3862944, -0.6931472
    assert logprobs.tolist() == pytest.approx([half, half, *[quarter] * 5], abs=1e-6)


def test_a_low_temperature_sharpens_the_draws_and_not_the_logprobs() -> None:
    # At temperature 0.4 the weights are 2**2.5 = 5.657 to 1: the first token has 0.8498.
    logits = torch.tensor([[math.log(2.0), 0.0]]).repeat(3, 1)
    uniforms = torch.tensor([0.8, 0.8495, 0.8501], dtype=torch.float64)
    tokens, logprobs = draw(logits, uniforms, 0.4)
    assert tokens.tolist() == [0, 0, 1]
    # At temperature 1: 2/3 and 1/3.
    assert logprobs.tolist() == pytest.approx([-0.4054651, -0.4054651, -1.0986123], abs=1e-6)


def test_frequencies_of_drawn_tokens() -> None:
    # Softmax of (0, 1, 2): 0.0900, 0.2447, 0.6652.
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(20_000, 1)
    uniforms = torch.from_numpy(np.random.default_rng(1).random(20_000))
    tokens, _ = draw(logits, uniforms, 1.0)
    shares = torch.bincount(tokens, minlength=3) / 20_000
    # Five standard deviations are below 0.017.
    assert shares.tolist() == pytest.approx([0.0900, 0.2447, 0.6652], abs=0.017)


def test_impossible_settings_are_refused() -> None:
    for change in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"eval_temperature": math.inf}):
        with pytest.raises(ConfigFault, match=next(iter(change))):
            SamplingSettings(**change)
    with pytest.raises(ConfigFault, match="max_context is 24"):
        SamplingSettings(max_new_tokens=24, max_context=24)


def test_finish_of_rows_that_end_in_different_places(policy: Policy) -> None:
    session = open_session(policy, 40, end_id=131)
    session.append([[2, 60 + n, 3] for n in range(40)])
    answers = session.sample([np.random.default_rng(n) for n in range(40)], 1.0, 30)
    ended = [a for a in answers if a.finish is Finish.END]
    assert 0 < len(ended) < 40
    assert all(a.token_ids[-1] == 131 and 131 not in a.token_ids[:-1] for a in ended)
    assert all(len(a.token_ids) == 30 for a in answers if a.finish is Finish.LENGTH)
