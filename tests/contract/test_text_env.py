"""What every text environment must do; an implementation adds a fixture."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from envrl.envs.alfworld.engine import AlfworldEnv
from envrl.envs.alfworld.furnish import RoomSettings
from envrl.envs.alfworld.generate import generate_games
from envrl.envs.alfworld.textworld import TextWorldEnv
from envrl.envs.base import TextEnv
from envrl.envs.webshop.env import WebShopEnv, admits, goal_games
from envrl.errors import DataFault, EnvFault
from envrl.types import Game, Observation
from unit.webshop_shops import human_shop


@pytest.fixture(scope="module")
def alfworld_game(tmp_path_factory: pytest.TempPathFactory) -> Game:
    """A small generated game of the type with the shortest solutions."""
    settings = RoomSettings(receptacles=6, max_steps=20, task_types=("pick_and_place_simple",))
    return generate_games(settings, 1, 3, "train", tmp_path_factory.mktemp("games"))[0]


class TextEnvContract:
    """Subclasses give the fixtures ``env``, ``game`` and ``solution`` (commands that win the game)."""

    @pytest.fixture
    def env(self) -> Iterator[TextEnv]:
        raise NotImplementedError

    def admits(self, observation: Observation, command: str) -> bool:
        """Whether a command is admissible; a list can't name every one where words are free."""
        return command in observation.admissible

    def test_it_follows_the_protocol(self, env: TextEnv) -> None:
        assert isinstance(env, TextEnv)

    def test_step_needs_a_running_episode(self, env: TextEnv) -> None:
        with pytest.raises(EnvFault):
            env.step("look")

    def test_an_episode_ends_with_its_win(self, env: TextEnv, game: Game, solution: list[str]) -> None:
        first = env.reset(game, seed=0)
        assert first.text
        assert self.admits(first, solution[0])
        results = [env.step(command) for command in solution]
        last = len(solution) - 1
        assert [r.terminated for r in results] == [i == last for i in range(len(solution))]
        assert [r.reward > 0 for r in results] == [i == last for i in range(len(solution))]
        assert not any(r.truncated for r in results)
        assert [r.info["won"] for r in results] == [r.terminated for r in results]
        assert results[-1].info["task_score"] == 1.0
        with pytest.raises(EnvFault):
            env.step("look")

    def test_the_step_limit_truncates(self, env: TextEnv, game: Game) -> None:
        env.reset(replace(game, max_steps=2), seed=0)
        results = [env.step("look"), env.step("no such command")]
        assert [(r.terminated, r.truncated) for r in results] == [(False, False), (False, True)]
        assert results[-1].info["won"] is False
        with pytest.raises(EnvFault):
            env.step("look")

    def test_a_win_with_the_last_step_is_no_truncation(
        self, env: TextEnv, game: Game, solution: list[str]
    ) -> None:
        env.reset(replace(game, max_steps=len(solution)), seed=0)
        last = [env.step(command) for command in solution][-1]
        assert (last.terminated, last.truncated) == (True, False)

    def test_an_inadmissible_command_is_answered_and_changes_nothing(self, env: TextEnv, game: Game) -> None:
        before = env.reset(game, seed=0)
        result = env.step("qwertz uiop")
        assert result.observation.text
        assert result.observation.admissible == before.admissible
        assert (result.reward, result.terminated) == (0.0, False)

    def test_the_same_episode_twice_is_the_same(self, env: TextEnv, game: Game, solution: list[str]) -> None:
        def play() -> list[object]:
            return [env.reset(game, seed=5), *(env.step(command).observation for command in solution)]

        assert play() == play()

    def test_reset_forgets_the_episode(self, env: TextEnv, game: Game, solution: list[str]) -> None:
        first = env.reset(game, seed=0)
        env.step(solution[0])
        assert env.reset(game, seed=0) == first

    def test_an_unknown_game_is_refused(self, env: TextEnv, game: Game) -> None:
        with pytest.raises(DataFault):
            env.reset(replace(game, spec="/no/such/game"), seed=0)

    def test_close_may_be_repeated(self, env: TextEnv, game: Game) -> None:
        env.reset(game, seed=0)
        env.close()
        env.close()
        with pytest.raises(EnvFault):
            env.step("look")
        assert env.reset(game, seed=0).text


class AlfworldContract(TextEnvContract):
    """ALFWorld's reward is 1.0 for the win, and its nonsense answer is fixed."""

    @pytest.fixture
    def game(self, alfworld_game: Game) -> Game:
        return alfworld_game

    @pytest.fixture
    def solution(self, game: Game) -> list[str]:
        return list(json.loads(Path(game.spec).read_text())["walkthrough"])

    def test_reward_and_answers(self, env: TextEnv, game: Game, solution: list[str]) -> None:
        assert env.reset(game, seed=0).text.startswith("-= Welcome to TextWorld, ALFRED! =-\n\n")
        assert env.step("qwertz uiop").observation.text == "Nothing happens."
        assert [env.step(command).reward for command in solution][-1] == 1.0


def _env(make: Callable[[], TextEnv]) -> Iterator[TextEnv]:
    env = make()
    yield env
    env.close()


class TestNative(AlfworldContract):
    @pytest.fixture
    def env(self) -> Iterator[TextEnv]:
        yield from _env(AlfworldEnv)


class TestWebShop(TextEnvContract):
    @pytest.fixture
    def env(self) -> Iterator[TextEnv]:
        yield from _env(lambda: WebShopEnv(human_shop()))

    @pytest.fixture
    def game(self) -> Game:
        """Running shoes in navy blue, size 7.5 wide."""
        return goal_games(human_shop().goals, "test")[1]

    @pytest.fixture
    def solution(self) -> list[str]:
        clicks = ("b0shoe0001", "navy blue", "7.5 wide", "buy now")
        return ["search[acme running shoes women]", *(f"click[{name}]" for name in clicks)]

    def admits(self, observation: Observation, command: str) -> bool:
        return admits(observation.admissible, command)


@pytest.mark.slow
class TestTextWorld(AlfworldContract):
    @pytest.fixture
    def env(self) -> Iterator[TextEnv]:
        pytest.importorskip("alfworld")
        yield from _env(TextWorldEnv)
