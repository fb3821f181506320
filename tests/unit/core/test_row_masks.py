"""Which token is what, on one drawn episode of three turns whose token ids can be read by eye."""

from dataclasses import replace

import numpy as np
import pytest

from envrl.envs.pool import EnvPool
from envrl.losses.dynamics import shuffled_pairing
from envrl.policy.batch import RowKind
from envrl.policy.settings import SamplingSettings
from envrl.prompts.settings import PromptSettings
from envrl.rollout.collate import by_content, by_length, denominators, make_batches, row_batch, split_evenly
from envrl.rollout.collector import Collector, CollectorSettings, EpisodePlan
from envrl.rollout.controls import control_transcript_rows
from envrl.rollout.questions import inverse_dynamics_rows, state_prediction_rows
from envrl.rollout.rows import TokenRow, policy_rows
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.types import Finish, Group, Role, StopReason
from support import ScriptedEnv, ScriptedSession, game, word_chat

CHAT = word_chat()
PROMPT = PromptSettings()
P, A, O = int(Role.PROMPT), int(Role.ACTION), int(Role.OBSERVATION)  # noqa: E741

# <|pad|> 0, <|end|> 1, <|user|> 2, <|assistant|> 3, start 4, room 5, go 6, saw 7, key 8, take 9,
# Nothing 10, happens. 11, win 12, > 13, ? 14, you 15, won 16
SCRIPT = {"a": [("saw key", 0.0, ""), ("Nothing happens.", 0.0, ""), ("you won", 1.0, "won")]}
ANSWERS = {5: (6, 1), 8: (9, 9, 9), 11: (12, 1)}
"""start room -> go <end>; saw key -> take take take (cut off); Nothing happens. -> win <end>."""

TRANSCRIPT_IDS = (
    *(2, 4, 5, 3),  # <user> start room <assistant>
    *(6, 1),  # go <end>
    *(2, 7, 8, 3),  # <user> saw key <assistant>
    *(9, 9, 9),  # take take take
    *(1, 2, 10, 11, 3),  # <end> <user> Nothing happens. <assistant>: the end the policy did not write
    *(12, 1),  # win <end>
    *(2, 15, 16),  # <user> you won
)
TRANSCRIPT_ROLES = (P, P, P, P, A, A, P, O, O, P, A, A, A, P, P, O, O, P, A, A, P, O, O)


def episode(layout: str) -> Group:
    settings = CollectorSettings(PROMPT, SamplingSettings(max_new_tokens=3, max_context=100), layout)
    collector = Collector(EnvPool(lambda: ScriptedEnv(SCRIPT), 1), CHAT, settings)
    played = collector.collect(
        [EpisodePlan(game("a"), 5)],
        lambda rows: ScriptedSession(rows, ANSWERS, []),
        temperature=1.0,
        policy_version=7,
    )
    return Group(game("a"), tuple(played))


def one_row(auxiliary: AuxiliaryRows, layout: str = "transcript"):
    rows = policy_rows([episode(layout)], CHAT, RolloutSettings(layout=layout), auxiliary)
    assert len(rows) == 1
    return rows[0]


def test_a_transcript_is_one_row_with_a_role_for_every_token() -> None:
    row = one_row(AuxiliaryRows())
    assert row.token_ids == TRANSCRIPT_IDS
    assert tuple(row.roles) == TRANSCRIPT_ROLES
    # The script's log-probabilities are -0.5, -1.5, -2.5 in each answer; everything given has 0.
    assert row.logprobs == (
        *(0, 0, 0, 0, -0.5, -1.5, 0, 0, 0, 0, -0.5, -1.5, -2.5),
        *(0, 0, 0, 0, 0, -0.5, -1.5, 0, 0, 0),
    )
    assert row.policy_version == 7
    assert row.score == 10.0


@pytest.mark.parametrize(("most", "whole"), [(23, True), (22, False), (None, True)])
def test_the_observation_after_the_last_action_must_fit_the_row(most: int | None, whole: bool) -> None:
    for observe in (False, True):
        (row,) = policy_rows(
            [episode("transcript")],
            CHAT,
            RolloutSettings(),
            AuxiliaryRows(),
            observe=observe,
            max_tokens=most,
        )
        assert row.token_ids == (TRANSCRIPT_IDS if whole else TRANSCRIPT_IDS[:-3])
        assert tuple(row.roles) == TRANSCRIPT_ROLES[: len(row.token_ids)]
        assert len(row.logprobs) == len(row.token_ids)
        assert len(row.observed) == (0 if not observe else 3 if whole else 2)


def test_the_observation_behind_a_step_must_fit_its_row() -> None:
    rows = policy_rows(
        [episode("steps")],
        CHAT,
        RolloutSettings(layout="steps"),
        AuxiliaryRows(sp_rows="questions"),
        observe=True,
        max_tokens=9,
    )
    # <user> start room <assistant> go <end>, and three tokens of what was seen; the next prompts are longer.
    assert [len(row.observed) for row in rows] == [1, 0, 0]
    assert len(rows[0].token_ids) == 9


def test_the_cut_off_answer_is_marked_and_the_others_are_not() -> None:
    finishes = [t.generation.finish for t in episode("transcript").trajectories[0].transitions]
    assert finishes == [Finish.END, Finish.LENGTH, Finish.END]


@pytest.mark.parametrize(
    ("auxiliary", "targets", "length"),
    [
        (AuxiliaryRows(), [7, 8, 10, 11, 15, 16], 23),
        (AuxiliaryRows(skip_noops=True), [7, 8, 15, 16], 23),
        (AuxiliaryRows(skip_terminal=True), [7, 8, 10, 11], 20),
        (AuxiliaryRows(skip_terminal=True, skip_noops=True), [7, 8], 20),
        (AuxiliaryRows(sp_rows="questions"), [], 20),
        (AuxiliaryRows(shuffle_targets=True), [], 20),
    ],
)
def test_state_prediction_targets_of_a_transcript(
    auxiliary: AuxiliaryRows, targets: list[int], length: int
) -> None:
    row = one_row(auxiliary)
    assert [t for t, r in zip(row.token_ids, row.roles, strict=True) if r == O] == targets
    assert row.token_ids == TRANSCRIPT_IDS[:length]
    # Whatever is predicted, the policy's own tokens stay the same.
    assert [t for t, r in zip(row.token_ids, row.roles, strict=True) if r == A] == [6, 1, 9, 9, 9, 12, 1]


def test_steps_are_one_row_each_with_a_window_of_the_history() -> None:
    rows = policy_rows([episode("steps")], CHAT, RolloutSettings(layout="steps"), AuxiliaryRows())
    assert [r.token_ids for r in rows] == [
        (2, 4, 5, 3, 6, 1),
        # start room / > go / saw key
        (2, 4, 5, 13, 6, 7, 8, 3, 9, 9, 9),
        # start room / > go / saw key / > take take take / Nothing happens.
        (2, 4, 5, 13, 6, 7, 8, 13, 9, 9, 9, 10, 11, 3, 12, 1),
    ]
    assert [tuple(r.roles) for r in rows] == [
        (P, P, P, P, A, A),
        (P, P, P, P, P, P, P, P, A, A, A),
        (P, P, P, P, P, P, P, P, P, P, P, P, P, P, A, A),
    ]
    assert rows[1].logprobs == (0, 0, 0, 0, 0, 0, 0, 0, -0.5, -1.5, -2.5)


def test_questions_about_each_step() -> None:
    groups, rng = [episode("transcript")], np.random.default_rng(0)
    auxiliary = AuxiliaryRows(sp_rows="questions")
    asked = state_prediction_rows(groups, CHAT, PROMPT, auxiliary, rng, shuffled_pairing)
    # before / > action / ? and the answer with its end
    assert [r.token_ids for r in asked] == [
        (2, 4, 5, 13, 6, 14, 3, 7, 8, 1),
        (2, 7, 8, 13, 9, 9, 9, 14, 3, 10, 11, 1),
        (2, 10, 11, 13, 12, 14, 3, 15, 16, 1),
    ]
    assert [tuple(r.roles) for r in asked] == [
        (P, P, P, P, P, P, P, O, O, O),
        (P, P, P, P, P, P, P, P, P, O, O, O),
        (P, P, P, P, P, P, P, O, O, O),
    ]
    asked = inverse_dynamics_rows(groups, CHAT, PROMPT, auxiliary, rng, shuffled_pairing)
    # before / > ? / after and the action with its end
    assert [r.token_ids for r in asked] == [
        (2, 4, 5, 13, 14, 7, 8, 3, 6, 1),
        (2, 7, 8, 13, 14, 10, 11, 3, 9, 9, 9, 1),
        (2, 10, 11, 13, 14, 15, 16, 3, 12, 1),
    ]
    assert [tuple(r.roles)[-4:] for r in asked] == [(P, P, A, A), (A, A, A, A), (P, P, A, A)]
    assert {r.kind for r in asked} == {RowKind.INVERSE_DYNAMICS}


@pytest.mark.parametrize(
    ("auxiliary", "answers"),
    [
        (AuxiliaryRows(skip_noops=True), [(6, 1), (12, 1)]),
        (AuxiliaryRows(skip_terminal=True), [(6, 1), (9, 9, 9, 1)]),
        (AuxiliaryRows(skip_terminal=True, skip_noops=True), [(6, 1)]),
    ],
)
def test_questions_leave_out_what_is_skipped(
    auxiliary: AuxiliaryRows, answers: list[tuple[int, ...]]
) -> None:
    rows = inverse_dynamics_rows(
        [episode("steps")], CHAT, PROMPT, auxiliary, np.random.default_rng(0), shuffled_pairing
    )
    written = [tuple(t for t, r in zip(row.token_ids, row.roles, strict=True) if r == A) for row in rows]
    assert written == answers


def test_at_most_so_many_transitions_are_asked() -> None:
    auxiliary = AuxiliaryRows(max_transitions=2)
    rows = inverse_dynamics_rows(
        [episode("steps")], CHAT, PROMPT, auxiliary, np.random.default_rng(0), shuffled_pairing
    )
    assert len({r.token_ids for r in rows}) == 2


def test_the_shuffled_control_permutes_observations_and_touches_nothing_else() -> None:
    groups = [episode("transcript"), episode("transcript")]
    rollout, shuffled = RolloutSettings(), AuxiliaryRows(shuffle_targets=True)
    true = policy_rows(groups, CHAT, rollout, AuxiliaryRows())
    rows = control_transcript_rows(
        groups, CHAT, rollout, shuffled, np.random.default_rng(3), shuffled_pairing
    )

    def tokens(found, role):
        return sorted(t for row in found for t, r in zip(row.token_ids, row.roles, strict=True) if r == role)

    assert {r.kind for r in rows} == {RowKind.STATE_PREDICTION}
    assert tokens(rows, O) == tokens(true, O) == sorted([7, 8, 10, 11, 15, 16] * 2)
    assert tokens(rows, P) == tokens(true, P)
    assert tokens(rows, A) == tokens(true, A)
    # All three kinds of observation are equally frequent, so no place keeps its own.
    places = ((7, 9), (15, 17), (21, 23))
    for row in rows:
        assert all(row.token_ids[a:b] != TRANSCRIPT_IDS[a:b] for a, b in places)
    # The policy's rows hold the same ids as without the control, up to the last observation.
    assert [r.token_ids for r in policy_rows(groups, CHAT, rollout, shuffled)] == [TRANSCRIPT_IDS[:20]] * 2


def test_shuffled_questions_keep_their_question_and_get_foreign_answers() -> None:
    groups = [episode("transcript")]
    auxiliary = AuxiliaryRows(sp_rows="questions", shuffle_targets=True)
    for make, own in (
        (state_prediction_rows, [(7, 8, 1), (10, 11, 1), (15, 16, 1)]),
        (inverse_dynamics_rows, [(6, 1), (9, 9, 9, 1), (12, 1)]),
    ):
        plain = make(
            groups, CHAT, PROMPT, replace(auxiliary, shuffle_targets=False), np.random.default_rng(0), None
        )
        rows = make(groups, CHAT, PROMPT, auxiliary, np.random.default_rng(0), shuffled_pairing)
        heads = [r.token_ids[: r.token_ids.index(3) + 1] for r in rows]
        answers = [r.token_ids[r.token_ids.index(3) + 1 :] for r in rows]
        assert heads == [r.token_ids[: r.token_ids.index(3) + 1] for r in plain]
        assert sorted(answers) == sorted(own)
        assert all(answer != mine for answer, mine in zip(answers, own, strict=True))


def test_an_episode_that_a_fault_ended_blames_nobody_and_still_teaches_dynamics() -> None:
    whole = episode("transcript").trajectories[0]
    cut = replace(whole, stop=StopReason.ENV_FAULT, won=False, transitions=whole.transitions[:2])
    groups = [Group(game("a"), (cut, whole))]
    rows = policy_rows(groups, CHAT, RolloutSettings(), AuxiliaryRows())
    assert [(r.trajectory, r.group) for r in rows] == [(1, 0)]
    asked = inverse_dynamics_rows(
        groups, CHAT, PROMPT, AuxiliaryRows(), np.random.default_rng(0), shuffled_pairing
    )
    assert [r.trajectory for r in asked] == [0, 0, 1, 1, 1]


def test_format_penalty_is_the_rows_own_in_steps_and_the_episodes_in_a_transcript() -> None:
    whole = episode("transcript").trajectories[0]
    bad = tuple(replace(t, format_valid=n == 0) for n, t in enumerate(whole.transitions))
    groups = [Group(game("a"), (replace(whole, transitions=bad),))]
    rollout = RolloutSettings(format_penalty=0.5)
    assert [r.score for r in policy_rows(groups, CHAT, rollout, AuxiliaryRows())] == [9.0]
    steps = policy_rows(groups, CHAT, replace(rollout, layout="steps"), AuxiliaryRows())
    assert [r.score for r in steps] == [10.0, 9.5, 9.5]


def test_padding_has_no_role_no_advantage_and_no_logprob() -> None:
    rows = [
        replace(r, advantages=(a,))
        for r, a in zip(
            policy_rows([episode("steps")], CHAT, RolloutSettings(layout="steps"), AuxiliaryRows()),
            (2.0, 3.0, 4.0),
            strict=True,
        )
    ]
    batch = row_batch(rows, pad_id=0)
    assert batch is not None
    assert batch.token_ids[0].tolist() == [2, 4, 5, 3, 6, 1] + [0] * 10
    assert batch.roles[0].tolist() == [P, P, P, P, A, A] + [0] * 10
    assert batch.advantages[0].tolist() == [0, 0, 0, 0, 2, 2] + [0] * 10
    assert batch.advantages[1].tolist() == [0] * 8 + [3, 3, 3] + [0] * 5
    assert batch.sampled_logprobs[0].tolist() == [0, 0, 0, 0, -0.5, -1.5] + [0] * 10
    assert batch.policy_version.tolist() == [7, 7, 7]
    assert row_batch([], 0) is None


def test_denominators_count_each_objectives_own_targets() -> None:
    groups, rng = [episode("transcript")], np.random.default_rng(0)
    policy = policy_rows(groups, CHAT, RolloutSettings(), AuxiliaryRows())
    asked = inverse_dynamics_rows(groups, CHAT, PROMPT, AuxiliaryRows(), rng, shuffled_pairing)
    counts = denominators(policy, asked)
    # 2 + 3 + 2 written tokens; 3 observations of 2 tokens; actions with their ends: 2 + 4 + 2.
    assert (counts.action_tokens, counts.sp_tokens, counts.id_tokens, counts.id_rows) == (7, 6, 8, 3)


def test_rows_that_begin_alike_come_into_one_micro_batch() -> None:
    long, short, other, fork = (2, 3, 9), (2, 4), (5, 5, 5, 5), (2, 3, 8, 8)
    rows = [TokenRow(RowKind.POLICY, ids, b"", ()) for ids in (long, short, other, fork)]
    cut = split_evenly(rows, 2, by_content)
    # 13 tokens: a new part begins where half of them are behind.
    assert [[row.token_ids for row in part] for part in cut] == [[fork, long], [short, other]]
    cut = split_evenly(rows, 2, by_length)
    assert [[row.token_ids for row in part] for part in cut] == [[short, long, other], [fork]]


def test_updates_and_epochs_deal_out_every_trajectory_with_its_questions() -> None:
    one = episode("transcript").trajectories[0]
    groups = [Group(game("a"), (one,) * 5)]
    rng = np.random.default_rng(0)
    policy = policy_rows(groups, CHAT, RolloutSettings(), AuxiliaryRows())
    asked = inverse_dynamics_rows(groups, CHAT, PROMPT, AuxiliaryRows(), rng, shuffled_pairing)
    settings = BatchSettings(updates=2, micro_batches=3, epochs=2)
    batches = make_batches(policy, asked, settings, 0, 4, rng)
    assert len(batches) == 12
    assert [b.first_of_iteration for b in batches] == [True] * 3 + [False] * 9
    sizes = [
        tuple(sum(0 if p is None else len(p.kinds) for p in parts) for parts in zip(*update, strict=True))
        for update in (
            [(b.policy, b.questions) for b in batches[start : start + 3]] for start in (0, 3, 6, 9)
        )
    ]
    # Five episodes on two updates, three questions each, in both epochs.
    assert sizes == [(3, 9), (2, 6), (3, 9), (2, 6)]
    assert [b.denominators.action_tokens for b in batches[::3]] == [21, 14, 21, 14]
    assert {b.iteration for b in batches} == {4}
