"""What lets processes that share a policy's layers make the same passes, and how a pass may end."""

from collections.abc import Callable

import pytest
import torch

from envrl.errors import PolicyFault
from envrl.policy.batch import Denominators, RolloutBatch, RowBatch, RowKind
from envrl.policy.ranks import ProcessGone
from envrl.rollout.collate import like_the_others
from envrl.training.pieces import EqualPasses
from envrl.types import Role


def rows(kind: RowKind, count: int, **marks: float) -> RowBatch:
    shape = (count, 5)
    return RowBatch(
        torch.full(shape, 3),
        torch.full(shape, int(Role.ACTION), dtype=torch.uint8),
        torch.full(shape, -1.0),
        torch.full(shape, 2.0),
        torch.full((count,), int(kind)),
        torch.full((count,), 7),
        torch.full((count,), 5),
        marks={name: torch.full(shape, weight) for name, weight in marks.items()},
    )


def batch(policy: RowBatch | None, questions: RowBatch | None) -> RolloutBatch:
    return RolloutBatch(policy, questions, Denominators(10.0, 0.0, 5.0, 1.0), 0, first_of_iteration=False)


PLAYED, ASKED = rows(RowKind.POLICY, 2), rows(RowKind.OTHER, 3, foreseen=0.5)


def test_micro_batches_at_a_time_hold_the_same_kinds_of_rows() -> None:
    step = [batch(PLAYED, None), batch(None, ASKED), batch(None, None)]
    filled = [like_the_others(one, step) for one in step]
    assert [(f.policy is PLAYED, f.questions is ASKED) for f in filled] == [
        (True, False),
        (False, True),
        (False, False),
    ]
    for one in filled:
        for found, own in ((one.policy, PLAYED), (one.questions, ASKED)):
            assert found is not None
            if found is not own:
                assert found.token_ids.shape == (1, 2)
                assert found.marks.keys() == own.marks.keys()
                nothing = (found.roles, found.advantages, found.sampled_logprobs, found.lengths)
                assert not any(bool(t.any()) for t in (*nothing, *found.marks.values()))
                assert torch.equal(found.kinds, own.kinds[:1])
                assert torch.equal(found.policy_version, own.policy_version[:1])
        assert one.denominators == step[0].denominators


def test_what_no_process_has_is_not_added() -> None:
    alone, empty = batch(PLAYED, None), batch(None, None)
    assert like_the_others(alone, [alone, empty]).questions is None
    assert like_the_others(empty, [empty, empty]) == empty


def test_a_pass_goes_backward_with_the_factor_of_its_stand_in() -> None:
    weight, seen = torch.nn.Parameter(torch.tensor([1.0, 2.0])), []

    def loss(given: RolloutBatch, report: bool) -> torch.Tensor:
        seen.append((given, report))
        return (weight**2).sum()

    passes, given = EqualPasses(loss), batch(PLAYED, None)
    for number in (1, 2):
        passes.begin_update()
        (passes.forward(given) * 3).backward()
        assert (
            torch.equal(weight.grad, (number - 1) * 6 * weight.detach())
            if number > 1
            else weight.grad is None
        )
        passes.backward()
        assert torch.equal(weight.grad, number * 6 * weight.detach())
    assert seen == [(given, True)] * 2
    assert passes.splits == 0


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), PolicyFault, "raise batch.micro_batches"),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"),
            ProcessGone,
            "has ended",
        ),
        (RuntimeError("NCCL communicator was aborted on rank 1"), ProcessGone, "has ended"),
        (RuntimeError("shapes do not fit"), RuntimeError, "shapes do not fit"),
    ],
)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_how_a_pass_may_end(raised: Exception, expected: type[Exception], said: str, backward: bool) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, tensor: torch.Tensor) -> torch.Tensor:
            return tensor.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            raise raised

    def loss(given: RolloutBatch, report: bool) -> torch.Tensor:
        if not backward:
            raise raised
        result: torch.Tensor = Broken.apply(torch.ones((), requires_grad=True))
        return result

    def run(step: Callable[[], object]) -> None:
        with pytest.raises(expected, match=said):
            step()

    passes = EqualPasses(loss)
    if not backward:
        run(lambda: passes.forward(batch(PLAYED, None)))
        return
    passes.forward(batch(PLAYED, None)).backward()
    run(passes.backward)
