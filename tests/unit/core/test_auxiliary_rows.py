"""What controls alter, and what other objectives mark, on the drawn episode of the row masks' test."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_row_masks import TRANSCRIPT_IDS, TRANSCRIPT_ROLES, episode

from envrl.envs.pool import EnvPool
from envrl.losses.dynamics import shuffled_pairing
from envrl.policy.batch import Phase, RowKind, TargetCounts
from envrl.prompts.settings import PromptSettings
from envrl.rollout.collate import make_batches, row_batch
from envrl.rollout.collector import EpisodePlan
from envrl.rollout.controls import altered_actions, control_transcript_rows, copied_tokens
from envrl.rollout.imagined import imagined_rate
from envrl.rollout.objectives import lived_transitions, marked_rows, target_counts
from envrl.rollout.questions import inverse_dynamics_rows, state_prediction_rows
from envrl.rollout.random_play import play_at_random
from envrl.rollout.rows import TokenRow, policy_rows
from envrl.rollout.settings import AuxiliaryRows, BatchSettings, RolloutSettings
from envrl.training.objectives.base import Targets
from envrl.training.objectives.echo import Echo
from envrl.training.objectives.paw import PolicyAndWorld, action_entropy
from envrl.types import Group, Observation, Role, StopReason
from support import ScriptedEnv, game, word_chat

CHAT = word_chat()
PROMPT = PromptSettings()
PLAIN = AuxiliaryRows()
P, A, O = int(Role.PROMPT), int(Role.ACTION), int(Role.OBSERVATION)  # noqa: E741


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def asked(control: str, make=state_prediction_rows, layout: str = "transcript") -> list[TokenRow]:
    auxiliary = AuxiliaryRows(sp_rows="questions", control=control)
    return make([episode(layout)], CHAT, PROMPT, auxiliary, rng(), shuffled_pairing)


def controlled(control: str, groups: list[Group] | None = None) -> list[TokenRow]:
    groups = [episode("transcript")] if groups is None else groups
    auxiliary = AuxiliaryRows(control=control)
    return control_transcript_rows(groups, CHAT, RolloutSettings(), auxiliary, rng(), shuffled_pairing)


def test_questions_without_the_action() -> None:
    # before / > / ? and the true answer; the action is gone and nothing else.
    assert [r.token_ids for r in asked("drop_action")] == [
        (2, 4, 5, 13, 14, 3, 7, 8, 1),
        (2, 7, 8, 13, 14, 3, 10, 11, 1),
        (2, 10, 11, 13, 14, 3, 15, 16, 1),
    ]


def test_questions_with_another_admissible_action() -> None:
    # The environment offers go, win and help in every step; help is listed in no prompt.
    shown = [r.token_ids[r.token_ids.index(13) + 1 : r.token_ids.index(14)] for r in asked("replace_action")]
    assert all(len(action) == 1 for action in shown)
    assert (shown[0], shown[2]) == ((12,), (6,))
    assert [r.token_ids[-3:] for r in asked("replace_action")] == [(7, 8, 1), (10, 11, 1), (15, 16, 1)]


def test_which_other_action_is_shown() -> None:
    replaced = AuxiliaryRows(control="replace_action")
    offered = [("a", "b"), ("a",), ()]
    for seed in range(5):
        found = altered_actions(["a", "a", "b"], offered, replaced, np.random.default_rng(seed))
        # The other one that is offered; else one done elsewhere.
        assert found == ["b", "b", "a"]
    assert altered_actions(["a"], [("a",)], replaced, rng()) == ["a"]
    # Nobody does what only asks for the commands, or stands for searches.
    unreal = [("help", "search[<your query>]", "a"), ("a",)]
    assert altered_actions(["a", "b"], unreal, replaced, rng()) == ["b", "a"]
    assert altered_actions(["a"], [("b",)], AuxiliaryRows(), rng()) == ["a"]


def test_inverse_dynamics_keeps_its_answers_where_the_action_is_altered() -> None:
    for control in ("drop_action", "replace_action"):
        assert asked(control, inverse_dynamics_rows) == asked("none", inverse_dynamics_rows)


def test_matched_tokens_are_copied_from_the_question() -> None:
    # As many as the true answers have (2, 2, 2), of start room, saw key, Nothing happens.
    answers = [r.token_ids[r.token_ids.index(3) + 1 :] for r in asked("matched_tokens")]
    assert answers == [(4, 5, 1), (7, 8, 1), (10, 11, 1)]
    actions = [
        r.token_ids[r.token_ids.index(3) + 1 :] for r in asked("matched_tokens", inverse_dynamics_rows)
    ]
    # go, take take take, win: 1, 3 and 1 tokens.
    assert actions == [(4, 1), (7, 8, 7, 1), (10, 1)]
    assert copied_tokens([], 3) == ()


def test_answers_are_shuffled_within_their_episode() -> None:
    one = episode("transcript")
    other = replace(one.trajectories[0], transitions=one.trajectories[0].transitions[:1])
    groups = [Group(one.game, (one.trajectories[0], other))]
    auxiliary = AuxiliaryRows(sp_rows="questions", control="shuffle_episode")
    rows = state_prediction_rows(groups, CHAT, PROMPT, auxiliary, rng(), shuffled_pairing)
    own = [(7, 8, 1), (10, 11, 1), (15, 16, 1)]
    answers = [r.token_ids[r.token_ids.index(3) + 1 :] for r in rows]
    assert sorted(answers[:3]) == sorted(own)
    assert all(a != b for a, b in zip(answers[:3], own, strict=True))
    # An episode of one step has no other answer.
    assert answers[3] == (7, 8, 1)


def test_policy_rows_with_altered_actions() -> None:
    row = controlled("drop_action")[0]
    # go and win leave their ends, take take take was cut off and leaves nothing.
    assert row.token_ids == (2, 4, 5, 3, 1, 2, 7, 8, 3, 1, 2, 10, 11, 3, 1, 2, 15, 16)
    assert tuple(row.roles) == (P, P, P, P, A, P, O, O, P, P, P, O, O, P, A, P, O, O)
    assert row.kind is RowKind.STATE_PREDICTION
    replaced = controlled("replace_action")[0]
    found = [t for t, r in zip(replaced.token_ids, replaced.roles, strict=True) if r == A]
    assert found[0] in (12, 0)
    assert found[1] == found[-1] == 1
    assert [t for t, r in zip(replaced.token_ids, replaced.roles, strict=True) if r == O] == [
        *(7, 8, 10, 11, 15, 16)
    ]


def test_policy_rows_with_altered_observations() -> None:
    matched = controlled("matched_tokens")[0]
    assert tuple(matched.roles) == TRANSCRIPT_ROLES
    assert [t for t, r in zip(matched.token_ids, matched.roles, strict=True) if r == O] == [4, 5] * 3
    shuffled = controlled("shuffle_episode")[0]
    assert Counter(shuffled.token_ids) == Counter(TRANSCRIPT_IDS)
    assert all(shuffled.token_ids[a : a + 2] != TRANSCRIPT_IDS[a : a + 2] for a in (7, 15, 21))


@pytest.mark.parametrize("control", ["shuffle_episode", "drop_action", "replace_action", "matched_tokens"])
def test_controls_leave_the_policys_own_rows_alone(control: str) -> None:
    given = [episode("transcript")]
    rows = policy_rows(given, CHAT, RolloutSettings(), AuxiliaryRows(control=control))
    assert rows == policy_rows(given, CHAT, RolloutSettings(), AuxiliaryRows(shuffle_targets=True))
    assert O not in rows[0].roles


def marked(objective, layout: str, auxiliary: AuxiliaryRows = PLAIN) -> list[TokenRow]:
    groups = [episode(layout)]
    rows = policy_rows(groups, CHAT, RolloutSettings(layout=layout), auxiliary, observe=True)
    return marked_rows(rows, objective, lived_transitions(groups, auxiliary))


def targets(row: TokenRow, name: str) -> list[tuple[int, float]]:
    return [(t, w) for t, w in zip(row.token_ids, row.marks[name], strict=True) if w > 0]


HALVES = [(7, 0.5), (8, 0.5), (10, 0.5), (11, 0.5), (15, 0.5), (16, 0.5)]


def test_echo_marks_every_observation_where_the_policy_read_it() -> None:
    row = marked(Echo(), "transcript")[0]
    assert row.token_ids == TRANSCRIPT_IDS
    assert tuple(row.roles) == TRANSCRIPT_ROLES
    assert targets(row, "echo") == HALVES
    # Without state prediction the same tokens are marked, and have no role.
    plain = marked(Echo(), "transcript", AuxiliaryRows(sp_rows="questions"))[0]
    assert plain.token_ids == TRANSCRIPT_IDS
    assert targets(plain, "echo") == HALVES
    assert O not in plain.roles
    assert [
        w for _, w in targets(marked(Echo(), "transcript", AuxiliaryRows(skip_noops=True))[0], "echo")
    ] == [0.5] * 4


def test_in_steps_the_next_observation_is_appended_behind_the_answer() -> None:
    rows = marked(Echo(), "steps")
    bare = policy_rows([episode("steps")], CHAT, RolloutSettings(layout="steps"), AuxiliaryRows())
    # <user> follows an answer that ended, <end> <user> one that was cut off.
    assert [r.token_ids[len(b.token_ids) :] for r, b in zip(rows, bare, strict=True)] == [
        (2, 7, 8),
        (1, 2, 10, 11),
        (2, 15, 16),
    ]
    for row, plain in zip(rows, bare, strict=True):
        size = len(plain.token_ids)
        assert row.token_ids[:size] == plain.token_ids
        assert row.roles[:size] == plain.roles
        assert set(row.roles[size:]) == {P}
        assert row.turns == plain.turns
    assert [targets(r, "echo") for r in rows] == [HALVES[:2], HALVES[2:4], HALVES[4:]]


def test_echos_term_is_the_mean_over_observations() -> None:
    batch = row_batch(marked(Echo(), "transcript"), 0)
    assert batch is not None
    mask = Echo().mask(batch)
    assert batch.token_ids[:, 1:][mask].tolist() == [7, 8, 10, 11, 15, 16]
    counts = target_counts(Echo(), [batch, None])
    assert counts == TargetCounts(6.0, 1.0, 3.0)
    logprobs = -torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 5.0])
    given = Targets(logprobs, logprobs > -2.5, torch.zeros(6, dtype=torch.long), torch.full((6,), 0.5))
    term = Echo().term(given, counts)
    # Observations of 2, 2 and 5 nats a token.
    assert term.value.item() == pytest.approx(3.0)
    assert term.metrics["ce/echo"].item() == pytest.approx(3.0)
    assert term.metrics["token_accuracy/echo"].item() == pytest.approx(0.5)


def test_paw_takes_the_transitions_the_policy_was_least_sure_of() -> None:
    # Log-probabilities of the answers: (-0.5, -1.5), (-0.5, -1.5, -2.5), (-0.5, -1.5).
    lived = lived_transitions([episode("transcript")], AuxiliaryRows())
    assert [action_entropy(one.transition) for one in lived] == [1.0, 1.5, 1.0]
    lost = [replace(one, group_success=0.25) for one in lived]
    assert PolicyAndWorld(share=0.34).weigh(lost) == [0.0, 0.75, 0.0]
    assert PolicyAndWorld(share=0.67).weigh(lost) == [0.75, 0.75, 0.0]
    assert PolicyAndWorld(share=1.0, reward_adaptive=False).weigh(lost) == [1.0, 1.0, 1.0]
    # The drawn episode is won, as is its whole group: nothing is left to learn for.
    assert PolicyAndWorld(share=1.0).weigh(lived) == [0.0, 0.0, 0.0]
    row = marked(PolicyAndWorld(share=0.34, reward_adaptive=False), "transcript")[0]
    assert targets(row, "paw") == [(10, 1.0), (11, 1.0)]


def test_paws_term_by_hand() -> None:
    # Weighted errors beyond the margin: 1 · (1 − 0.5 − 0.1) and 0.5 · 0, over two tokens.
    logprobs = torch.tensor([0.5, 0.95]).log()
    given = Targets(logprobs, logprobs > -1, torch.zeros(2, dtype=torch.long), torch.tensor([1.0, 0.5]))
    term = PolicyAndWorld(margin=0.1).term(given, TargetCounts(2.0, 1.0, 1.5))
    assert term.value.item() == pytest.approx(0.2)
    assert term.metrics["clipped_share/paw"].item() == pytest.approx(0.5)


def test_what_a_group_came_to() -> None:
    won = episode("transcript").trajectories[0]
    lost = replace(won, won=False)
    lived = lived_transitions([Group(game("a"), (won, lost, lost, lost))], AuxiliaryRows(skip_terminal=True))
    assert {one.group_success for one in lived} == {0.25}
    assert [(one.trajectory, one.number, one.last) for one in lived[:3]] == [
        (0, 0, False),
        (0, 1, False),
        (1, 0, False),
    ]


@pytest.mark.parametrize(
    ("settings", "phases"),
    [
        (BatchSettings(updates=2, micro_batches=1), [["joint"] * 2] * 3),
        (
            BatchSettings(updates=2, micro_batches=1, alternate=2),
            [["policy", "policy", "auxiliary"]] * 3,
        ),
        # Counted over the run: updates 0 1 | 2 3 | 4 5, an extra one after 2 and 5.
        (
            BatchSettings(updates=2, micro_batches=1, alternate=3),
            [["policy"] * 2, ["policy", "auxiliary", "policy"], ["policy", "policy", "auxiliary"]],
        ),
        (
            BatchSettings(micro_batches=2, alternate=1, extra="policy"),
            [["policy"] * 4] * 3,
        ),
    ],
)
def test_extra_updates_come_after_every_so_many(settings: BatchSettings, phases: list[list[str]]) -> None:
    one = episode("transcript").trajectories[0]
    rows = policy_rows([Group(game("a"), (one,) * 4)], CHAT, RolloutSettings(), AuxiliaryRows())
    for iteration, expected in enumerate(phases):
        batches = make_batches(rows, [], settings, 0, iteration, rng())
        assert [b.phase.value for b in batches] == expected
        assert len(batches) == settings.batches_in(iteration)
        assert [b.first_of_iteration for b in batches] == [
            n < settings.micro_batches for n in range(len(batches))
        ]
        for before, after in pairwise(batches):
            if after.phase is Phase.AUXILIARY:
                assert after.policy is before.policy


SCRIPT = {"a": [("saw key", 0.0, ""), ("Nothing happens.", 0.0, ""), ("you won", 1.0, "won")]}


def test_random_episodes_play_admissible_actions_but_no_help() -> None:
    env = ScriptedEnv(SCRIPT)
    plans = [EpisodePlan(game("a"), seed) for seed in range(20)]
    played = play_at_random(EnvPool(lambda: env, 2), plans, 4)
    actions = Counter(action for _, action in env.actions)
    assert actions.keys() == {"go", "win"}
    assert min(actions.values()) > 10
    assert {t.stop for t in played} == {StopReason.WON}
    first = played[0]
    assert (first.won, first.task_score, len(first.transitions)) == (True, 1.0, 3)
    assert [t.next_observation.text for t in first.transitions] == ["saw key", "Nothing happens.", "you won"]
    assert {t.generation.policy_version for t in first.transitions} == {4}
    again = play_at_random(EnvPool(lambda: ScriptedEnv(SCRIPT), 3), plans, 4)
    assert again == played


def test_a_fault_ends_a_random_episode_with_its_reason() -> None:
    script = {"a": [("saw key", 0.0, ""), ("raise", 0.0, "")], "broken": []}
    pool = EnvPool(lambda: ScriptedEnv(script), 1)
    faulted, broken = play_at_random(pool, [EpisodePlan(game("a"), 0), EpisodePlan(game("broken"), 0)], 0)
    assert faulted.stop is broken.stop is StopReason.ENV_FAULT
    assert "on fire" in str(faulted.fault)
    assert (len(faulted.transitions), len(broken.transitions)) == (1, 0)


def test_imagined_observations_are_whole_sentences_of_the_environment() -> None:
    whole = episode("transcript").trajectories[0]
    written = {
        (6, 1): "go",
        (9, 9, 9): "take  NOTHING happens. go",
        (12, 1): "saw key",
    }

    def decode(ids: tuple[int, ...]) -> str:
        return written[tuple(ids)]

    # "Nothing happens." is what the environment said; "saw key" ends with no full stop.
    assert imagined_rate([whole], decode) == pytest.approx(1 / 3)
    assert imagined_rate([], decode) == 0.0
    # Of pages, the mark between their texts is what an action never has.
    written[(12, 1)] = "click[ tea ] 'Buy  Now' [sep] '"
    assert imagined_rate([whole], decode) == pytest.approx(1 / 3)
    page = replace(whole.transitions[0], next_observation=Observation("'Tea' [SEP] 'Buy Now'", ()))
    shop = replace(whole, transitions=(page, *whole.transitions[1:]))
    assert imagined_rate([shop], decode) == pytest.approx(2 / 3)
