"""Packed rows: the same states and gradients as padded ones, from fewer tokens."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from envrl.errors import PolicyFault
from envrl.policy.batch import RowBatch
from envrl.policy.model import Policy
from envrl.policy.packing import PackedRows, pack
from envrl.policy.settings import LoraSettings
from support import adapters, checkpoint, nudge, policy_of

A, B, C = (list(range(start, start + 12)) for start in (20, 60, 100))
ROWS = {
    "one row": [A],
    "nothing alike": [A, B[:5], C[:9]],
    "equal rows": [A, A, B],
    "one the beginning of another": [A[:4], A, A[:8], B],
    "a group, its branches branching": [A + B, A + B[:3] + C, A + C[:2], A + C[:2] + B, B],
    "rows without tokens": [A, [], B],
    "single tokens": [[7], [7], [8], [7, 8]],
}


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(len(r) for r in rows)
    return torch.tensor([[*r, *[0] * (width - len(r))] for r in rows]), torch.tensor([len(r) for r in rows])


def batch_of(rows: Sequence[Sequence[int]]) -> RowBatch:
    ids, lengths = padded(rows)
    none = torch.zeros(ids.shape)
    zeros = torch.zeros(len(rows), dtype=torch.long)
    return RowBatch(ids, none.to(torch.uint8), none, none, zeros, zeros, lengths)


def always(shared: int, length: int) -> bool:
    return True


def never(shared: int, length: int) -> bool:
    return False


def real(lengths: Tensor, width: int) -> Tensor:
    return torch.arange(width) < lengths[:, None]


def differences(policy: Policy, rows: Sequence[Sequence[int]]) -> tuple[float, float, int]:
    """Largest differences of states and of gradients from those of padded rows, and tokens computed."""
    batch = batch_of(rows)
    mask = real(batch.lengths, batch.token_ids.shape[1])
    trained = [p for p in policy.parameters() if p.requires_grad]
    states = policy.states(batch)
    found, expected = states.flat[states.places[mask]], policy.hidden_states(batch.token_ids)[mask]
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    gradients = [
        torch.autograd.grad((hidden * weights).sum(), trained, allow_unused=True)
        for hidden in (found, expected)
    ]
    pairs = [(a, b) for a, b in zip(*gradients, strict=True) if a is not None and b is not None]
    assert pairs
    return (
        float((found - expected).abs().max()),
        max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in pairs),
        len(states.flat),
    )


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("lora", [True, False], ids=["adapters", "all weights"])
def test_states_and_gradients_are_those_of_padded_rows(rows: list[list[int]], lora: bool) -> None:
    policy = policy_of(checkpoint(), lora=adapters() if lora else LoraSettings(enabled=False))
    if lora:
        nudge(policy)
    states, gradients, _ = differences(policy, rows)
    assert states < 1e-5
    assert gradients < 1e-5


def test_what_rows_begin_with_alike_is_computed_once() -> None:
    policy = policy_of(checkpoint())
    assert differences(policy, ROWS["a group, its branches branching"])[2] == 12 + 12 + 12 + 2 + 12 + 12 - 0
    assert differences(policy, ROWS["equal rows"])[2] == 24
    assert differences(policy, ROWS["one the beginning of another"])[2] == 24


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(4, 6), max_size=9), min_size=1, max_size=12).filter(any),
    st.sampled_from([always, never, lambda shared, length: shared > 2]),
)
def test_every_query_sees_its_own_row_and_no_other(rows: list[list[int]], worth: object) -> None:
    ids, lengths = padded(rows)
    packed = pack(ids, lengths, worth)  # type: ignore[arg-type]
    flat = packed.token_ids[0]
    for row, tokens in enumerate(rows):
        places = packed.places[row, : len(tokens)]
        assert flat[places].tolist() == tokens
        assert packed.positions[0, places].tolist() == list(range(len(tokens)))
    # For every token: what its query may look at is its own row's beginning, itself included.
    looked = seen_by(packed)
    for row, tokens in enumerate(rows):
        for position, place in enumerate(packed.places[row, : len(tokens)].tolist()):
            assert looked[place] == tokens[: position + 1]
    if worth is never:
        assert len(flat) <= int(lengths.sum())
    if worth is always:
        assert len(flat) == len({tuple(r[: n + 1]) for r in rows for n in range(len(r))})


def seen_by(packed: PackedRows) -> dict[int, list[int]]:
    """By place in the flat sequence, the tokens that its query looks at."""
    flat, looked = packed.token_ids[0], {}
    where = {answer: place for place, answer in enumerate(packed.answers.tolist())}
    query = key = 0
    for bucket in packed.buckets:
        for row in range(bucket.rows):
            keys = packed.keys[key : key + bucket.seen]
            for n in range(bucket.asked):
                mask = torch.arange(bucket.seen) <= n if bucket.mask is None else bucket.mask[row, 0, n]
                if query in where:
                    assert where[query] == int(packed.queries[query])
                    looked[where[query]] = flat[keys[mask]].tolist()
                query += 1
            key += bucket.seen
    return looked


def test_adapters_with_dropout_share_nothing_while_they_are_trained() -> None:
    policy = policy_of(checkpoint(), lora=LoraSettings(rank=4, alpha=8.0, dropout=0.1))
    rows = batch_of([A + B, A + C])
    policy.train()
    assert len(policy.states(rows).flat) == 48
    policy.eval()
    assert len(policy.states(rows).flat) == 36


def test_long_rows_with_a_short_common_beginning_are_computed_apart() -> None:
    policy = policy_of(checkpoint())
    cost = policy._token_cost
    long = int(4 * cost)
    assert not policy._worth_sharing(1, long)
    assert policy._worth_sharing(long // 2, long)
    assert policy._worth_sharing(1, 2)


def test_recomputed_activations_give_the_same_gradients() -> None:
    policy = policy_of(checkpoint(), gradient_checkpointing=True)
    nudge(policy)
    policy.train()
    states, gradients, computed = differences(policy, [A + B, A + C, B])
    assert (states < 1e-5, gradients < 1e-5, computed) == (True, True, 48)


def test_padding_can_be_asked_for() -> None:
    policy = policy_of(checkpoint(), packed=False)
    assert len(policy.states(batch_of([A, B[:3]])).flat) == 24
    assert policy.causal.config._attn_implementation == "sdpa"


def test_a_model_that_ignores_the_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(checkpoint())
    policy.causal.set_attn_implementation("eager")
    with pytest.raises(PolicyFault, match=r"can't attend to packed rows; set policy\.packed=false"):
        policy.states(batch_of([A, B]))
