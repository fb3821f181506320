"""The pool on a Ray cluster of two machines, processes here: what it plays, who dies of what."""

from __future__ import annotations

import gzip
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from envrl.analysis.records import load_record
from envrl.envs.alfworld.engine import AlfworldEnv
from envrl.envs.alfworld.furnish import RoomSettings
from envrl.envs.alfworld.generate import generate_games
from envrl.envs.pool import EnvPool
from envrl.envs.ray_pool import RayPool
from envrl.errors import ConfigFault, EnvrlError
from envrl.experiments.config import config_from
from envrl.experiments.preflight import preflight
from envrl.experiments.resume import CHECKPOINT
from envrl.rollout.collector import EpisodePlan
from envrl.rollout.random_play import play_at_random
from envrl.types import Game, Observation, StepResult
from studies import call, tiny, write_yaml
from support import checkpoint

GAME = Game("g1", "script", "train", "count", "games/g1", 9)
SHORT_S = 3.0


class Moody:
    """Tells its process; the action says how it misbehaves."""

    def reset(self, game: Game, seed: int) -> Observation:
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
        return Observation(f"{os.getpid()} {node}", ("go",))

    def step(self, action: str) -> StepResult:
        if action == "die":
            os._exit(3)
        if action == "raise":
            raise ZeroDivisionError("the kitchen is on fire")
        if action == "hang":
            time.sleep(600)
        return StepResult(
            Observation(f"{action} in {os.getpid()}", ("go",)),
            0.0,
            False,
            False,
            {"won": False, "task_score": 0.0},
        )

    def close(self) -> None:
        pass


def without_ray() -> bool:
    try:
        import ray.cluster_utils  # noqa: F401
    except ModuleNotFoundError:
        return True
    return False


needs_ray = pytest.mark.skipif(without_ray(), reason="Ray (this package's extra `ray`) is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines with a CPU each; the second one may be taken away."""
    import ray
    from ray.cluster_utils import Cluster

    # An actor then need not import this module, and torch with it.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
        changed.setenv("RAY_USAGE_STATS_ENABLED", "0")
        small = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=small)
        made.add_node(num_cpus=1, object_store_memory=80_000_000)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def texts(answers: Any) -> list[str]:
    return [a.step.observation.text.split()[0] if a.step is not None else str(a.fault) for a in answers]


@needs_ray
@pytest.mark.slow
def test_the_same_episodes_as_the_local_pool(cluster: Any, tmp_path: Path) -> None:
    rooms = RoomSettings(receptacles=6, objects_per_receptacle=1.5, max_steps=20)
    games = generate_games(rooms, 3, 1, "train", tmp_path)
    plans = [EpisodePlan(game, seed) for game in games for seed in (1, 2)]
    with EnvPool(AlfworldEnv, 4) as local:
        wanted = play_at_random(local, plans, 0)
    with RayPool(AlfworldEnv, 4) as pool:
        assert play_at_random(pool, plans, 0) == wanted
    assert sum(len(t.transitions) for t in wanted) > 20


def trained(pool: str, config: Path, root: Path, **environment: str) -> dict[str, Any]:
    """What a run by the command leaves, without times, numbers of MLflow and the pool's name."""
    done = call("train", "--config", config, "--root", root, f"--rollout.pool={pool}", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = root / "studies" / "single" / "runs" / "run" / "seed_0"
    record = load_record(folder / "record.json").model_dump(exclude={"seconds", "mlflow_run_id"})
    assert record["config"]["rollout"].pop("pool") == pool
    weights = torch.load(folder / CHECKPOINT, weights_only=True)["state_dict"]
    # A random policy wins nothing: what it saw, did and learnt tells more than its record.
    episodes = {path.name: gzip.decompress(path.read_bytes()) for path in (folder / "episodes").iterdir()}
    return {"record": record, "episodes": episodes, "weights": {n: w.tolist() for n, w in weights.items()}}


def homes_of_pools(ray: Any) -> dict[str, str]:
    """Machines of all actors so far that hold environments."""
    actors = ray._private.state.actors().items()
    return {number: a["Address"]["NodeID"] for number, a in actors if a["ActorClassName"] == "EnvPool"}


@needs_ray
@pytest.mark.slow
def test_a_run_with_its_environments_on_two_machines_is_the_same(
    cluster: Any, tmp_path: Path, own_places: Any
) -> None:
    import ray

    config = write_yaml(tmp_path / "run.yaml", tiny(checkpoint(), {"train": {"iterations": 2}}))
    before = homes_of_pools(ray)
    spread = trained("ray", config, tmp_path / "ray", RAY_ADDRESS=cluster.address)
    homes = [home for number, home in homes_of_pools(ray).items() if number not in before]
    assert len(homes) == len(set(homes)) == 2
    assert spread == trained("local", config, tmp_path / "local")
    assert [e["iteration"] for e in spread["record"]["evaluations"]] == [0, 2]
    assert len(spread["episodes"]) == 2


@needs_ray
@pytest.mark.slow
def test_a_fault_and_a_hang_are_those_of_one_slot(cluster: Any) -> None:
    with EnvPool(Moody, 4, SHORT_S) as local, RayPool(Moody, 4, SHORT_S, actors=2) as pool:
        heard = []
        for one in (local, pool):
            begun = [one.reset(slot, GAME, slot) for slot in range(4)]
            assert [b.fault for b in begun] == [None] * 4
            heard.append(texts(one.step([3, 0, 1, 2], ["raise", "go", "hang", "go"])))
        assert heard[0] == heard[1]
        assert "Environment 3 raised ZeroDivisionError: the kitchen is on fire" in heard[1][0]
        assert f"Environment 1 gave no answer within {SHORT_S} s" in heard[1][2]
        assert heard[1][1::2] == ["go", "go"]


@needs_ray
@pytest.mark.slow
@pytest.mark.fault(
    "an actor of a Ray cluster that holds environments dies",
    "its own episodes end with the reason recorded; the others are played, and it is made anew",
)
def test_an_actor_that_dies_ends_its_own_episodes_and_is_made_anew(cluster: Any) -> None:
    with RayPool(Moody, 4, actors=2) as pool:
        begun = [pool.reset(slot, GAME, slot).observation for slot in range(4)]
        homes = [b.text for b in begun if b is not None]
        assert homes[0] == homes[1] != homes[2] == homes[3]
        heard = texts(pool.step([0, 2, 3], ["die", "go", "go"]))
        assert "Environment 0 was lost with the Ray actor that held it" in heard[0]
        assert heard[1:] == ["go", "go"]
        # Its neighbour was not asked, but its episode is gone too.
        assert "Environment 1 was lost" in texts(pool.step([1], ["go"]))[0]
        again = [pool.reset(slot, GAME, slot).observation for slot in (0, 1)]
        assert {a.text for a in again if a is not None}.isdisjoint(homes)
        assert texts(pool.step([0, 1, 2], ["go"] * 3)) == ["go"] * 3


@needs_ray
@pytest.mark.slow
@pytest.mark.fault(
    "one of two machines of a Ray cluster with environments goes down",
    "the episodes it held end with the reason recorded; the others are played, and its environments are made "
    "anew on the other machine",
)
def test_a_machine_that_dies_ends_its_own_episodes(cluster: Any) -> None:
    homes: list[str] = []
    # The machine is asked until it is gone, and no game may end before.
    game = replace(GAME, max_steps=100_000)
    with RayPool(Moody, 2, actors=2) as pool:
        for slot in range(2):
            begun = pool.reset(slot, game, slot).observation
            assert begun is not None
            homes.append(begun.text.split()[1])
        second = next(n for n in cluster.list_all_nodes() if not n.head)
        lost = homes.index(second.node_id)
        assert homes[1 - lost] != second.node_id
        cluster.remove_node(second, allow_graceful=False)
        deadline = time.monotonic() + 120
        heard = ["go", "go"]
        # Here the machine's processes take a moment to follow it.
        while heard == ["go", "go"] and time.monotonic() < deadline:
            heard = texts(pool.step([0, 1], ["go", "go"]))
        assert f"Environment {lost} was lost with the Ray actor that held it" in heard[lost]
        assert heard[1 - lost] == "go"
        assert pool.reset(lost, game, 0).fault is None
        assert texts(pool.step([0, 1], ["go", "go"])) == ["go", "go"]


@needs_ray
@pytest.mark.slow
def test_a_closed_pool_and_wrong_slots_are_refused(cluster: Any) -> None:
    pool = RayPool(Moody, 2)
    with pytest.raises(ValueError, match="give different numbers from 0 to 1"):
        pool.step([0, 0], ["go", "go"])
    pool.close()
    pool.close()
    with pytest.raises(EnvrlError, match="is closed"):
        pool.reset(0, GAME, 0)


def test_without_ray_the_run_is_refused(monkeypatch: pytest.MonkeyPatch, own_places: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = config_from(tiny(checkpoint()), {"rollout.pool": "ray"})
    with pytest.raises(ConfigFault, match="Ray is not installed; install this package's extra `ray`"):
        preflight(config)
    with pytest.raises(ConfigFault, match="Ray is not installed"):
        RayPool(Moody, 1)


def test_a_pool_without_slots_or_actors_is_refused_before_ray_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigFault, match="size is 0: give a number of environments >= 1"):
        RayPool(Moody, 0)
    with pytest.raises(ConfigFault, match="actors are 0: give a number >= 1"):
        RayPool(Moody, 2, actors=0)


@needs_ray
def test_without_a_cluster_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", _no_cluster)
    with pytest.raises(ConfigFault, match=r"no Ray cluster is found .* start one by `ray start --head`"):
        RayPool(Moody, 1)


def _no_cluster(**_: Any) -> None:
    raise ConnectionError("Could not find any running Ray instance.")
