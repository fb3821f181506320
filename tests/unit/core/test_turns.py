"""Credit per turn on drawn episodes: where turns are, what their advantages are, what the critic reads."""

from dataclasses import replace

import pytest
import torch

from envrl.errors import ConfigFault
from envrl.experiments.config import config_from
from envrl.experiments.credit import advantage_function
from envrl.policy.batch import RowBatch
from envrl.policy.settings import LoraSettings
from envrl.rollout.collate import denominators, row_batch
from envrl.rollout.credit import Credit, CreditSource, turn_values
from envrl.rollout.measures import is_flat
from envrl.rollout.rows import TokenRow, policy_rows
from envrl.rollout.settings import AuxiliaryRows, RolloutSettings
from envrl.training.critic import Critic
from envrl.training.settings import GigpoSettings, LossSettings, PpoSettings
from envrl.types import Finish, Generation, Group, Observation, Role, StopReason, Trajectory, Transition
from support import game, nudge, policy_of, word_chat, word_checkpoint

CHAT = word_chat()
A, P = int(Role.ACTION), int(Role.PROMPT)
LAYOUTS = ("transcript", "steps")


def episode(
    texts: tuple[str, ...], rewards: tuple[float, ...], layout: str, invalid: tuple[int, ...] = ()
) -> Trajectory:
    """Turns of two words each (7, 8) after a prompt of three (2, 4, 3); the second is cut off."""
    transitions, read = [], ()
    for number, (text, reward) in enumerate(zip(texts, rewards, strict=True)):
        prompt = (*(read if layout == "transcript" else ()), 2, 4, 3)
        finish = Finish.LENGTH if number == 1 else Finish.END
        roles = bytes([A if token in (7, 8) else P for token in prompt])
        generation = Generation(prompt, roles, (7, 8), (-0.5, -1.5), finish, 0)
        shown, after = Observation(text, ()), Observation("later", ())
        transitions.append(Transition(shown, generation, "go", number not in invalid, True, reward, after))
        read = (*prompt, 7, 8)
    return Trajectory("a", "fake", 0, tuple(transitions), StopReason.LOST, False, 0.0)


def rows_of(layout: str, *groups: tuple[Trajectory, ...], **settings: object) -> list[TokenRow]:
    rollout = replace(RolloutSettings(layout=layout, win_reward=1.0), **settings)
    return policy_rows(
        [Group(game("a"), g) for g in groups], CHAT, rollout, AuxiliaryRows(sp_rows="questions")
    )


def two(layout: str) -> list[TokenRow]:
    """hall → shelf → win 8, and hall (bad format) → hall → lost; in between a group of one."""
    return rows_of(
        layout,
        (episode(("hall", "shelf"), (0, 8), layout), episode(("hall", "hall"), (0, 0), layout, invalid=(0,))),
        (episode(("hall",), (3,), layout),),
        format_penalty=0.5,
    )


def flat(per_row: tuple[tuple[float, ...], ...]) -> list[float]:
    return [number for row in per_row for number in row]


class TestTurnsOfRows:
    def test_where_they_are_and_what_came_of_them(self) -> None:
        rows = two("transcript")
        assert [[(t.start, t.length, t.reward, t.penalty, t.anchor) for t in r.turns] for r in rows] == [
            [(3, 2, 0.0, 0.0, "hall"), (8, 2, 8.0, 0.0, "shelf")],
            [(3, 2, 0.0, 0.5, "hall"), (8, 2, 0.0, 0.0, "hall")],
            [(3, 2, 3.0, 0.0, "hall")],
        ]
        steps = two("steps")
        assert [[(t.start, t.length) for t in r.turns] for r in steps] == [[(3, 2)]] * 5
        assert [t for r in steps for t in r.turns if t.penalty] == [replace(rows[1].turns[0])]

    def test_rewards_are_on_the_scale_of_the_score(self) -> None:
        (row,) = rows_of("transcript", (episode(("hall",), (0.8,), "transcript"),), win_reward=10.0)
        assert row.turns[0].reward == row.score == 8.0

    def test_tokens_get_the_advantage_of_their_own_turn(self) -> None:
        batch = row_batch([replace(two("transcript")[0], advantages=(2.0, -3.0))], 0)
        assert batch is not None
        assert batch.advantages.tolist() == [[0, 0, 0, 2, 2, 0, 0, 0, -3, -3]]
        assert batch.turns is None

    def test_the_critic_is_asked_before_each_answer(self) -> None:
        rows = [
            replace(r, values=tuple(v), returns=tuple(g))
            for r, v, g in zip(
                two("transcript"),
                [[1.0, 2.0], [3.0, 4.0], [5.0]],
                [[6.0, 7.0], [8.0, 9.0], [10.0]],
                strict=True,
            )
        ]
        batch = row_batch(rows, 0)
        assert batch is not None
        assert batch.turns is not None
        # The last given token, <|assistant|> 3.
        assert batch.turns.rows.tolist() == [0, 0, 1, 1, 2]
        assert batch.turns.positions.tolist() == [2, 7, 2, 7, 2]
        assert batch.token_ids[batch.turns.rows, batch.turns.positions].tolist() == [3] * 5
        assert batch.turns.sampled_values.tolist() == [1, 2, 3, 4, 5]
        assert batch.turns.returns.tolist() == [6, 7, 8, 9, 10]
        counts = denominators(rows, [])
        assert (counts.policy_rows, counts.turns, counts.action_tokens) == (3, 5, 10)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_answers_that_were_cut_off_can_be_left_out(self, layout: str) -> None:
        kept, masked = (
            two(layout),
            rows_of(layout, (episode(("hall", "shelf"), (0, 8), layout),), mask_overlong=True),
        )
        counts = denominators(masked, [])
        assert counts.action_tokens == 2
        # In steps the second row holds nothing to learn from, and is no row to average over.
        assert counts.policy_rows == 1
        assert [r.score for r in masked] == [r.score for r in kept[: len(masked)]]
        assert [r.turns for r in masked] == [r.turns for r in kept[: len(masked)]]
        batch = row_batch([replace(r, advantages=(5.0,) * len(r.turns)) for r in masked], 0)
        assert batch is not None
        assert float(batch.advantages.sum()) == 10.0

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_long_answers_cost_as_much_as_they_are_over_the_buffer(self, layout: str) -> None:
        """Answers of two tokens; DAPO's eq. 13 by hand."""
        episodes = (episode(("hall", "shelf"), (0, 8), layout, invalid=(0,)),)

        def rows(limit: int, buffer: int) -> list[TokenRow]:
            changes = {"overlong_limit": limit, "overlong_buffer": buffer, "overlong_penalty": 3.0}
            return rows_of(layout, episodes, format_penalty=0.5, **changes)

        # At the limit all of it; one token below, the half of a buffer of two; further below nothing.
        for limit, buffer, each in (
            (2, 1, 3.0),
            (3, 2, 1.5),
            (5, 4, 0.75),
            (3, 1, 0.0),
            (9, 4, 0.0),
            (2, 0, 0.0),
        ):
            found = rows(limit, buffer)
            expected = [8 - 0.5 - 2 * each] if layout == "transcript" else [8 - 0.5 - each, 8 - each]
            assert [r.score for r in found] == expected
            assert [t.penalty for r in found for t in r.turns] == [0.5 + each, each]

    def test_a_buffer_longer_than_an_answer_is_refused(self) -> None:
        with pytest.raises(ConfigFault, match=r"overlong_buffer is 30, longer than the limit of 24 tokens"):
            config_from({"rollout.overlong_buffer": 30, "sampling.max_new_tokens": 24})
        config = config_from({"rollout.overlong_buffer": 8, "sampling.max_new_tokens": 24})
        assert config.bounded_rollout.overlong_limit == 24
        assert config_from({"rollout.overlong_limit": 9}).bounded_rollout.overlong_limit == 9


class TestAdvantageFunction:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_gigpo_by_hand(self, layout: str) -> None:
        loss = LossSettings(
            algorithm="gigpo", scale_by_std=False, normalisation="episodes", gigpo=GigpoSettings(0.5, 1.0)
        )
        credit = advantage_function(loss)(two(layout), None)
        # Step returns at γ = ½: 4, 8 | 0, 0 | 3, less the first turn's own penalty: 4, 8 | −0.5, 0 | 3.
        # Step groups of group 0: hall 4, −0.5, 0 (mean 7/6), shelf 8 alone; of group 1: one alone.
        steps = [17 / 6, 0, -10 / 6, -7 / 6, 0]
        # Episodes: scores 8 and −0.5 in transcript (mean 3.75). In steps the rows are 8, 8 | −0.5, 0 and
        # the episodes 8 and −0.25 (mean 3.875).
        level = {
            "transcript": [4.25, 4.25, -4.25, -4.25, 0],
            "steps": [4.125, 4.125, -4.375, -3.875, 0],
        }[layout]
        expected = [a + b for a, b in zip(level, steps, strict=True)]
        assert flat(credit.advantages) == pytest.approx(expected)
        # 5 turns in 3 step groups, 2 of them alone.
        assert credit.metrics == {
            "rollout/step_group_size": pytest.approx(5 / 3),
            "rollout/lone_step_share": pytest.approx(0.4),
        }
        assert [len(a) for a in credit.advantages] == [len(r.turns) for r in two(layout)]

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_gigpo_without_the_step_level_is_grpo(self, layout: str) -> None:
        rows = two(layout)
        grpo = advantage_function(LossSettings())(rows, None)
        none = LossSettings(algorithm="gigpo", gigpo=GigpoSettings(omega=0.0))
        assert advantage_function(none)(rows, None).advantages == grpo.advantages
        assert advantage_function(LossSettings(algorithm="gigpo"))(rows, None).advantages != grpo.advantages

    def test_rloo_and_reinforce_by_hand(self) -> None:
        rows = two("transcript")  # scores 8, −0.5 | 3
        rloo = advantage_function(LossSettings(algorithm="rloo"))(rows, None)
        assert flat(rloo.advantages) == [8.5, 8.5, -8.5, -8.5, 0.0]
        # Mean 3.5; squares 20.25 + 16 + 0.25 = 36.5, std √18.25 = 4.2720019.
        batch = advantage_function(LossSettings(algorithm="reinforce++"))(rows, None)
        expected = [1.0533703, 1.0533703, -0.9363291, -0.9363291, -0.1170411]
        assert flat(batch.advantages) == pytest.approx(expected, abs=1e-6)
        assert batch.metrics == {"rollout/score_mean": 3.5}

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_ppo_by_hand(self, layout: str) -> None:
        loss = LossSettings(algorithm="ppo", scale_by_std=False, ppo=PpoSettings(gamma=0.5, gae_lambda=0.5))
        rows = two(layout)
        line = iter((1.0, 2.0, 3.0, 4.0, 1.0))
        values = tuple(tuple(next(line) for _ in r.turns) for r in rows)
        credit = advantage_function(loss)(rows, values)
        # δ: 0 + 1 − 1 = 0, 8 − 2 = 6 | −0.5 + 2 − 3 = −1.5, 0 − 4 = −4 | 3 − 1 = 2; γλ = ¼.
        # A: 1.5, 6 | −2.5, −4 | 2, mean 0.6. Returns A + V: 2.5, 8 | 0.5, 0 | 3.
        assert flat(credit.advantages) == pytest.approx([0.9, 5.4, -3.1, -4.6, 1.4])
        assert credit.returns is not None
        assert flat(credit.returns) == [2.5, 8.0, 0.5, 0.0, 3.0]
        # Variances: of A 64.5/5 − 0.6² = 12.54, of the returns 79.5/5 − 2.8² = 8.06.
        assert credit.metrics["rollout/explained_variance"] == pytest.approx(1 - 12.54 / 8.06)
        assert credit.metrics["rollout/value_mean"] == pytest.approx(2.2)


class TestCredit:
    def test_values_of_rows_of_any_length_come_back_to_their_turns(self) -> None:
        rows = [two("transcript")[2], *two("transcript"), two("steps")[0]]

        def say(batch: RowBatch) -> torch.Tensor:
            assert batch.turns is not None
            # Something that names the turn: row content and place.
            return batch.turns.positions + 100.0 * (batch.token_ids[batch.turns.rows] > 0).sum(1)

        expected = ((502.0,), (1002.0, 1007.0), (1002.0, 1007.0), (502.0,), (502.0,))
        for parts in (1, 2, 9):
            assert turn_values(rows, say, parts, 0) == expected

    def test_no_rows_ask_nobody(self) -> None:
        def never(*_: object) -> Credit:
            raise AssertionError

        assert CreditSource(never, never)([], 0) == ([], {})

    def test_flat_groups(self) -> None:
        won, lost = (episode(("hall",), (r,), "steps") for r in (1.0, 0.0))
        broken = replace(lost, stop=StopReason.ENV_FAULT)
        bad = episode(("hall",), (0.0,), "steps", invalid=(0,))
        for members, expected in (
            ((won, lost), False),
            ((won, won), True),
            ((lost, bad), True),
            ((won, broken), True),
            ((won, broken, lost), False),
            ((broken, broken), True),
        ):
            assert is_flat(Group(game("a"), members)) is expected


class TestCritic:
    def test_reads_the_hidden_state_before_the_answer(self) -> None:
        policy = policy_of(word_checkpoint(), lora=LoraSettings(enabled=False)).eval()
        critic = Critic(16, PpoSettings())
        rows = [replace(r, values=(0.0,) * len(r.turns), returns=(1.0,) * len(r.turns)) for r in two("steps")]
        batch = row_batch(rows, 0)
        assert batch is not None
        assert critic.values(policy, batch).tolist() == [0.0] * 5
        with torch.no_grad():
            critic.weight.copy_(torch.arange(16) / 10)
            critic.bias.fill_(0.25)
        hidden = policy.hidden_states(torch.tensor([[2, 4, 3]]))[0, -1].tolist()
        expected = sum(h * n / 10 for n, h in enumerate(hidden)) + 0.25
        assert critic.values(policy, batch).tolist() == pytest.approx([expected] * 5, rel=1e-4)
        assert not any(m.training for m in policy.modules())

    def test_dropout_is_off_and_mode_kept(self) -> None:
        policy = policy_of(word_checkpoint(), lora=LoraSettings(rank=2, alpha=4.0, dropout=0.5))
        nudge(policy)
        policy.train()
        critic = Critic(16, PpoSettings())
        with torch.no_grad():
            critic.weight.fill_(1.0)
        rows = [replace(r, values=(0.0,), returns=(0.0,)) for r in two("steps")]
        batch = row_batch(rows, 0)
        assert batch is not None
        assert critic.values(policy, batch).tolist() == critic.values(policy, batch).tolist()
        assert all(m.training for m in policy.modules())

    def test_its_loss_trains_head_and_policy(self) -> None:
        policy = policy_of(word_checkpoint(), lora=LoraSettings(enabled=False))
        critic = Critic(16, PpoSettings(value_clip=None))
        batch = row_batch([replace(two("transcript")[0], values=(0.0, 0.0), returns=(3.0, -1.0))], 0)
        assert batch is not None
        assert batch.turns is not None

        def gradients() -> tuple[float, float]:
            policy.zero_grad()
            critic.zero_grad()
            term = critic.loss(policy.states(batch), batch.turns, 2.0)
            term.value.backward()
            return float(critic.bias.grad), float(
                policy.causal.get_input_embeddings().weight.grad.abs().sum()
            )

        # ½ (9 + 1) / 2 = 2.5 at V = 0; the bias' gradient is the mean error (−3 + 1) / 2.
        term = critic.loss(policy.states(batch), batch.turns, 2.0)
        assert float(term.value.detach()) == pytest.approx(2.5)
        assert gradients() == (pytest.approx(-1.0), 0.0)
        with torch.no_grad():
            critic.weight.fill_(0.1)
        assert gradients()[1] > 0
