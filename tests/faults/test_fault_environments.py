"""Environments that raise, never end, answer nonsense, or answer without measure."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from envrl.envs.pool import EnvPool
from envrl.envs.slots import MOST_ADMISSIBLE, MOST_CHARACTERS
from envrl.policy.settings import LoraSettings, PolicySettings, SamplingSettings
from envrl.prompts.settings import PromptSettings
from envrl.rollout.collector import Collector, CollectorSettings, EpisodePlan
from envrl.rollout.random_play import play_at_random
from envrl.rollout.settings import RolloutSettings
from envrl.types import Game, Observation, StepResult, StopReason
from small_runs import RunPlan, fit, small_run
from support import ScriptedSession, game, word_chat, word_checkpoint

ANSWERS = {5: (6, 1), 8: (9, 1), 11: (12, 1)}
"""To a text that ends in room, key or happens."""


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raising(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def step(text: Any = "saw key", admissible: Any = ("go",), **changes: Any) -> Callable[[], Any]:
    info = {"won": False, "task_score": 0.0} | changes.pop("info", {})
    fields: dict[str, Any] = {"reward": 0.0, "terminated": False, "truncated": False, "info": info} | changes
    return lambda: StepResult(Observation(text() if callable(text) else text, admissible), **fields)


def deeper() -> Any:
    return deeper()


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "raises": (raising(ZeroDivisionError("the kitchen is on fire")), "ZeroDivisionError: the kitchen is on"),
    "raises at length": (raising(ValueError("no " * 10_000_000)), "ValueError: no no no"),
    "raises half a letter": (raising(ValueError("fri\ud800dge")), r"fri\ud800dge"),
    "raises what can't be told": (raising(Speechless()), "Speechless: (its text raised RuntimeError)"),
    "has no memory": (raising(MemoryError()), "MemoryError"),
    "calls itself": (deeper, "RecursionError"),
    "never ends": (step(), "did not end the episode within the game's 9 steps"),
    "no result": (lambda: None, "answered None instead of a StepResult"),
    "bytes": (lambda: b"x" * 100_000_000, "answered b'xxx"),
    "no text": (step(text=None), "whose text is None, not a string"),
    "half a letter": (step(text="fri\ud800dge"), "a text that is no Unicode at character 3"),
    "half a letter in a command": (
        step(admissible=("go", "t\udfff")),
        "an admissible command that is no",
    ),
    "a long text": (step(text=lambda: "a" * 50_000_000), "a text of 50000000 characters, more than 1000000"),
    "many commands": (step(admissible=("go",) * 5_000_000), "5000000 admissible commands, more than 10000"),
    "long commands": (step(admissible=("go" * 1000,) * 1001), "of 2002000 characters together"),
    "commands in a list": (step(admissible=["go"]), "whose admissible is a list"),
    "numbers for commands": (step(admissible=(1,)), "a int among its admissible commands"),
    "reward nan": (step(reward=math.nan), "the reward nan, which is not finite"),
    "reward inf": (step(reward=np.float32("inf")), "which is not finite"),
    "reward None": (step(reward=None), "TypeError"),
    "score nan": (step(info={"task_score": math.nan}), "the task_score nan, which is no finite number"),
    "score in words": (step(info={"task_score": "much"}), "the task_score 'much', which is no finite"),
    "won unclear": (step(terminated=True, info={"won": np.array([0, 1])}), "info['won'] is a ndarray"),
    "won in words": (step(terminated=True, info={"won": "yes"}), "info['won'] is 'yes', neither true nor"),
    "end unclear": (step(terminated=None), "whose terminated is None, neither true nor false"),
    "limit unclear": (step(truncated=np.array([True, False])), "whose truncated is a ndarray"),
    "admissible unclear": (step(info={"admissible": ()}), "info['admissible'] is a tuple"),
    "info None": (lambda: StepResult(Observation("a", ()), 0.0, False, False, None), "AttributeError"),  # type: ignore[arg-type]
}


class Misbehaving:
    """Behaves for a step, then as its game's spec says; the game ``good`` is won in the second one."""

    def reset(self, game: Game, seed: int) -> Observation:
        self._game, self._steps = game.spec, 0
        if game.spec.startswith("reset: "):
            found: Observation = FAULTS[game.spec.removeprefix("reset: ")][0]().observation
            return found
        return Observation("start room", ("go", "win"))

    def step(self, action: str) -> StepResult:
        self._steps += 1
        if self._game == "good" or self._steps == 1:
            won = self._steps == 2
            info = {"won": won, "task_score": float(won)}
            return StepResult(Observation("saw key", ("go", "win")), float(won), won, False, info)
        result: StepResult = FAULTS[self._game][0]()
        return result

    def close(self) -> None:
        pass


def collector(slots: int, layout: str = "steps") -> Collector:
    settings = CollectorSettings(PromptSettings(), SamplingSettings(max_new_tokens=4, max_context=60), layout)
    return Collector(EnvPool(Misbehaving, slots), word_chat(), settings)


def open_session(rows: int) -> ScriptedSession:
    return ScriptedSession(rows, ANSWERS, [])


@pytest.mark.fault(
    "an environment raises, never ends, or answers garbage, far too much text or too many commands",
    "its own episode ends with the reason recorded in at most some hundred words; all others are played",
)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_its_own_episode_alone(name: str) -> None:
    plans = [EpisodePlan(game(spec), 7) for spec in ("good", name, "good")]
    first, faulty, last = collector(3).collect(plans, open_session, temperature=1.0, policy_version=0)
    assert first.stop is last.stop is StopReason.WON
    assert faulty.stop is StopReason.ENV_FAULT
    assert len(faulty.transitions) == (9 if name == "never ends" else 1)
    assert faulty.fault is not None
    assert FAULTS[name][1] in faulty.fault
    assert f"id-{name}" in faulty.fault
    assert len(faulty.fault.encode()) < 1_200
    with EnvPool(Misbehaving, 1) as pool:
        (at_random,) = play_at_random(pool, [EpisodePlan(game(name), 7)], 0)
    assert at_random.stop is StopReason.ENV_FAULT


@pytest.mark.parametrize("name", ["no text", "half a letter", "a long text", "many commands"])
def test_a_first_observation_is_judged_as_the_later_ones(name: str) -> None:
    plans = [EpisodePlan(game(spec), 7) for spec in ("good", f"reset: {name}")]
    good, faulty = collector(2).collect(plans, open_session, temperature=1.0, policy_version=0)
    assert (good.stop, faulty.stop) == (StopReason.WON, StopReason.ENV_FAULT)
    assert FAULTS[name][1] in (faulty.fault or "")
    assert faulty.transitions == ()


def test_what_is_just_allowed_is_played() -> None:
    class Large(Misbehaving):
        def reset(self, game: Game, seed: int) -> Observation:
            super().reset(game, seed)
            return Observation(
                "a" * MOST_CHARACTERS, ("g" * (MOST_CHARACTERS // MOST_ADMISSIBLE),) * MOST_ADMISSIBLE
            )

    with EnvPool(Large, 1) as pool:
        assert pool.reset(0, game("good"), 7).fault is None


@pytest.mark.fault(
    "an environment answers hundreds of megabytes again and again",
    "no more than one such answer is in memory at a time",
)
def test_memory_stays_flat_however_much_is_answered() -> None:
    size = 64_000_000

    class Flooding(Misbehaving):
        def step(self, action: str) -> StepResult:
            result: StepResult = step(text=lambda: "a" * size)()
            return result

    with EnvPool(Flooding, 12) as pool:
        tracemalloc.start()
        try:
            kept = []
            for _ in range(2):
                for slot in range(12):
                    pool.reset(slot, game("good"), 7)
                kept += pool.step(range(12), ["go"] * 12)
            left, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert all("more than 1000000" in str(result.fault) for result in kept)
    assert peak < 1.5 * size
    assert left < 0.1 * size


MORE_THAN_A_GIBIBYTE = 2**30 + 1


def wordy() -> Any:
    raise ValueError("n" * MORE_THAN_A_GIBIBYTE)


@pytest.mark.fault(
    "an environment answers more than a gibibyte, as text, as bytes, in its commands or in an error's words",
    "its own episode ends with the reason recorded in some hundred words, and the memory is free again; all "
    "others are played",
)
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (step(text=lambda: "a" * MORE_THAN_A_GIBIBYTE), "a text of 1073741825 characters, more than 1000000"),
        (lambda: b"x" * MORE_THAN_A_GIBIBYTE, "answered b'xxx"),
        (lambda: step(text=b"x" * MORE_THAN_A_GIBIBYTE)(), "whose text is b'xxx"),
        (lambda: step(admissible=("g" * MORE_THAN_A_GIBIBYTE,))(), "commands of 1073741825 characters"),
        (wordy, "ValueError: nnn"),
    ],
    ids=["text", "bytes", "bytes for a text", "a command", "an error"],
)
def test_more_than_a_gibibyte_ends_its_own_episode_alone(
    answer: Callable[[], Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAULTS, "gibibyte", (answer, told))
    plans = [EpisodePlan(game(spec), 7) for spec in ("good", "gibibyte", "good")]
    players = collector(3)
    tracemalloc.start()
    try:
        first, faulty, last = players.collect(plans, open_session, temperature=1.0, policy_version=0)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak > MORE_THAN_A_GIBIBYTE, "it was really made"
    assert peak < 1.2 * MORE_THAN_A_GIBIBYTE
    assert left < 0.1 * MORE_THAN_A_GIBIBYTE
    assert first.stop is last.stop is StopReason.WON
    assert (faulty.stop, len(faulty.transitions)) == (StopReason.ENV_FAULT, 1)
    assert told in (faulty.fault or "")
    assert len((faulty.fault or "").encode()) < 1_200


@pytest.mark.filterwarnings("ignore::Warning:lightning")
@pytest.mark.fault(
    "most games of a run have a broken environment", "the run is trained to its end on those that work"
)
def test_a_run_with_broken_games_ends_well() -> None:
    names = ("good", "raises", "reward nan", "a long text", "score nan", "never ends")
    run = small_run(
        RunPlan(
            PolicySettings(model=str(word_checkpoint()), lora=LoraSettings(enabled=False)),
            tuple(game(name) for name in names),
            Misbehaving,
            rollout=RolloutSettings(games=6, episodes_per_game=2),
        )
    )
    metrics = fit(run, 2)
    assert run.module.updates_done == 2
    assert all(math.isfinite(value) for values in metrics for value in values.values())
    assert {e.metrics["rollout/fault_rate"] for e in run.collected} == {10 / 12}
    for experience in run.collected:
        for group in experience.groups:
            expected = StopReason.WON if group.game.spec == "good" else StopReason.ENV_FAULT
            assert {t.stop for t in group.trajectories} == {expected}
