"""The loop between environment, prompt and sampler, with an environment and a policy that play scripts."""

import time
from dataclasses import replace

import numpy as np
import pytest

from envrl.envs.pool import EnvPool
from envrl.policy.sampler import SampledTokens
from envrl.policy.settings import SamplingSettings
from envrl.prompts.settings import PromptSettings
from envrl.rollout.collector import Collector, CollectorSettings, EpisodePlan
from envrl.rollout.measures import episode_metrics
from envrl.types import StopReason, Trajectory
from support import ScriptedEnv, ScriptedSession, game, word_chat

# Words and ids: see support.WORDS. Every observation ends in room 5, key 8, happens. 11 or won 16.
ANSWERS = {5: (6, 1), 8: (9, 1), 11: (12, 1)}
GOING = ("saw key", 0.0, "")
SCRIPTS = {
    "won": [GOING, ("you won", 1.0, "won")],
    "lost": [("you won", -1.0, "lost")],
    "limit": [GOING, ("Nothing happens.", 0.0, ""), ("saw key", 0.0, "truncated")],
    "raise": [GOING, ("raise", 0.0, "")],
    "hang": [GOING, ("hang", 0.0, "")],
    "endless": [GOING] * 50,
    "broken": [],
}


class Stage:
    """A collector over scripted environments, and what its sampler was asked."""

    def __init__(
        self, slots: int, layout: str = "transcript", timeout_s: float | None = None, context: int = 60
    ) -> None:
        self.log: list[list[tuple[int, ...]]] = []
        self.sessions: list[int] = []
        settings = CollectorSettings(
            PromptSettings(), SamplingSettings(max_new_tokens=4, max_context=context), layout
        )
        pool = EnvPool(lambda: ScriptedEnv(SCRIPTS), slots, timeout_s)
        self.collector = Collector(pool, word_chat(), settings)

    def play(self, *names: str) -> list[Trajectory]:
        def open_session(rows: int) -> ScriptedSession:
            self.sessions.append(rows)
            return ScriptedSession(rows, ANSWERS, self.log)

        plans = [EpisodePlan(game(name), 10 + n) for n, name in enumerate(names)]
        return self.collector.collect(plans, open_session, temperature=1.0, policy_version=3)

    @property
    def batch_sizes(self) -> list[int]:
        return [len(rows) for rows in self.log]


@pytest.mark.parametrize("layout", ["transcript", "steps"])
def test_why_episodes_end_and_in_which_order_they_are_given(layout: str) -> None:
    stage = Stage(5, layout)
    played = stage.play("limit", "won", "raise", "lost", "broken")
    assert [t.game_id for t in played] == ["id-limit", "id-won", "id-raise", "id-lost", "id-broken"]
    assert [t.stop for t in played] == [
        StopReason.STEP_LIMIT,
        StopReason.WON,
        StopReason.ENV_FAULT,
        StopReason.LOST,
        StopReason.ENV_FAULT,
    ]
    assert [t.won for t in played] == [False, True, False, False, False]
    assert [t.task_score for t in played] == [0.25, 1.0, 0.0, 0.25, 0.0]
    # The step that failed is no transition: it has no answer.
    assert [len(t.transitions) for t in played] == [3, 2, 1, 1, 0]
    assert [t.episode_return for t in played] == [0.0, 1.0, 0.0, -1.0, 0.0]
    assert [t.episode_seed for t in played] == [10, 11, 12, 13, 14]
    for trajectory in played:
        faulty = trajectory.stop is StopReason.ENV_FAULT
        assert (trajectory.fault is not None and "kitchen is on fire" in trajectory.fault) is faulty
    # "broken" never starts, "lost" leaves after one turn, "won" and "raise" after two.
    assert stage.batch_sizes == [4, 3, 1]


@pytest.mark.parametrize("layout", ["transcript", "steps"])
def test_a_wave_of_episodes_keeps_one_session(layout: str) -> None:
    stage = Stage(4, layout)
    stage.play("limit", "won", "raise", "lost")
    assert stage.sessions == [4]


@pytest.mark.fault(
    "an environment hangs, with rollout.env_timeout_s set",
    "its own episode ends with the reason recorded; the others are played without it",
)
def test_a_hanging_environment_ends_its_own_episode_only() -> None:
    # Long enough for environments that do answer on a busy machine.
    stage = Stage(3, timeout_s=1.0)
    started = time.monotonic()
    played = stage.play("won", "hang", "limit")
    assert time.monotonic() - started < 15  # the hang takes thirty
    assert [t.stop for t in played] == [StopReason.WON, StopReason.ENV_FAULT, StopReason.STEP_LIMIT]
    assert played[1].fault is not None
    assert "no answer within 1.0 s" in played[1].fault


@pytest.mark.parametrize("layout", ["transcript", "steps"])
def test_an_episode_that_ends_makes_room_for_the_next(layout: str) -> None:
    names = ("won", "lost", "broken", "limit", "won", "lost")
    stage = Stage(2, layout)
    played = stage.play(*names)
    # Turns: 2, 1, none, 3, 2, 1; the game that can't begin takes nobody's place.
    assert stage.batch_sizes == [2, 2, 2, 2, 1]
    assert stage.sessions == [2]
    assert [t.episode_seed for t in played] == [10, 11, 12, 13, 14, 15]
    # All of them at once; what is told of a fault names the place.
    at_once = Stage(6, layout).play(*names)
    assert [replace(t, fault=None) for t in played] == [replace(t, fault=None) for t in at_once]


def test_a_conversation_that_outgrows_the_context_is_truncated() -> None:
    # The opening has 4 tokens, each turn 2 written and 4 given: 4, 10, 16 tokens when asked. An answer
    # may take 4 more, so 20 are enough for three answers and not for a fourth.
    stage = Stage(1, context=20)
    trajectory = stage.play("endless")[0]
    assert trajectory.stop is StopReason.TOKEN_LIMIT
    assert [len(t.generation.prompt_ids) for t in trajectory.transitions] == [4, 10, 16]
    assert not trajectory.won
    assert trajectory.fault is None


def test_an_opening_that_does_not_fit_is_an_episode_without_steps() -> None:
    stage = Stage(1, context=7)
    trajectory = stage.play("won")[0]
    assert (trajectory.stop, trajectory.transitions) == (StopReason.TOKEN_LIMIT, ())
    assert stage.log == []


def test_what_a_transition_records() -> None:
    first, second, third = Stage(1).play("limit")[0].transitions
    assert (first.action, first.admissible, first.format_valid) == ("go", True, True)
    assert (second.action, second.admissible, second.format_valid) == ("take", False, True)
    assert (third.observation.text, third.next_observation.text) == ("Nothing happens.", "saw key")
    assert first.generation.policy_version == 3
    assert first.generation.logprobs == (-0.5, -1.5)
    # The prompt of the second turn is the first prompt, its answer, and the next observation.
    assert second.generation.prompt_ids == (2, 4, 5, 3, 6, 1, 2, 7, 8, 3)


def test_an_answer_without_words_is_sent_as_nothing() -> None:
    settings = CollectorSettings(
        PromptSettings(), SamplingSettings(max_new_tokens=4, max_context=60), "transcript"
    )
    env = ScriptedEnv(SCRIPTS)
    collector = Collector(EnvPool(lambda: env, 1), word_chat(), settings)
    trajectory = collector.collect(
        [EpisodePlan(game("lost"), 0)],
        lambda rows: ScriptedSession(rows, {5: (1,)}, []),
        temperature=1.0,
        policy_version=0,
    )[0]
    assert env.actions == [("lost", "")]
    assert trajectory.transitions[0].action is None
    assert not trajectory.transitions[0].format_valid
    assert not trajectory.transitions[0].admissible


class Dice:
    """Writes the numbers its rows' generators give, to show who draws from which."""

    def __init__(self, rows: int, drawn: list[list[float]]) -> None:
        self._drawn = drawn

    def append(self, blocks: list[list[int]]) -> None: ...

    def keep(self, rows: list[int]) -> None: ...

    def sample(
        self, generators: list[np.random.Generator], temperature: float, most: int
    ) -> list[SampledTokens]:
        from envrl.types import Finish

        self._drawn.append([float(g.random()) for g in generators])
        return [SampledTokens((6, 1), (-1.0, -1.0), Finish.END) for _ in generators]


def test_an_episodes_random_numbers_follow_its_seed_alone() -> None:
    def numbers(*plans: EpisodePlan) -> list[list[float]]:
        drawn: list[list[float]] = []
        stage = Stage(4)
        stage.collector.collect(plans, lambda rows: Dice(rows, drawn), temperature=1.0, policy_version=0)
        return drawn

    a, b, c = (EpisodePlan(game(name), seed) for name, seed in (("limit", 1), ("lost", 2), ("limit", 3)))
    together = numbers(b, a, c)
    assert [len(row) for row in together] == [3, 2, 2]
    assert [row[-2] for row in together] == [row[0] for row in numbers(a)]
    assert [row[-1] for row in together] == [row[0] for row in numbers(c)]
    assert len({x for row in together for x in row}) == 7


def test_metrics_of_episodes() -> None:
    played = Stage(5).play("limit", "won", "raise", "lost", "broken")
    metrics = episode_metrics(played, "rollout")
    # Seven transitions: go take win / go take / go / go; "take" is the inadmissible one, twice.
    assert metrics == pytest.approx(
        {
            "rollout/success_rate": 0.2,
            "rollout/task_score": 0.3,
            "rollout/episode_length": 1.4,
            "rollout/return": 0.0,
            "rollout/fault_rate": 0.4,
            "rollout/format_invalid_rate": 0.0,
            "rollout/inadmissible_rate": 2 / 7,
        }
    )
