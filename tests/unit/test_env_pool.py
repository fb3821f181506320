"""The pool of environments with environments that raise, hang, exit and answer nonsense."""

import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from envrl.envs.base import TextEnv
from envrl.envs.pool import EnvPool, SlotResult
from envrl.errors import ConfigFault, EnvFault, EnvrlError
from envrl.types import Game, Observation, StepResult

GAME = Game(game_id="g1", env="script", split="train", family="count", spec="games/g1", max_steps=9)
SHORT_S = 1.0
"""Time-out of the tests that wait for it."""
LONG_S = 60.0
"""Time-out that no test waits for."""


@dataclass
class ScriptEnv:
    """Counts its steps; the action says how it misbehaves."""

    serial: int
    release: threading.Event
    steps: int = 0
    closed: threading.Event = field(default_factory=threading.Event)

    def reset(self, game: Game, seed: int) -> Observation:
        self._misbehave(game.spec)
        self.steps = 0
        return Observation(f"env {self.serial} game {game.game_id} seed {seed}", ("go",))

    def step(self, action: str) -> StepResult:
        nonsense = self._misbehave(action)
        if nonsense is not None:
            return nonsense
        self.steps += 1
        return _answer(text=f"env {self.serial} step {self.steps}: {action}")

    def close(self) -> None:
        self.closed.set()

    def _misbehave(self, how: str) -> StepResult | None:
        match how:
            case "raise":
                raise ZeroDivisionError("the kitchen is on fire")
            case "exit":
                raise SystemExit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "wait":
                self.release.wait()
            case "compute":
                while not self.release.is_set():
                    pass
            case _ if how in NONSENSE:
                return NONSENSE[how]  # type: ignore[return-value]
        return None


def _answer(text: object = "", admissible: object = ("go",), **changes: object) -> StepResult:
    fields = {
        "reward": 0.0,
        "terminated": False,
        "truncated": False,
        "info": {"won": False, "task_score": 0.0},
    }
    return StepResult(observation=Observation(text, admissible), **(fields | changes))  # type: ignore[arg-type]


NONSENSE = {
    "string": "You see a fridge.",
    "tuple": ("You see a fridge.", 0.0, False, {}),
    "text": _answer(text=None),
    "half a surrogate pair": _answer(text="a fri\ud800dge"),
    "list": _answer(admissible=["go"]),
    "numbers": _answer(admissible=(1, 2)),
    "nan": _answer(reward=math.nan),
    "word": _answer(reward="ten"),
    "no info": _answer(info={}),
    "no won": _answer(info={"task_score": 0.0}),
    "observation": StepResult("a fridge", 0.0, False, False, {"won": False, "task_score": 0.0}),  # type: ignore[arg-type]
}


@dataclass
class Factory:
    """Builds environments, keeps them, and releases the hanging ones at the end of a test."""

    release: threading.Event = field(default_factory=threading.Event)
    built: list[ScriptEnv] = field(default_factory=list)
    before: Callable[[int], object] = lambda serial: None

    def __call__(self) -> TextEnv:
        serial = len(self.built)
        self.built.append(ScriptEnv(serial, self.release))
        self.before(serial)
        return self.built[serial]


@pytest.fixture
def factory() -> Iterator[Factory]:
    made = Factory()
    yield made
    made.release.set()


def _started(factory: Factory, size: int, timeout_s: float | None, **settings: int) -> EnvPool:
    pool = EnvPool(factory, size, timeout_s, **settings)
    for slot in range(size):
        assert pool.reset(slot, GAME, seed=100 + slot).fault is None
    return pool


def _texts(results: list[SlotResult]) -> list[str]:
    return ["fault" if r.step is None else r.step.observation.text for r in results]


def _eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


both_modes = pytest.mark.parametrize("timeout_s", [None, LONG_S], ids=["in-process", "threads"])


@both_modes
def test_slots_play_independently_and_answer_in_the_order_asked(
    factory: Factory, timeout_s: float | None
) -> None:
    with EnvPool(factory, 3, timeout_s) as pool:
        observations = [pool.reset(slot, GAME, seed=7 + slot).observation for slot in (2, 0, 1)]
        assert [o.text if o else None for o in observations] == [
            "env 0 game g1 seed 9",
            "env 1 game g1 seed 7",
            "env 2 game g1 seed 8",
        ]
        assert _texts(pool.step([0, 2], ["a", "b"])) == ["env 1 step 1: a", "env 0 step 1: b"]
        assert _texts(pool.step([2, 1, 0], ["c", "d", "e"])) == [
            "env 0 step 2: c",
            "env 2 step 1: d",
            "env 1 step 2: e",
        ]
        assert pool.step([], []) == []
        # A second episode of a slot uses the environment it has.
        assert pool.reset(1, GAME, seed=1).observation == Observation("env 2 game g1 seed 1", ("go",))
    assert len(factory.built) == 3
    assert all(env.closed.is_set() for env in factory.built)


@both_modes
def test_an_exception_is_the_fault_of_its_slot_alone(factory: Factory, timeout_s: float | None) -> None:
    with _started(factory, 3, timeout_s) as pool:
        results = pool.step([0, 1, 2], ["a", "raise", "c"])
        assert _texts(results) == ["env 0 step 1: a", "fault", "env 2 step 1: c"]
        fault = results[1].fault
        assert isinstance(fault, EnvFault)
        for part in (
            "Environment 1",
            "ZeroDivisionError: the kitchen is on fire",
            "test_env_pool.py:",
            "'g1'",
            "games/g1",
            "seed 101",
            "'raise'",
        ):
            assert part in str(fault)
        # Without a new episode the slot has nothing to step, and the others don't mind.
        again = pool.step([1, 2], ["x", "y"])
        assert _texts(again) == ["fault", "env 2 step 2: y"]
        assert "reset the slot first" in str(again[0].fault)
        # The broken environment is closed; the next episode has a new one.
        assert factory.built[1].closed.is_set()
        assert pool.reset(1, GAME, seed=5).observation == Observation("env 3 game g1 seed 5", ("go",))


@both_modes
def test_failures_of_building_and_resetting_are_faults_too(factory: Factory, timeout_s: float | None) -> None:
    factory.before = lambda serial: 1 / 0 if serial == 0 else None
    with EnvPool(factory, 1, timeout_s) as pool:
        assert "ZeroDivisionError" in str(pool.reset(0, GAME, seed=1).fault)
        broken = Game("g2", "script", "train", "count", spec="raise", max_steps=9)
        fault = pool.reset(0, broken, seed=2).fault
        assert "on fire" in str(fault)
        assert "at the reset" in str(fault)
        assert pool.reset(0, GAME, seed=3).observation == Observation("env 2 game g1 seed 3", ("go",))


@both_modes
@pytest.mark.parametrize("nonsense", NONSENSE)
def test_answers_of_a_wrong_type_are_faults(factory: Factory, nonsense: str, timeout_s: float | None) -> None:
    with _started(factory, 2, timeout_s) as pool:
        assert _texts(pool.step([0, 1], [nonsense, "b"])) == ["fault", "env 1 step 1: b"]


@pytest.mark.parametrize("reward", [np.float32(0.5), np.float64(0.5), np.int64(2), True, 1])
def test_rewards_of_any_number_type_become_floats(reward: Any) -> None:
    class Gym(ScriptEnv):
        def step(self, action: str) -> StepResult:
            return _answer("ok", reward=reward)

    with EnvPool(lambda: Gym(0, threading.Event()), 1) as pool:
        pool.reset(0, GAME, seed=1)
        (result,) = pool.step([0], ["go"])
    assert result.step is not None
    assert type(result.step.reward) is float
    assert result.step.reward == reward


def test_a_first_answer_of_a_wrong_type_is_a_fault() -> None:
    class Silent(ScriptEnv):
        def reset(self, game: Game, seed: int) -> Observation:
            return None  # type: ignore[return-value]

    with EnvPool(lambda: Silent(0, threading.Event()), 1) as pool:
        assert "answered None instead of an Observation" in str(pool.reset(0, GAME, seed=1).fault)


@pytest.mark.parametrize("how", ["wait", "compute"])
def test_a_hang_is_the_fault_of_its_slot_alone(factory: Factory, how: str) -> None:
    with _started(factory, 3, SHORT_S) as pool:
        results = pool.step([0, 1, 2], ["a", how, "c"])
        assert _texts(results) == ["env 0 step 1: a", "fault", "env 2 step 1: c"]
        assert "gave no answer within 1.0 s" in str(results[1].fault)
        assert f"'{how}'" in str(results[1].fault)
        assert pool.abandoned == 1
        assert _texts(pool.step([1, 2], ["x", "y"])) == ["fault", "env 2 step 2: y"]
        assert pool.reset(1, GAME, seed=5).observation == Observation("env 3 game g1 seed 5", ("go",))
        assert _texts(pool.step([1], ["z"])) == ["env 3 step 1: z"]
        # When the hang ends after all, its thread closes the old environment and goes.
        assert not factory.built[1].closed.is_set()
        factory.release.set()
        assert _eventually(lambda: pool.abandoned == 0)
        assert factory.built[1].closed.is_set()
        assert _texts(pool.step([1], ["w"])) == ["env 3 step 2: w"]


def test_hangs_of_building_and_resetting_are_faults(factory: Factory) -> None:
    factory.before = lambda serial: factory.release.wait() if serial == 0 else None
    with EnvPool(factory, 1, SHORT_S) as pool:
        assert "gave no answer" in str(pool.reset(0, GAME, seed=1).fault)
        slow = Game("g2", "script", "train", "count", spec="wait", max_steps=9)
        assert "gave no answer" in str(pool.reset(0, slow, seed=2).fault)
        assert pool.abandoned == 2
        assert pool.reset(0, GAME, seed=3).observation == Observation("env 2 game g1 seed 3", ("go",))


def test_many_hangs_cost_one_time_out(factory: Factory) -> None:
    with _started(factory, 8, SHORT_S) as pool:
        began = time.monotonic()
        results = pool.step(list(range(8)), ["wait"] * 8)
        # One after the other they would take 8 seconds.
        assert time.monotonic() - began < 6.0
        assert _texts(results) == ["fault"] * 8
        assert pool.abandoned == 8


@pytest.mark.fault(
    "environment after environment hangs",
    "the run ends with one sentence that names timeout and game, before they take the whole machine",
)
def test_too_many_hanging_threads_end_the_run_with_a_remedy(factory: Factory) -> None:
    with _started(factory, 2, SHORT_S, max_abandoned=1) as pool:
        assert _texts(pool.step([0, 1], ["wait", "wait"])) == ["fault", "fault"]
        with pytest.raises(EnvrlError, match=r"2 environments hang .*max_abandoned is 1.*raise timeout_s"):
            pool.reset(0, GAME, seed=1)
        factory.release.set()
        assert _eventually(lambda: pool.abandoned == 0)
        assert pool.reset(0, GAME, seed=1).fault is None


def test_an_environment_that_exits_is_a_fault_in_a_thread(factory: Factory) -> None:
    with _started(factory, 2, LONG_S) as pool:
        results = pool.step([0, 1], ["exit", "b"])
        assert _texts(results) == ["fault", "env 1 step 1: b"]
        assert "SystemExit: 3" in str(results[0].fault)
        assert pool.reset(0, GAME, seed=1).fault is None


@pytest.mark.parametrize(("how", "error"), [("exit", SystemExit), ("interrupt", KeyboardInterrupt)])
def test_what_a_signal_raises_passes_through_in_process(
    factory: Factory, how: str, error: type[BaseException]
) -> None:
    with _started(factory, 1, None) as pool, pytest.raises(error):
        pool.step([0], [how])


@both_modes
@pytest.mark.parametrize(
    ("slots", "actions"), [([0, 0], ["a", "b"]), ([2], ["a"]), ([-1], ["a"]), ([0, 1], ["a"])]
)
def test_mistakes_of_the_caller_are_no_faults_of_the_environment(
    factory: Factory, slots: list[int], actions: list[str], timeout_s: float | None
) -> None:
    with _started(factory, 2, timeout_s) as pool:
        with pytest.raises(ValueError, match=r"Slots|zip"):
            pool.step(slots, actions)
        assert _texts(pool.step([0, 1], ["c", "d"])) == ["env 0 step 1: c", "env 1 step 1: d"]


@both_modes
def test_close_twice_and_then_refuse(factory: Factory, timeout_s: float | None) -> None:
    pool = _started(factory, 2, timeout_s)
    factory.built[0].close = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    pool.close()
    pool.close()
    assert factory.built[1].closed.is_set()
    with pytest.raises(EnvrlError, match="closed"):
        pool.reset(0, GAME, seed=1)


def test_close_does_not_wait_for_a_hang(factory: Factory) -> None:
    pool = _started(factory, 2, SHORT_S)
    factory.built[0].close = factory.release.wait  # type: ignore[method-assign, assignment]
    pool.close()
    assert factory.built[1].closed.is_set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"timeout_s": 0.0}, r"timeout_s is 0\.0"),
        ({"timeout_s": -1.0}, r"timeout_s is -1\.0"),
        ({"timeout_s": math.inf}, "timeout_s is inf"),
        ({"timeout_s": math.nan}, "timeout_s is nan"),
        ({"max_abandoned": -1}, "max_abandoned is -1"),
    ],
)
def test_impossible_pools_are_refused(factory: Factory, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigFault, match=message):
        EnvPool(factory, **({"size": 2, "timeout_s": None} | settings))  # type: ignore[arg-type]


def test_a_result_says_exactly_one_thing() -> None:
    with pytest.raises(ValueError, match="one of"):
        SlotResult()
    with pytest.raises(ValueError, match="one of"):
        SlotResult(observation=Observation("", ()), fault=EnvFault("x"))


HANG_AND_EXIT = """
import threading
from envrl.envs.pool import EnvPool
from envrl.types import Game
pool = EnvPool(lambda: threading.Event().wait(), 1, timeout_s=0.2)
print(pool.reset(0, Game("g", "e", "s", "f", "p", 1), 0).fault)
"""


def test_a_hanging_environment_does_not_keep_the_process_alive() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANG_AND_EXIT], capture_output=True, text=True, check=True, timeout=60
    )
    assert "gave no answer within 0.2 s" in done.stdout
