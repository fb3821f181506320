"""An environment outside this package, named in a configuration as module:class."""

from __future__ import annotations

from pathlib import Path

import pytest

from envrl.analysis.records import load_records
from envrl.errors import ConfigFault, DataFault, EnvFault
from envrl.experiments import train
from envrl.experiments.config import config_from
from envrl.experiments.games import game_sets
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")

COINS = '''
from envrl.types import Game, Observation, StepResult


class Coins:
    """Heads wins."""

    @staticmethod
    def games(split):
        return [Game(f"{split}-{n}", "coins", split, "coin", str(n), 9) for n in range(4)]

    def reset(self, game, seed):
        self.left = game.max_steps
        return Observation("Your task is to: show heads.", ("heads", "tails"))

    def step(self, action):
        self.left -= 1
        won = action == "heads"
        info = {"won": won, "task_score": float(won)}
        return StepResult(Observation("Tails.", ("heads", "tails")), float(won), won, not self.left, info)

    def close(self):
        pass


class Empty(Coins):
    @staticmethod
    def games(split):
        return []


class Strings(Coins):
    @staticmethod
    def games(split):
        return ["heads"]


class Failing(Coins):
    @staticmethod
    def games(split):
        return open("/no/such/file").read()


class Broken(Coins):
    def reset(self, game, seed):
        raise ZeroDivisionError("no coin")


class Same(Coins):
    @staticmethod
    def games(split):
        return Coins.games("train")


class Halfway:
    def reset(self, game, seed): ...


count = 3
'''
SMALL = {
    "env.max_steps": 3,
    "env.train_games": None,
    "rollout.games": 2,
    "rollout.episodes_per_game": 2,
    "evaluation.games": 3,
}


@pytest.fixture
def coins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "coins_for_tests.py").write_text(COINS)
    (tmp_path / "raising_for_tests.py").write_text("raise RuntimeError('no licence')")
    (tmp_path / "no_python_for_tests.py").write_text("class Coins(")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("coins")
def test_a_run_trains_on_it(tmp_path: Path) -> None:
    options = {
        **SMALL,
        "env.name": "coins_for_tests:Coins",
        "policy.model": str(checkpoint()),
        "policy.lora.rank": 2,
        "sampling.max_new_tokens": 4,
        "sampling.max_context": 200,
        "train.iterations": 2,
        "train.accelerator": "cpu",
        "evaluation.dynamics": 4,
        "loss.sp.weight": 0.2,
        "loss.id.weight": 0.2,
    }
    root = tmp_path / "mlruns"
    words = [f"--{name}={'null' if value is None else value}" for name, value in options.items()]
    assert train.main(["--name", "coins", "--root", str(root), *words]) == 0
    (record,) = load_records(root / "studies" / "coins")
    assert record.status == "finished"
    assert [e.iteration for e in record.evaluations] == [0, 2]
    last = record.evaluations[-1]
    assert sorted(o.game_id for o in last.outcomes) == sorted({o.game_id for o in last.outcomes})
    assert len(last.outcomes) == 3
    assert all(o.game_id.startswith("test-") for o in last.outcomes)


@pytest.mark.usefixtures("coins")
def test_games_are_the_classes_own() -> None:
    config = config_from(SMALL, {"env.name": "coins_for_tests:Coins", "policy.model": str(checkpoint())})
    games = game_sets(config.env, config.evaluation, 2)
    assert [g.game_id for g in games.training] == [f"train-{n}" for n in range(4)]
    assert {g.max_steps for g in (*games.training, *games.panel.games)} == {3}
    assert config.worded.wording.role == "You act in an environment described in text"
    valid = config_from(SMALL, {"env.name": "coins_for_tests:Coins", "policy.model": "tiny-alfworld"})
    assert valid.env.steps == 3
    assert config_from({"env.name": "a:B", "policy.model": "tiny-alfworld"}).env.steps == 12


@pytest.mark.usefixtures("coins")
@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        (
            "nowhere_at_all:Coins",
            ConfigFault,
            r"\(ModuleNotFoundError: No module named 'nowhere_at_all'\); put its",
        ),
        ("coins_for_tests:Cons", ConfigFault, r"has no attribute 'Cons'\); repair the module or the name"),
        ("raising_for_tests:Coins", ConfigFault, r"\(RuntimeError: no licence\); repair the module"),
        ("no_python_for_tests:Coins", ConfigFault, r"\(SyntaxError: .*\); repair the module"),
        (".coins:Coins", ConfigFault, r"\(TypeError: .*\); repair the module"),
        ("coins_for_tests:count", ConfigFault, "lacks games, reset, step, close"),
        ("coins_for_tests:Halfway", ConfigFault, "which lacks games, step, close; follow TextEnv"),
        ("coins_for_tests:Empty", DataFault, "has no games of the split 'test'"),
        ("coins_for_tests:Strings", DataFault, r"games\('test'\) gave 'heads', no Game"),
        ("coins_for_tests:Failing", DataFault, r"games\('test'\) raised FileNotFoundError"),
        ("coins_for_tests:Broken", EnvFault, "ZeroDivisionError: no coin"),
        ("coins_for_tests:Same", DataFault, "4 training games are in panel 'test' too"),
    ],
)
def test_what_is_no_environment_is_refused(name: str, fault: type[Exception], message: str) -> None:
    config = config_from(SMALL, {"env.name": name, "policy.model": "tiny-alfworld", "evaluation.games": 4})
    with pytest.raises(fault, match=message):
        game_sets(config.env, config.evaluation, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env.name": "alfwrold"}, "env.name is 'alfwrold'; use alfworld or webshop, or module:class"),
        ({"env.name": "a:B"}, "policy.model is tiny, but no policy is embedded for env.name=a:B"),
        ({"env.name": "a:B", "env.games": "official"}, "env.games is official, which changes nothing here"),
        ({"env.name": "a:B", "env.receptacles": 3}, "env.receptacles is 3, which changes nothing here"),
        ({"env.name": "a:B", "env.webshop.products": 3}, "env.webshop.products is 3, which changes nothing"),
    ],
)
def test_lines_without_effect_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigFault, match=message):
        config_from(changes)
