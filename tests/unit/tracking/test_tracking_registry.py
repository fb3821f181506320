"""Datasets and the registry in a real store: everything once, the alias where it belongs."""

from pathlib import Path

from envrl.tracking import runs
from envrl.tracking.datasets import games_dataset
from envrl.tracking.registry import Registered, model_name, register_adapter
from envrl.tracking.store import Store, client
from envrl.types import Game

TAGS = {"env": "alfworld", "algorithm": "grpo", "arm": "grpo", "seed": "0", "panel": "abc"}
NAME = "envrl-alfworld-tiny"


def run_with_adapter(store: Store, folder: Path) -> str:
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS) as run_id:
        runs.log_artifact(store, run_id, folder / "adapter", "adapter")
    return run_id


def register(store: Store, run_id: str, success: float, panel: str = "abc") -> Registered:
    return register_adapter(store, NAME, run_id, "adapter", success, panel, {"study": "quick", "arm": "grpo"})


def test_a_better_adapter_of_the_same_panel_takes_the_alias(store: Store, tmp_path: Path) -> None:
    one, two, three, other = [run_with_adapter(store, tmp_path / name) for name in "abcd"]
    assert register(store, one, 0.5) == Registered(NAME, "1", True, "1", True)
    assert register(store, one, 0.5) == Registered(NAME, "1", True, "1", True), "registered once"
    assert register(store, two, 0.5) == Registered(NAME, "2", False, "1", True), "no better"
    assert register(store, three, 0.75) == Registered(NAME, "3", True, "3", True)
    assert register(store, other, 1.0, "other") == Registered(NAME, "4", False, "3", False)
    best = client(store).get_model_version_by_alias(NAME, "best")
    assert best.run_id == three
    assert best.tags == {"study": "quick", "arm": "grpo", "success": "0.75", "panel": "abc"}
    assert len(client(store).search_model_versions(f"name='{NAME}'")) == 4


def test_a_model_is_named_after_its_environment_and_base() -> None:
    assert model_name("webshop", "/models/Qwen 2/") == "envrl-webshop-Qwen-2"
    assert model_name("alfworld", "tiny") == NAME
    assert model_name("my_lock:LockEnv", "tiny-alfworld") == "envrl-my_lock-LockEnv-tiny-alfworld"


def test_games_are_datasets_of_the_run_and_logged_once(store: Store) -> None:
    games = [Game(f"g{n}", "alfworld", "valid_seen", "ab"[n % 2], "spec", 10) for n in range(3)]
    with runs.run_context(store, "quick", "grpo/seed_0", None, TAGS) as run_id:
        for _ in range(2):
            runs.log_datasets(
                store,
                run_id,
                games_dataset("valid_seen", "abc", games, "evaluation"),
                games_dataset("training games", "def", games, "training"),
            )
    found = client(store).get_run(run_id).inputs.dataset_inputs
    shown = {(d.dataset.name, d.dataset.digest): (d.tags[0].key, d.tags[0].value) for d in found}
    assert shown == {
        ("valid_seen", "abc"): ("mlflow.data.context", "evaluation"),
        ("training games", "def"): ("mlflow.data.context", "training"),
    }
    assert len(found) == 2
    assert '"num_rows": 3, "split": "valid_seen", "task_types": {"a": 2, "b": 1}' in found[0].dataset.profile
