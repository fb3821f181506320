"""Every field of the run configuration changes something that can be seen from outside.

Each entry changes one field of a small run and names what must differ: the run is played, trained and
evaluated in full, only MLflow is replaced by a list. A field without an entry fails the test.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger

from envrl.analysis.episodes import evaluated_iterations, read_episodes
from envrl.envs.alfworld.engine import AlfworldEnv
from envrl.envs.base import TextEnv
from envrl.errors import ConfigFault, DataFault, EnvrlError, PolicyFault
from envrl.experiments import run, runner, shown
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.games import GameSets, environment_factory, game_sets
from envrl.experiments.preflight import preflight
from envrl.experiments.run import execute_run
from envrl.experiments.run_place import RunPlace
from envrl.policy.batch import Outcome
from envrl.policy.model import Policy, load_policy
from envrl.policy.sampler import SampledTokens
from envrl.tracking.store import Store
from envrl.training.accounts import Accounts
from envrl.training.scores import target_scores
from envrl.training.weights import StopRule
from envrl.types import Game, Observation, StepResult
from fake_server import FakeServer, serving
from studies import tiny
from support import checkpoint, policy_of

pytestmark = pytest.mark.usefixtures("own_places")


def leaves(value: Any, prefix: str = "") -> list[str]:
    """Dotted names of all fields below a configuration that are no configurations themselves."""
    names = []
    for each in fields(value):
        inner = getattr(value, each.name)
        name = f"{prefix}{each.name}"
        names += leaves(inner, f"{name}.") if is_dataclass(inner) else [name]
    return names


class CoinEnv:
    """Wins, loses or goes on by what was written, so that a random policy has episodes of every kind."""

    def __init__(self) -> None:
        self._left = 0

    def reset(self, game: Game, seed: int) -> Observation:
        self._left = game.max_steps
        return Observation(f"You are in a room. Your task is to: find {game.game_id[:4]}.", ("look", "help"))

    def step(self, action: str) -> StepResult:
        self._left -= 1
        coin = sum(action.encode()) % 7
        won, over = coin == 0, self._left == 0
        text = "Nothing happens." if coin % 2 else f"On the desk {coin}, you see a mug {coin}."
        info = {"won": won, "task_score": float(won)}
        return StepResult(Observation(text, ("look", "help")), float(won), won, over and not won, info)

    def close(self) -> None:
        pass


@dataclass
class Seen:
    """What a run does, apart from times.

    Attributes:
        metrics: (name, step) → value.
        transcripts: What the policy wrote at each evaluation.
        kept: Number of episodes kept of each evaluation.
        saves: Number of checkpoints.
        weights: Trained weights at the end.
        record: Outcomes of all evaluations.
        model: Facts about the model in memory.
    """

    metrics: dict[tuple[str, int], float] = field(default_factory=dict)
    transcripts: list[str] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    saves: int = 0
    micro_batches: int = 0
    weights: dict[str, list[float]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


class ListLogger(Logger):
    """Keeps what Lightning logs."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    @property
    def name(self) -> str:
        return "list"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        keep(self._seen, metrics, round(metrics["iteration"]))


def keep(seen: Seen, metrics: Mapping[str, float], step: int) -> None:
    for name, value in metrics.items():
        if not name.endswith(("seconds", "tokens_per_second")):
            seen.metrics[name, step] = value


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Executes a configuration and tells what it did."""

    def execute(config: RunConfig, fake_games: bool = True) -> Seen:
        seen = Seen()
        # Tests of environments that hang leave threads behind.
        others = set(threading.enumerate())

        @contextmanager
        def context(*_: Any) -> Iterator[str]:
            yield "run"

        def fit_with_eyes(self: Any, path: Path | None) -> None:
            fit(self, path)
            look_at(seen, self._parts, set(threading.enumerate()) - others)

        def save_with_count(self: Any, *arguments: Any) -> None:
            seen.saves += 1
            save(self, *arguments)

        def step_with_count(self: Any, *arguments: Any) -> Any:
            seen.micro_batches += 1
            return step(self, *arguments)

        with monkeypatch.context() as patch:
            fit, save = runner.Runner._fit, runner.L.Trainer.save_checkpoint
            step = runner.EnvRLModule.training_step
            if fake_games:
                patch.setattr(run, "environment_factory", lambda _: CoinEnv)
            patch.setattr(runner, "run_context", context)
            patch.setattr(runner, "lightning_logger", lambda *_: ListLogger(seen))
            patch.setattr(runner, "log_metrics", lambda _s, _r, metrics, at: keep(seen, metrics, at))
            patch.setattr(shown, "log_text", lambda _s, _r, text, _n: seen.transcripts.append(text))
            patch.setattr(shown, "log_episodes", lambda *_, **__: None)
            for name in ("log_artifact", "log_config", "log_datasets", "log_environment"):
                patch.setattr(runner, name, lambda *_, **__: None)
            patch.setattr(runner.Runner, "_fit", fit_with_eyes)
            patch.setattr(runner.L.Trainer, "save_checkpoint", save_with_count)
            patch.setattr(runner.EnvRLModule, "training_step", step_with_count)
            threads = torch.get_num_threads()
            number = sum(1 for _ in tmp_path.iterdir())
            place = RunPlace(tmp_path / str(number), "e", "a", Store(tmp_path, "none", None))
            try:
                record = execute_run(config, place)
                seen.model["threads"] = torch.get_num_threads()
            finally:
                torch.set_num_threads(threads)
        folder = place.folder(config.seed)
        seen.kept = [len(list(read_episodes(folder, at))) for at in evaluated_iterations(folder)]
        seen.record = record.model_dump(include={"evaluations", "training_success", "panel_hash"})
        return seen

    return execute


def look_at(seen: Seen, parts: runner.Parts, threads: set[threading.Thread]) -> None:
    policy = parts.policy
    seen.weights = {
        n: p.detach().float().flatten().tolist() for n, p in policy.named_parameters() if p.requires_grad
    }
    seen.model |= {
        "dtype": next(policy.parameters()).dtype,
        "attention": policy.causal.config._attn_implementation,
        "checkpointing": policy.causal.is_gradient_checkpointing,
        "sampled from a copy": policy.sampling_model() is not policy.causal,
        "environment threads": any(t.name.startswith("env-slot") for t in threads),
        "training games": {g.game_id for g in parts.games.training},
        "optimiser": type(parts.module.optimizers()).__name__,
    }


BASE: dict[str, Any] = {
    "train": {"iterations": 2, "diagnose_every": 1, "transcripts": 1},
    "env": {"max_steps": 6, "receptacles": None, "objects_per_receptacle": 1.0, "train_games": 3},
    "evaluation": {"games": 4, "every": 1},
    "rollout": {"games": 2, "episodes_per_game": 3},
    "batch": {"micro_batches": 1},
    # The reward shows in the advantages only where they are not divided by its standard deviation.
    "loss": {"sp": {"weight": 0.1}, "id": {"weight": 0.1}, "scale_by_std": False},
}
STEPS = {"rollout.layout": "steps", "auxiliary.sp_rows": "questions"}
FAR = {"batch.epochs": 3, "optim.lr": 0.1}
"""Updates that leave the sampling policy far enough behind for the bounds of the ratio to matter."""
ALONE = {"loss.entropy_coefficient": 0.0, "loss.sp.weight": 0.0}
"""No term beside the policy's reads its rows."""
GIGPO = {"loss.algorithm": "gigpo"}
PPO = {"loss.algorithm": "ppo"}
SWITCH = {"loss.sp.kind": "switch", "loss.id.kind": "switch"}
NORMS = {"loss.balance.kind": "gradient_norm", "train.iterations": 3}
"""Weights of the third iteration depend on measurements in the first two."""


@dataclass(frozen=True)
class Case:
    """A field, the value it is changed to, and what the run must have set beside it.

    Attributes:
        value: The changed value.
        shows: Attributes of :class:`Seen` of which at least one must differ.
        given: Other settings of both runs.
    """

    value: Any
    shows: tuple[str, ...] = ("metrics", "record", "weights")
    given: Mapping[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "seed": Case(1),
    "env.train_games": Case(2, ("model",)),
    "env.receptacles": Case(7, ("record",)),
    "env.objects_per_receptacle": Case(None, ("record",)),
    "env.task_types": Case(["pick_and_place_simple"], ("record",)),
    "env.max_steps": Case(3, ("record",)),
    "env.games_seed": Case(1, ("record",)),
    "prompt.form": Case("reasoned"),
    "prompt.history": Case(0, given=STEPS),
    "prompt.show_admissible": Case(True),
    "prompt.domain": Case("webshop", given={"prompt.form": "reasoned"}),
    "policy.lora.enabled": Case(False, ("weights",)),
    "policy.lora.rank": Case(3, ("weights",)),
    "policy.lora.alpha": Case(16.0, ("weights",)),
    "policy.lora.dropout": Case(0.5, ("weights",)),
    "policy.lora.targets": Case("q_proj,v_proj", ("weights",)),
    "policy.dtype": Case("bfloat16", ("model",)),
    "policy.gradient_checkpointing": Case(True, ("model",)),
    "policy.packed": Case(False, ("model",)),
    "policy.merge_for_sampling": Case(False, ("model",)),
    "sampling.max_new_tokens": Case(3, ("record",)),
    "sampling.temperature": Case(0.1),
    "sampling.eval_temperature": Case(3.0, ("transcripts",)),
    "sampling.max_context": Case(60, ("record",)),
    "rollout.layout": Case("steps", given={"auxiliary.sp_rows": "questions"}),
    "rollout.games": Case(3),
    "rollout.episodes_per_game": Case(2),
    "rollout.format_penalty": Case(0.9, ("weights",), {"prompt.form": "reasoned"}),
    "rollout.win_reward": Case(1.0, ("weights",)),
    "rollout.refill_rounds": Case(1, ("weights",), {"env.train_games": 6}),
    "rollout.mask_overlong": Case(True, ("weights",)),
    "rollout.overlong_buffer": Case(4, ("weights",)),
    "rollout.overlong_penalty": Case(0.2, ("weights",), {"rollout.overlong_buffer": 4}),
    "rollout.overlong_limit": Case(20, ("weights",), {"rollout.overlong_buffer": 4}),
    "rollout.env_timeout_s": Case(60.0, ("model",)),
    "auxiliary.sp_rows": Case("questions", ("metrics",)),
    "auxiliary.max_transitions": Case(2, ("metrics",)),
    "auxiliary.skip_terminal": Case(True, ("metrics",)),
    "auxiliary.skip_noops": Case(True, ("metrics",)),
    "auxiliary.shuffle_targets": Case(True, ("metrics",)),
    "auxiliary.control": Case("drop_action", ("metrics",)),
    "auxiliary.data": Case("random", ("metrics",), {"auxiliary.sp_rows": "questions"}),
    "batch.updates": Case(2, ("weights",)),
    "batch.micro_batches": Case(2, ("micro_batches",)),
    "batch.epochs": Case(2, ("weights",)),
    "batch.alternate": Case(1, ("weights",)),
    "batch.extra": Case("policy", ("weights",), {"batch.alternate": 1}),
    "batch.skip_flat": Case(False, ("metrics",), ALONE),
    "loss.sp.kind": Case("constant", ("weights",)),
    "loss.sp.weight": Case(0.0, ("weights",)),
    "loss.sp.length": Case(1, ("weights",)),
    "loss.sp.switch_at": Case(1.0, ("weights",), SWITCH),
    "loss.sp.warmup": Case(3, ("weights",)),
    "loss.id.warmup": Case(3, ("weights",)),
    "loss.objectives": Case([{"use": "echo"}], ("weights",)),
    "loss.balance.kind": Case("uncertainty", ("weights",)),
    "loss.balance.every": Case(2, ("weights",), NORMS),
    "loss.balance.keep": Case(0.0, ("weights",), NORMS),
    "loss.balance.rate": Case(0.9, ("weights",), {"loss.balance.kind": "uncertainty"}),
    "loss.balance.most": Case(0.001, ("weights",), NORMS),
    "loss.stop.window": Case(1, ("metrics",)),
    "loss.id.kind": Case("constant", ("weights",)),
    "loss.id.weight": Case(0.0, ("weights",)),
    "loss.id.length": Case(1, ("weights",)),
    "loss.id.switch_at": Case(1.0, ("weights",), SWITCH),
    "loss.algorithm": Case("rloo", ("weights",)),
    "loss.gigpo.gamma": Case(0.5, ("weights",), GIGPO),
    "loss.gigpo.omega": Case(0.0, ("weights",), GIGPO),
    "loss.gigpo.similarity": Case(0.3, ("weights",), GIGPO),
    "loss.ppo.gamma": Case(0.5, ("weights",), PPO),
    "loss.ppo.gae_lambda": Case(0.0, ("weights",), PPO),
    "loss.ppo.value_coefficient": Case(5.0, ("weights",), PPO),
    "loss.ppo.value_clip": Case(0.001, ("weights",), FAR | PPO),
    "loss.ppo.value_lr": Case(0.1, ("weights",), PPO),
    # In the other layout an episode is one row, so that both pools are the same.
    "loss.normalisation": Case("episodes", ("weights",), STEPS),
    "loss.scale_by_std": Case(True, ("weights",)),
    "loss.aggregation": Case("rows", ("weights",)),
    "loss.row_tokens": Case(3, ("weights",), {"loss.aggregation": "constant"}),
    "loss.clip_low": Case(0.9, ("weights",), FAR),
    "loss.clip_high": Case(9.0, ("weights",), FAR),
    "loss.dual_clip": Case(1.01, ("weights",), FAR | {"loss.clip_high": 9.0}),
    "loss.kl_coefficient": Case(0.5, ("weights",)),
    "loss.entropy_coefficient": Case(0.5, ("weights",)),
    "optim.lr": Case(0.01, ("weights",)),
    "optim.weight_decay": Case(0.9, ("weights",)),
    "optim.beta2": Case(0.5, ("weights",)),
    "optim.gradient_clip": Case(0.001, ("weights",)),
    "train.iterations": Case(1, ("record",)),
    "train.threads": Case(2, ("model",)),
    "train.precision": Case("bf16-mixed", ("metrics",)),
    "train.diagnose_every": Case(0, ("metrics",)),
    "train.checkpoint_every": Case(2, ("saves",)),
    "train.transcripts": Case(2, ("transcripts",)),
    "evaluation.games": Case(3, ("record",)),
    "evaluation.split": Case("valid_unseen", ("record",)),
    "evaluation.seed": Case(1, ("record",)),
    "evaluation.every": Case(2, ("record",)),
    "evaluation.dynamics": Case(5, ("record",)),
    "evaluation.episodes": Case(3, ("kept",)),
}
ELSEWHERE = {
    "loss.stop.success_drop": "test_harm_is_what_the_limits_say",
    "loss.stop.imagined_rise": "test_harm_is_what_the_limits_say",
    "env.name": "test_the_name_decides_what_is_played",
    "env.webshop.products": "test_the_shop_is_the_one_described",
    "env.webshop.goals": "test_the_shop_is_the_one_described",
    "env.webshop.test_goals": "test_the_shop_is_the_one_described",
    "env.webshop.order": "test_the_order_decides_who_has_which_goal",
    "env.webshop.catalogue": "test_official_products_come_from_their_folder",
    "env.backend": "test_the_backend_decides_who_plays",
    "env.games": "test_official_games_come_from_their_folder",
    "policy.model": "test_the_model_is_the_one_named",
    "policy.score_chunk": "test_so_many_scores_are_computed_at_once",
    "policy.load_in_4bit": "test_quantised_weights_or_a_refusal",
    "policy.load_in_8bit": "test_quantised_weights_or_a_refusal",
    "optim.max_skipped_updates": "test_the_limit_of_skipped_updates",
    "optim.eight_bit": "test_an_eight_bit_optimiser_or_a_refusal",
    "train.accelerator": "test_a_gpu_is_used_or_refused",
    "rollout.at_once": "test_fewer_episodes_at_once_need_fewer_places",
    "rollout.pool": "test_the_pool_is_the_one_asked_for",
    "train.devices": "test_processes_fit_the_batch_and_the_machine",
    "train.nodes": "test_processes_fit_the_batch_and_the_machine",
    "train.strategy": "test_processes_fit_the_batch_and_the_machine",
    "sampling.server.url": "test_the_server_is_the_one_at_the_address",
    "sampling.server.model": "test_the_server_is_the_one_at_the_address",
    "sampling.server.adapters": "test_the_server_reads_adapters_from_their_folder",
    "sampling.server.timeout_s": "test_the_server_has_so_much_time_and_so_many_attempts",
    "sampling.server.retries": "test_the_server_has_so_much_time_and_so_many_attempts",
    "sampling.server.max_gap": "test_the_server_may_differ_by_so_much",
}


def configured(**changes: Any) -> RunConfig:
    return config_from(tiny(checkpoint(), BASE), changes)


@cache
def _same_again(given: tuple[tuple[str, Any], ...]) -> list[Seen]:
    """Slot for what a run with these settings did, so that it is executed once."""
    return []


def test_every_field_has_an_entry() -> None:
    names = leaves(RunConfig())
    assert sorted([*CASES, *ELSEWHERE]) == sorted(names)
    here = globals()
    assert [why for why in ELSEWHERE.values() if why.startswith("test_") and why not in here] == []


def test_the_same_run_twice_is_the_same(watch: Any) -> None:
    """Otherwise the next test would see changes everywhere."""
    first, second = watch(configured()), watch(configured())
    assert first == second
    assert {r["won"] for e in first.record["evaluations"] for r in e["outcomes"]} == {True, False}
    assert first.metrics["rollout/zero_variance_share", 0] < 1


@pytest.mark.parametrize("name", CASES)
def test_a_field_changes_something(name: str, watch: Any) -> None:
    case = CASES[name]
    slot = _same_again(tuple(sorted(case.given.items())))
    if not slot:
        slot.append(watch(configured(**case.given)))
    changed = watch(configured(**{**case.given, name: case.value}))
    differing = [what for what in case.shows if getattr(slot[0], what) != getattr(changed, what)]
    assert differing, f"{name}={case.value} leaves {', '.join(case.shows)} as they were"


def test_harm_is_what_the_limits_say() -> None:
    """Two iterations: success falls by 0.2 while the loss falls, imagined observations rise by 0.2."""

    def given_up(success: float, imagined: float, **limits: float) -> bool:
        changes = {f"loss.stop.{name}": limit for name, limit in limits.items()}
        rule = StopRule(configured(**{"loss.stop.window": 1}, **changes).loss.stop)
        rule.watch(Outcome(0.5, 0.0), 2.0)
        rule.watch(Outcome(success, imagined), 1.0)
        return rule.stopped

    assert given_up(0.3, 0.0)
    assert not given_up(0.3, 0.0, success_drop=0.3)
    assert given_up(0.5, 0.2)
    assert not given_up(0.5, 0.2, imagined_rise=0.3)


def test_the_backend_decides_who_plays() -> None:
    def maker(backend: str) -> type[TextEnv]:
        made: Any = environment_factory(configured(**{"env.backend": backend}).env)
        return made

    assert maker("native") is AlfworldEnv
    assert maker("textworld").__name__ == "TextWorldEnv"


SHOP = {"env": {"name": "webshop", "webshop": {"products": 60, "test_goals": 20}}, "evaluation": {"games": 5}}


def shop_games(**changes: Any) -> GameSets:
    config = config_from(SHOP, changes)
    return game_sets(config.env, config.evaluation)


def test_the_name_decides_what_is_played() -> None:
    games = shop_games()
    assert {g.env for g in (*games.training, *games.panel.games)} == {"webshop"}
    assert {g.max_steps for g in games.panel.games} == {15}
    env = environment_factory(config_from(SHOP).env)()
    assert env.reset(games.panel.games[0], 0).admissible == ("search[<your query>]", "click[search]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env.receptacles": 4}, r"env\.receptacles is 4, .* use env\.name=alfworld"),
        ({"env.webshop.catalogue": "full"}, r"env\.webshop\.catalogue is full, .* env\.games=official"),
        ({"env.games": "official"}, r"env\.webshop\.products is 60, .* env\.games=generated"),
        ({"env.name": "alfworld"}, r"env\.webshop\.products is 60, .* env\.name=webshop"),
        ({"env.webshop.products": 3}, r"lower env\.webshop\.test_goals \(20\)"),
    ],
)
def test_settings_without_effect_are_refused(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigFault, match=message):
        shop_games(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("env.webshop.products", 50), ("env.webshop.goals", "human"), ("env.webshop.test_goals", 10)],
)
def test_the_shop_is_the_one_described(name: str, value: Any) -> None:
    def wishes(games: GameSets) -> set[str]:
        return {g.game_id for g in (*games.training, *games.panel.games)}

    assert wishes(shop_games()) == wishes(shop_games())
    assert wishes(shop_games()) != wishes(shop_games(**{name: value}))


def test_the_order_decides_who_has_which_goal() -> None:
    by_workers = {
        "env.webshop.order": "workers",
        "env.train_games": None,
        "env.webshop.products": 200,
        "env.webshop.test_goals": 500,
    }
    games = shop_games(**by_workers)
    assert games.schedule is not None
    assert {g.spec.split()[0] for g in (*games.training, *games.panel.games)} == {"worker"}
    assert shop_games().schedule is None


def test_official_products_come_from_their_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path))
    official = {"env.games": "official", "env.webshop.products": 1000}
    with pytest.raises(DataFault, match=r"items_shuffle_1000\.json: download it from"):
        shop_games(**official)
    with pytest.raises(DataFault, match=r"items_shuffle\.json: download it from"):
        shop_games(**official, **{"env.webshop.catalogue": "full"})


@pytest.mark.parametrize(
    ("name", "games", "steps"),
    [
        ("alfworld", "generated", 12),
        ("alfworld", "official", 50),
        ("webshop", "generated", 15),
        ("webshop", "official", 15),
        ("somewhere:Else", "generated", 12),
    ],
)
def test_episodes_have_as_many_steps_as_their_games_need(name: str, games: str, steps: int) -> None:
    wanted = {"env.name": name, "env.games": games, "policy.model": "tiny-alfworld"}
    assert config_from(wanted).env.steps == steps
    assert config_from(wanted, {"env.max_steps": 7}).env.steps == 7


def test_official_games_come_from_their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", "nowhere")
    assert len(preflight(configured()).panel.games) == 4
    with pytest.raises(DataFault, match="ALFWORLD_DATA names nowhere"):
        preflight(configured(**{"env.games": "official"}))


def test_the_model_is_the_one_named() -> None:
    assert str(checkpoint()) in run.build(configured()).policy.causal.config._name_or_path


def refusal(config: RunConfig) -> str | None:
    """What the run is refused for, None if it can begin."""
    try:
        preflight(config)
    except EnvrlError as error:
        return str(error)
    return None


@pytest.mark.parametrize("option", ["policy.load_in_4bit", "policy.load_in_8bit"])
def test_quantised_weights_or_a_refusal(option: str) -> None:
    """Whether this machine can do it or not, the setting is never passed over."""
    config = configured(**{option: True})
    reason = refusal(config)
    if reason is not None:
        assert option in reason
        return
    kinds = {type(module).__name__ for module in run.build(config).policy.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}


def test_an_eight_bit_optimiser_or_a_refusal(watch: Any) -> None:
    config = configured(**{"optim.eight_bit": True})
    reason = refusal(config)
    if reason is not None:
        assert "optim.eight_bit" in reason
        return
    assert "8bit" in watch(config).model["optimiser"]


def test_the_limit_of_skipped_updates(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates, both left out: one in a row is allowed, or two are."""
    changes = {"batch.updates": 2, "train.iterations": 1}
    monkeypatch.setattr(Accounts, "finite", property(lambda _: False))
    with pytest.raises(PolicyFault, match="2 updates one after the other"):
        watch(configured(**changes, **{"optim.max_skipped_updates": 1}))
    seen = watch(configured(**changes, **{"optim.max_skipped_updates": 2}))
    assert seen.metrics["train/skipped_updates", 0] == 2


@pytest.mark.parametrize(("chunk", "parts"), [(2400, [5, 5, 2]), (1, [1] * 12), (134_217_728, [12])])
def test_so_many_scores_are_computed_at_once(
    chunk: int, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(configured(**{"policy.score_chunk": chunk}).embodied)
    assert 400 < policy.vocabulary <= 480
    sizes: list[int] = []
    scores = Policy.logits
    monkeypatch.setattr(Policy, "logits", lambda of, h: (sizes.append(len(h)), scores(of, h))[1])
    hidden = torch.randn(12, policy.causal.config.hidden_size)
    assert len(target_scores(policy, hidden, torch.arange(12)).logprobs) == 12
    assert sizes == parts


def test_a_gpu_is_used_or_refused() -> None:
    config = configured(**{"train.accelerator": "gpu"})
    if torch.cuda.is_available():
        pytest.skip("this machine has one; the marker `gpu` covers it")
    with pytest.raises(ConfigFault, match="accelerator is gpu"):
        preflight(config)


def test_a_precision_that_would_convert_the_batch_is_refused() -> None:
    with pytest.raises(ConfigFault, match=r"precision is bf16-true, .* use policy.dtype=bfloat16"):
        configured(**{"train.precision": "bf16-true"})


def test_processes_fit_the_batch_and_the_machine(tmp_path: Path) -> None:
    """What they do is in test_processes.py; here is what they are refused for."""

    def fault(**changes: Any) -> str:
        with pytest.raises(ConfigFault) as caught:
            configured(**{f"train.{name}": value for name, value in changes.items()})
        return str(caught.value)

    micro_batches = configured().batch.micro_batches
    assert f"use a multiple of {micro_batches + 1}" in fault(devices=micro_batches + 1)
    assert f"use a multiple of {2 * micro_batches}" in fault(devices=2, nodes=micro_batches)
    assert "train.devices is 0; use at least 1" in fault(devices=0)
    for strategy in ("ddp", "zero", "fsdp"):
        assert f"{strategy}, which changes nothing with train.devices=1" in fault(strategy=strategy)
    divided = {"train.devices": 2, "batch.micro_batches": 2, "train.strategy": "zero"}
    with pytest.raises(ConfigFault, match=r"train.strategy is zero, .* but optim.eight_bit is set"):
        configured(**divided, **{"optim.eight_bit": True})
    pieces = {**divided, "train.strategy": "fsdp", "train.diagnose_every": 0}
    assert configured(**pieces).train.strategy == "fsdp"
    for changed, said in (
        ({"train.diagnose_every": 10}, r"diagnose_every is 10, .* set train.diagnose_every=0"),
        ({"policy.load_in_4bit": True}, r"or policy.load_in_8bit is set, .* can't be cut; load the base"),
        ({"loss.balance.kind": "gradient_norm"}, r"loss.balance.kind is gradient_norm, .* another kind"),
        ({"policy.lora.enabled": False, "optim.eight_bit": True}, r"optim.eight_bit is set, .* to false"),
    ):
        with pytest.raises(ConfigFault, match=r"train.strategy is fsdp.*" + said):
            configured(**{**pieces, **changed})
    two = configured(**{"batch.micro_batches": 2, "train.nodes": 2})
    place = RunPlace(tmp_path, "two", "run", Store(tmp_path, "none", None))
    with pytest.raises(ConfigFault, match="start the run on each of them by `torchrun --nnodes 2 "):
        execute_run(two, place)


def test_fewer_episodes_at_once_need_fewer_places() -> None:
    panel = game_sets(configured().env, configured().evaluation).panel
    sizes = []
    for at_once in (None, 3):
        with run.build_pool(configured(**{"rollout.at_once": at_once}), panel, 5) as pool:
            sizes.append(len(pool))
    assert sizes == [5, 3]
    with pytest.raises(ConfigFault, match=r"rollout.at_once is 0; use at least 1, or null"):
        configured(**{"rollout.at_once": 0})


def test_the_pool_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does is in test_ray_pool.py."""
    asked: list[Any] = []
    monkeypatch.setattr(run, "RayPool", lambda *arguments: asked.append(arguments))
    panel = game_sets(configured().env, configured().evaluation).panel
    run.build_pool(configured(), panel, 5).close()
    assert asked == []
    run.build_pool(configured(**{"rollout.pool": "ray", "rollout.env_timeout_s": 7.0}), panel, 5)
    assert [(size, timeout_s) for _, size, timeout_s in asked] == [(5, 7.0)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    for name in ("ENVRL_SERVER_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with serving(FakeServer(checkpoint())) as running:
        yield running


def served(server: FakeServer, folder: Path, **changes: Any) -> RunConfig:
    names = {"url": server.url, "adapters": str(folder)} | changes
    return configured(**{f"sampling.server.{name}": value for name, value in names.items()})


def one_answer(config: RunConfig) -> SampledTokens:
    session = run.build_sampler(config)(policy_of(checkpoint(), merge_for_sampling=False))(1)
    session.append([[2, 40, 41, 3]])
    return session.sample([np.random.default_rng(0)], 1.0, 4)[0]


def test_the_server_is_the_one_at_the_address(server: FakeServer, tmp_path: Path) -> None:
    assert refusal(configured()) is None
    assert server.asked == []
    assert refusal(served(server, tmp_path)) is None
    assert server.paths() == ["/v1/models"]
    assert "does not serve 'other'" in (refusal(served(server, tmp_path, model="other")) or "")


def test_the_server_reads_adapters_from_their_folder(server: FakeServer, tmp_path: Path) -> None:
    one_answer(served(server, tmp_path / "here"))
    (asked,) = (body for path, body, _ in server.asked if "load" in path)
    assert Path(asked["lora_path"]).parent == tmp_path / "here"


def test_the_server_has_so_much_time_and_so_many_attempts(server: FakeServer, tmp_path: Path) -> None:
    server.failures = 2
    assert "after 1 attempts" in (refusal(served(server, tmp_path, retries=0)) or "")
    assert refusal(served(server, tmp_path, retries=1)) is None
    server.delay_s = 2.0
    with pytest.raises(PolicyFault, match="timed out"):
        one_answer(served(server, tmp_path, retries=0, timeout_s=1.0))
    assert one_answer(served(server, tmp_path, retries=0))


def test_the_server_may_differ_by_so_much(server: FakeServer, tmp_path: Path) -> None:
    def shifted(choice: dict[str, Any]) -> None:
        choice["logprobs"]["token_logprobs"] = [p - 0.2 for p in choice["logprobs"]["token_logprobs"]]

    server.spoil = shifted
    with pytest.raises(PolicyFault, match=r"by 0\.2 nats a token"):
        one_answer(served(server, tmp_path))
    assert one_answer(served(server, tmp_path, max_gap=0.3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy.lora.enabled": False}, "can only exchange adapters"),
        ({"policy.load_in_4bit": True}, "would not be the quantised one"),
        ({"policy.load_in_8bit": True}, "would not be the quantised one"),
    ],
)
def test_what_the_server_cant_sample_from_is_refused(change: dict[str, Any], message: str) -> None:
    assert configured(**change)
    with pytest.raises(ConfigFault, match=message):
        configured(**{"sampling.server.url": "http://localhost:8000"}, **change)
