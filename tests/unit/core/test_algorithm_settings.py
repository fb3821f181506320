"""Settings of the algorithms: what is refused, what is derived, and runs older than a setting."""

from pathlib import Path
from typing import Any

import pytest
import torch

from envrl.analysis.records import RunRecord, record_path, write_record
from envrl.errors import ConfigFault, DataFault
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.credit import advantage_function
from envrl.experiments.plain import as_plain
from envrl.experiments.resume import existing_record
from envrl.experiments.trained import load_weights
from envrl.policy.batch import RowKind
from envrl.rollout.rows import TokenRow
from envrl.rollout.turns import Turn
from envrl.training.settings import COMPARES_EPISODES, LossSettings
from support import adapters, policy_of, word_checkpoint

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"loss.algorithm": "reinforce"}, "loss.algorithm"),
    ({"loss.gigpo.gamma": 1.5}, r"loss\.gigpo\.gamma is 1\.5; use a number from 0 to 1"),
    ({"loss.gigpo.omega": -1.0}, r"loss\.gigpo\.omega is -1\.0; use 0"),
    ({"loss.gigpo.similarity": 0.0}, r"loss\.gigpo\.similarity is 0\.0; use a ratio above 0"),
    ({"loss.ppo.gamma": -0.1}, r"loss\.ppo\.gamma is -0\.1"),
    ({"loss.ppo.gae_lambda": 1.1}, r"loss\.ppo\.gae_lambda is 1\.1"),
    ({"loss.ppo.value_coefficient": 0.0}, r"loss\.ppo\.value_coefficient is 0\.0: PPO has no baseline"),
    ({"loss.ppo.value_clip": 0.0}, r"loss\.ppo\.value_clip is 0\.0; use a positive number, or null"),
    ({"loss.ppo.value_lr": 2.0}, r"loss\.ppo\.value_lr is 2\.0; use a number between 0 and 1"),
    ({"loss.aggregation": "median"}, "loss.aggregation"),
    ({"loss.row_tokens": 0}, r"loss\.row_tokens is 0; use at least 1"),
    ({"rollout.refill_rounds": -1}, r"rollout\.refill_rounds is -1; use 0"),
    ({"rollout.refill_rounds": 1, "env.train_games": 8}, "all env.train_games=8 games"),
    ({"rollout.episodes_per_game": 1}, r"episodes_per_game is 1, but loss\.algorithm=grpo"),
    ({"rollout.episodes_per_game": 1, "loss.algorithm": "gigpo"}, r"loss\.algorithm=gigpo"),
    ({"rollout.episodes_per_game": 1, "loss.algorithm": "rloo"}, r"loss\.algorithm=rloo"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[",".join(c) for c, _ in REFUSED])
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigFault, match=message):
        config_from(changes)


@pytest.mark.parametrize("algorithm", ["reinforce++", "ppo"])
def test_one_episode_a_game_is_enough_where_games_are_not_compared(algorithm: str) -> None:
    config_from({"rollout.episodes_per_game": 1, "loss.algorithm": algorithm})
    assert algorithm not in COMPARES_EPISODES


# Two games of two episodes with one step each, won 1 and 0, 3 and 1. Pools: means 0.5 and 2, unbiased
# deviations 0.70711 and 1.41421; over all four, mean 1.25 and squares 4.75.
ADVANTAGES = {
    "grpo": [0.70711, -0.70711, 0.70711, -0.70711],
    "rloo": [1.0, -1.0, 2.0, -2.0],
    "reinforce++": [-0.19868, -0.99340, 1.39076, -0.19868],
    # Every step has its episode's observation and return, so both levels say the same.
    "gigpo": [1.41421, -1.41421, 1.41421, -1.41421],
    # A critic that says 0 leaves the returns, which are centred and scaled over all turns.
    "ppo": [-0.19868, -0.99340, 1.39076, -0.19868],
}


@pytest.mark.parametrize("algorithm", ADVANTAGES)
def test_every_algorithm_gives_its_own_advantages(algorithm: str) -> None:
    rows = [
        TokenRow(
            RowKind.POLICY,
            (2, 5),
            bytes([1, 2]),
            (0.0, -1.0),
            score=score,
            group=number // 2,
            trajectory=number,
            turns=(Turn(1, 1, reward=score, anchor=f"game {number // 2}"),),
        )
        for number, score in enumerate((1.0, 0.0, 3.0, 1.0))
    ]
    values = [(0.0,)] * 4 if algorithm == "ppo" else None
    credit = advantage_function(config_from({"loss.algorithm": algorithm}).loss)(rows, values)
    assert [of_row[0] for of_row in credit.advantages] == pytest.approx(ADVANTAGES[algorithm], abs=2e-5)


def test_the_constant_of_the_aggregation_is_what_a_row_can_hold() -> None:
    base = {"sampling.max_new_tokens": 5, "env.max_steps": 7}
    assert config_from(base).bounded_loss.row_tokens == 35
    steps = {"rollout.layout": "steps", "auxiliary.sp_rows": "questions"}
    assert config_from(base, steps).bounded_loss.row_tokens == 5
    assert config_from(base, {"loss.row_tokens": 512}).bounded_loss.row_tokens == 512
    assert config_from(base).loss == LossSettings()


def test_a_record_older_than_a_setting_was_made_with_its_default(tmp_path: Path) -> None:
    config = RunConfig()
    old = as_plain(config)
    for name in ("algorithm", "gigpo", "ppo", "aggregation", "row_tokens"):
        del old["loss"][name]
    del old["rollout"]["refill_rounds"]
    record = RunRecord(arm="a", seed=0, status="finished", panel_hash="p", config=old)
    write_record(tmp_path, record)
    path = record_path(tmp_path, "a", 0)
    found = existing_record(path, config)
    assert found is not None
    assert found.config == old
    with pytest.raises(DataFault, match=r"loss\.algorithm: was grpo, is rloo"):
        existing_record(path, config_from({"loss.algorithm": "rloo"}))


def test_a_critic_in_a_checkpoint_is_passed_over_when_the_policy_is_evaluated() -> None:
    policy = policy_of(word_checkpoint(), lora=adapters(rank=2))
    trained = {n: p.detach() + 1 for n, p in policy.named_parameters() if p.requires_grad}
    saved = {f"policy.{n}": w for n, w in trained.items()} | {"critic.weight": torch.zeros(16)}
    load_weights(policy, {"state_dict": saved}, RunConfig())
    found = {n: p.detach() for n, p in policy.named_parameters() if p.requires_grad}
    assert all(torch.equal(found[n], w) for n, w in trained.items())
    with pytest.raises(DataFault, match="is only in one of them"):
        load_weights(policy, {"state_dict": {"critic.weight": torch.zeros(16)}}, RunConfig())
