"""The module's terms against whole logits, and what it refuses."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from envrl.errors import PolicyFault
from envrl.losses.schedules import Schedule
from envrl.losses.terms import LossTerm
from envrl.policy.batch import Denominators, RolloutBatch, RowBatch, TargetCounts
from envrl.policy.model import Policy
from envrl.policy.settings import LoraSettings
from envrl.training.module import EnvRLModule
from envrl.training.objectives.base import Objective, Targets
from envrl.training.objectives.registry import WeightedObjective
from envrl.training.optimiser import eight_bit_adamw
from envrl.training.settings import LossSettings, OptimSettings
from support import WORDS, nudge, policy_of, word_checkpoint

P, A, O = 1, 2, 3  # noqa: E741
FULL = LoraSettings(enabled=False)

POLICY_IDS = [[2, 4, 5, 3, 6, 1, 2, 7, 8, 3, 9, 1], [2, 4, 5, 3, 12, 1, 0, 0, 0, 0, 0, 0]]
POLICY_ROLES = [[P, P, P, P, A, A, P, O, O, P, A, A], [P, P, P, P, A, A] + [0] * 6]
QUESTION_IDS = [[2, 7, 8, 13, 14, 10, 11, 3, 9, 1], [2, 4, 5, 13, 14, 7, 8, 3, 6, 1]]
QUESTION_ROLES = [[P] * 8 + [A, A], [P] * 8 + [A, A]]
SP_IDS = [[2, 7, 8, 13, 9, 14, 3, 10, 11, 1]]
SP_ROLES = [[P] * 7 + [O] * 3]


def rows(
    ids: list[list[int]],
    roles: list[list[int]],
    kinds: list[int],
    advantages: list[float] | None = None,
    logprobs: torch.Tensor | None = None,
    version: int = 0,
) -> RowBatch:
    token_ids, role = torch.tensor(ids), torch.tensor(roles, dtype=torch.uint8)
    zeros = torch.zeros(token_ids.shape)
    spread = zeros if advantages is None else torch.tensor(advantages)[:, None] * (role == A)
    return RowBatch(
        token_ids,
        role,
        zeros if logprobs is None else logprobs,
        spread,
        torch.tensor(kinds),
        torch.full((len(ids),), version),
        torch.full((len(ids),), token_ids.shape[1]),
    )


def whole(policy: Policy, ids: list[list[int]]) -> torch.Tensor:
    """Log-probabilities of the next token at every place, ``[batch, seq, vocab]``."""
    with torch.no_grad():
        scores = policy.logits(policy.hidden_states(torch.tensor(ids)))
    return torch.log_softmax(scores.double(), -1)


def at_target(policy: Policy, ids: list[list[int]], row: int, places: list[int]) -> list[float]:
    """Log-probability of the token at each place of a row, by its position in the row."""
    table = whole(policy, ids)
    return [float(table[row, place - 1, ids[row][place]]) for place in places]


def batch(
    policy: RowBatch | None, questions: RowBatch | None, *, first: bool = True, iteration: int = 0
) -> RolloutBatch:
    # 6 written tokens, 2 observation tokens (5 with the question), 4 tokens of 2 inverse-dynamics answers
    return RolloutBatch(policy, questions, Denominators(6.0, 2.0, 4.0, 2.0), iteration, first)


def module_of(policy: Policy, loss: LossSettings, diagnose_every: int = 0) -> EnvRLModule:
    return EnvRLModule(
        policy, loss, OptimSettings(), iterations=10, micro_batches=1, diagnose_every=diagnose_every
    )


@pytest.fixture
def policy() -> Policy:
    return policy_of(word_checkpoint(), lora=FULL)


def sampled(policy: Policy) -> torch.Tensor:
    """What a sampler would have recorded for the policy rows."""
    found = torch.zeros(2, 12)
    for row, places in ((0, [4, 5, 10, 11]), (1, [4, 5])):
        found[row, places] = torch.tensor(at_target(policy, POLICY_IDS, row, places))
    return found


def test_the_policy_term_is_reinforce_on_the_written_tokens(policy: Policy) -> None:
    loss = LossSettings(entropy_coefficient=0.0)
    module = module_of(policy, loss)
    value = module.training_step(
        batch(rows(POLICY_IDS, POLICY_ROLES, [0, 0], [2.0, -1.0], sampled(policy)), None), 0
    )
    # At ratio 1 the value is minus the mean advantage: -(4 tokens of 2 and 2 of -1) / 6 = -1.
    assert float(value) == pytest.approx(-1.0, abs=1e-5)
    assert module._accounts.sums["logprob_gap"] == pytest.approx(0.0, abs=1e-5)
    assert module._accounts.sums["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert module._accounts.sums["clip_share"] == 0.0
    value.backward()
    found = policy.causal.get_input_embeddings().weight.grad.clone()
    policy.zero_grad()
    scores = torch.log_softmax(policy.logits(policy.hidden_states(torch.tensor(POLICY_IDS))), -1)
    reinforce = torch.zeros(())
    for row, places, advantage in ((0, [4, 5, 10, 11], 2.0), (1, [4, 5], -1.0)):
        for place in places:
            reinforce = reinforce - advantage * scores[row, place - 1, POLICY_IDS[row][place]] / 6
    reinforce.backward()
    expected = policy.causal.get_input_embeddings().weight.grad
    assert torch.allclose(found, expected, atol=1e-6)
    assert float(expected.abs().max()) > 1e-3


def test_state_prediction_is_read_off_the_observation_tokens(policy: Policy) -> None:
    module = module_of(policy, LossSettings(sp=Schedule("constant", 0.5), entropy_coefficient=0.0))
    value = module.training_step(batch(rows(POLICY_IDS, POLICY_ROLES, [0, 0], [0.0, 0.0]), None), 0)
    expected = -sum(at_target(policy, POLICY_IDS, 0, [7, 8])) / 2
    assert module._accounts.sums["sp_ce"] == pytest.approx(expected, abs=1e-5)
    assert float(value) == pytest.approx(0.5 * expected, abs=1e-5)
    likeliest = whole(policy, POLICY_IDS)[0, [6, 7]].argmax(-1).tolist()
    right = (likeliest[0] == 7) + (likeliest[1] == 8)
    assert module._accounts.sums["sp_token_accuracy"] == pytest.approx(right / 2)


def test_state_prediction_from_questions(policy: Policy) -> None:
    module = module_of(policy, LossSettings(sp=Schedule("constant", 1.0), entropy_coefficient=0.0))
    question = rows(SP_IDS, SP_ROLES, [1])
    value = module.training_step(
        RolloutBatch(None, question, Denominators(0.0, 3.0, 0.0, 0.0), 0, first_of_iteration=True), 0
    )
    expected = -sum(at_target(policy, SP_IDS, 0, [7, 8, 9])) / 3
    assert float(value) == pytest.approx(expected, abs=1e-5)
    assert "id_ce" not in module._accounts.sums


def test_inverse_dynamics_reads_its_own_rows_only(policy: Policy) -> None:
    module = module_of(policy, LossSettings(id=Schedule("constant", 2.0), entropy_coefficient=0.0))
    value = module.training_step(
        batch(rows(POLICY_IDS, POLICY_ROLES, [0, 0], [0.0, 0.0]), rows(QUESTION_IDS, QUESTION_ROLES, [2, 2])),
        0,
    )
    answers = [at_target(policy, QUESTION_IDS, row, [8, 9]) for row in (0, 1)]
    expected = -sum(sum(a) for a in answers) / 4
    assert module._accounts.sums["id_ce"] == pytest.approx(expected, abs=1e-5)
    assert float(value) == pytest.approx(2 * expected, abs=1e-5)
    value.backward()
    assert any(float(p.grad.abs().max()) > 0 for p in policy.parameters() if p.grad is not None)


def test_shuffled_rows_count_for_state_prediction_and_never_for_the_policy(policy: Policy) -> None:
    """Their written tokens are neither the policy's nor an answer."""
    module = module_of(policy, LossSettings(sp=Schedule("constant", 1.0), entropy_coefficient=0.0))
    row = rows(POLICY_IDS[:1], POLICY_ROLES[:1], [1], [5.0])
    value = module.training_step(
        RolloutBatch(None, row, Denominators(6.0, 2.0, 0.0, 0.0), 0, first_of_iteration=True), 0
    )
    assert float(value) == pytest.approx(-sum(at_target(policy, POLICY_IDS, 0, [7, 8])) / 2, abs=1e-5)


def test_entropy_is_the_mean_over_written_tokens(policy: Policy) -> None:
    module = module_of(policy, LossSettings(entropy_coefficient=0.25))
    value = module.training_step(batch(rows(POLICY_IDS, POLICY_ROLES, [0, 0], [0.0, 0.0]), None), 0)
    table = whole(policy, POLICY_IDS)
    total = 0.0
    for row, places in ((0, [4, 5, 10, 11]), (1, [4, 5])):
        for place in places:
            p = table[row, place - 1].exp()
            total -= float((p * p.log()).sum())
    assert module._accounts.sums["entropy"] == pytest.approx(total / 6, abs=1e-5)
    assert 0 < module._accounts.sums["entropy"] <= math.log(len(WORDS))
    assert float(value) == pytest.approx(-0.25 * total / 6, abs=1e-5)


@pytest.mark.parametrize(
    ("lora", "size"), [(LoraSettings(rank=2, alpha=4.0), 0.3), (FULL, 0.1)], ids=["adapters", "full"]
)
def test_the_kl_to_the_start_is_zero_at_the_start_and_not_later(lora: LoraSettings, size: float) -> None:
    policy = policy_of(word_checkpoint(), lora=lora)
    module = module_of(policy, LossSettings(kl_coefficient=0.1, entropy_coefficient=0.0))
    given = batch(rows(POLICY_IDS, POLICY_ROLES, [0, 0], [0.0, 0.0]), None)
    module.training_step(given, 0)
    assert module._accounts.sums["kl"] == pytest.approx(0.0, abs=1e-6)
    start = sampled(policy)
    nudge(policy, size=size)
    module.on_train_epoch_start()
    value = module.training_step(given, 0)
    now, estimates = sampled(policy), 0.0
    for row, places in ((0, [4, 5, 10, 11]), (1, [4, 5])):
        for place in places:
            d = float(start[row, place] - now[row, place])
            estimates += math.exp(d) - d - 1
    assert module._accounts.sums["kl"] == pytest.approx(estimates / 6, rel=1e-3)
    assert module._accounts.sums["kl"] > 1e-5
    assert float(value.detach()) == pytest.approx(0.1 * estimates / 6, rel=1e-3)
    value.backward()
    assert any(float(p.grad.abs().max()) > 0 for p in policy.parameters() if p.grad is not None)


def test_terms_of_weight_zero_are_measured_without_gradients(policy: Policy) -> None:
    """Without a single gradient path the loss of the questions alone could not be told from nothing."""
    module = module_of(policy, LossSettings(entropy_coefficient=0.0), diagnose_every=1)
    value = module.training_step(
        batch(
            rows(POLICY_IDS, POLICY_ROLES, [0, 0], [0.0, 0.0], sampled(policy)),
            rows(QUESTION_IDS, QUESTION_ROLES, [2, 2]),
        ),
        0,
    )
    assert {"sp_ce", "id_ce", "id_exact_match", "kl", "entropy"} <= module._accounts.sums.keys()
    value.backward()
    # Advantages are 0 and everything else weighs nothing.
    assert all(float(p.grad.abs().max()) == 0 for p in policy.parameters() if p.grad is not None)
    assert set(module._gradients.names) == {"policy"}


def test_gradient_norms_and_cosines_are_those_of_each_term_alone(policy: Policy) -> None:
    def gradient(loss: LossSettings, advantages: list[float]) -> torch.Tensor:
        module = module_of(policy, loss)
        policy.zero_grad()
        value = module.training_step(
            batch(rows(POLICY_IDS, POLICY_ROLES, [0, 0], advantages, sampled(policy)), None), 0
        )
        value.backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters()])

    alone = LossSettings(entropy_coefficient=0.0)
    only_policy = gradient(alone, [2.0, -1.0])
    only_sp = gradient(LossSettings(sp=Schedule("constant", 1.0), entropy_coefficient=0.0), [0.0, 0.0])
    module = module_of(policy, LossSettings(sp=Schedule("constant", 0.3), entropy_coefficient=0.0), 1)
    module.training_step(batch(rows(POLICY_IDS, POLICY_ROLES, [0, 0], [2.0, -1.0], sampled(policy)), None), 0)
    found = module._gradients.metrics()
    assert found["train/grad_norm/policy"] == pytest.approx(float(only_policy.norm()), rel=1e-4)
    # Unweighted, whatever its weight.
    assert found["train/grad_norm/sp"] == pytest.approx(float(only_sp.norm()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(only_policy, only_sp, dim=0)
    assert found["train/grad_cosine/sp"] == pytest.approx(float(cosine), abs=1e-4)


def test_stale_rows_are_a_fault_in_the_first_update_of_an_iteration_only(policy: Policy) -> None:
    module = module_of(policy, LossSettings())
    module.updates_done = 5
    stale = rows(POLICY_IDS, POLICY_ROLES, [0, 0], [0.0, 0.0], version=4)
    with pytest.raises(PolicyFault, match="sampled 1 updates ago"):
        module.training_step(batch(stale, None), 0)
    module.training_step(batch(stale, None, first=False), 0)
    module.training_step(batch(rows(POLICY_IDS, POLICY_ROLES, [0, 0], [0.0, 0.0], version=5), None), 0)


def test_a_micro_batch_without_rows_adds_nothing(policy: Policy) -> None:
    module = module_of(policy, LossSettings(), diagnose_every=1)
    value = module.training_step(batch(None, None), 0)
    value.backward()
    assert float(value) == 0.0
    assert module._accounts.sums["loss"] == 0.0


def test_weights_follow_their_schedules(policy: Policy) -> None:
    module = module_of(policy, LossSettings(sp=Schedule("linear", 0.4), id=Schedule("constant", 0.1)))
    assert [module.weights(i)["sp"] for i in (0, 5, 9)] == pytest.approx([0.4, 0.2, 0.04])
    assert [module.weights(i)["id"] for i in (0, 5, 9)] == [0.1, 0.1, 0.1]


def test_the_policy_is_put_in_training_mode(policy: Policy) -> None:
    policy.eval()
    module_of(policy, LossSettings())
    assert all(m.training for m in policy.modules())


def test_the_eight_bit_optimiser_moves_weights_or_is_refused() -> None:
    weight = torch.nn.Parameter(torch.zeros(100, 100))
    try:
        optimiser = eight_bit_adamw([weight], {"lr": 0.1, "betas": (0.9, 0.999), "weight_decay": 0.0})
        weight.grad = torch.ones_like(weight)
        optimiser.step()
    except PolicyFault as fault:
        assert "optim.eight_bit=false" in str(fault)  # noqa: PT017
        pytest.skip(f"not supported here: {fault}")
    # Adam's first step is the learning rate, against the gradient.
    assert float(weight.detach().mean()) == pytest.approx(-0.1, abs=1e-3)
    assert optimiser.state[weight]["state1"].dtype == torch.uint8


@dataclass(frozen=True)
class EveryAction(Objective):
    """Action tokens of rows of any kind."""

    name: ClassVar[str] = "every"

    def mask(self, rows: RowBatch) -> torch.Tensor:
        return rows.roles[:, 1:] == A

    def term(self, targets: Targets, counts: TargetCounts) -> LossTerm:
        nats = -targets.logprobs.sum() / counts.tokens
        return LossTerm(nats, {"nats": nats.detach()})


def test_an_objective_may_have_targets_in_rows_of_both_kinds() -> None:
    policy = policy_of(word_checkpoint(), lora=FULL)
    weighted = WeightedObjective(EveryAction(), Schedule("constant", 1.0))
    module = EnvRLModule(
        policy, LossSettings(), OptimSettings(), iterations=1, micro_batches=1, objectives=[weighted]
    )
    counts = Denominators(6.0, 0.0, 4.0, 2.0, others={"every": TargetCounts(10.0, 4.0, 10.0)})
    batch = RolloutBatch(
        rows(POLICY_IDS, POLICY_ROLES, [0, 0], [0.0, 0.0]),
        rows(QUESTION_IDS, QUESTION_ROLES, [2, 2]),
        counts,
        0,
        True,
    )
    weights = {"kl": 0.0, "entropy": 0.0, "value": 0.0, "every": 1.0}
    term = module._terms.of(batch, weights, measure_kl=False)["every"]
    known = [
        *at_target(policy, POLICY_IDS, 0, [4, 5, 10, 11]),
        *at_target(policy, POLICY_IDS, 1, [4, 5]),
        *at_target(policy, QUESTION_IDS, 0, [8, 9]),
        *at_target(policy, QUESTION_IDS, 1, [8, 9]),
    ]
    assert float(term.value) == pytest.approx(-sum(known) / 10, abs=1e-5)
    assert float(term.metrics["nats"]) == pytest.approx(float(term.value), abs=1e-6)
