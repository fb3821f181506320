"""Playing step by step: going back, taking over, and who is watched playing as everywhere else."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from envrl.envs.alfworld.engine import AlfworldEnv
from envrl.envs.alfworld.expert import Expert
from envrl.envs.alfworld.furnish import RoomSettings
from envrl.envs.alfworld.generate import generate_games
from envrl.envs.base import TextEnv
from envrl.envs.demonstrate import demonstrate
from envrl.envs.panels import episode_seed
from envrl.envs.pool import EnvPool
from envrl.errors import ConfigFault, EnvFault, EnvrlError, PolicyFault
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.play_games import choose_games
from envrl.experiments.play_loop import COMMANDS, Dialogue, Stage
from envrl.experiments.play_proposers import ExpertProposer, PolicyProposer, RandomProposer
from envrl.experiments.play_screen import Screen, readable
from envrl.experiments.play_session import Played, PlaySession, Proposal, Proposer
from envrl.policy.model import Policy
from envrl.rollout.collector import Collector, CollectorSettings, EpisodePlan
from envrl.rollout.random_play import play_at_random
from envrl.rollout.source import session_factory
from envrl.types import Game, Observation, StepResult, StopReason, Trajectory
from support import IdentityEnv, ScriptedEnv, checkpoint, game, policy_of

SCRIPT = {
    "won": [("saw key", 0.0, ""), ("Nothing happens.", 0.0, ""), ("you won", 1.0, "won")],
    "raise": [("saw key", 0.0, ""), ("raise", 0.0, "")],
}


class Told:
    """Proposes an action that tells how many steps were taken, and remembers what it was asked."""

    name = "told"

    def __init__(self) -> None:
        self.asked: list[Played] = []

    def propose(self, played: Played) -> Proposal:
        self.asked.append(played)
        if played.moves and played.moves[-1].action == "stump":
            raise PolicyFault("the one you watch is at a loss; type an action")
        return Proposal(f"go {len(played.moves)}")


def session(spec: str = "won", proposer: Proposer | None = None, env: TextEnv | None = None) -> PlaySession:
    pool = EnvPool(lambda: env or ScriptedEnv(SCRIPT), 1)
    return PlaySession(pool, game(spec), 3, proposer)


def actions(played: Played) -> list[str]:
    return [move.action for move in played.moves]


def test_steps_are_taken_back_by_playing_again() -> None:
    env = ScriptedEnv(SCRIPT)
    playing = session(env=env)
    for action in ("go", "take", "win"):
        playing.act(action)
    assert playing.played.stop is StopReason.WON
    assert (playing.played.task_score, playing.played.episode_return) == (1.0, 1.0)
    playing.undo(2)
    assert actions(playing.played) == ["go"]
    assert playing.played.current.text == "saw key"
    assert not playing.over
    # Played anew from the beginning up to there, and the game stands there too.
    assert [action for _, action in env.actions] == ["go", "take", "win", "go"]
    assert playing.act("look").step.observation.text == "Nothing happens."
    playing.restart()
    assert playing.played.current.text == "start room"
    with pytest.raises(EnvrlError, match="1 steps can't be taken back: there are none yet"):
        playing.undo()
    playing.act("go")
    with pytest.raises(EnvrlError, match="there are only 1"):
        playing.undo(2)
    assert actions(playing.played) == ["go"]


def test_what_was_admissible_is_recorded() -> None:
    playing = session()
    assert [playing.act(a).admissible for a in ("go", "take")] == [True, False]


def test_nothing_can_be_done_after_the_end() -> None:
    playing = session(proposer=Told())
    for action in ("go", "take", "win"):
        playing.act(action)
    assert playing.propose() is None
    with pytest.raises(EnvrlError, match="the game is over"):
        playing.act("go")


def test_numbers_name_the_admissible_actions() -> None:
    playing = session()
    assert [playing.numbered(n) for n in (1, 2, 3)] == ["go", "win", "help"]
    for number in (0, 4):
        with pytest.raises(EnvrlError, match=f"there is no action {number}: there are 3 now"):
            playing.numbered(number)


def test_a_person_takes_over_for_as_long_as_they_like() -> None:
    told = Told()
    playing = session(proposer=told)
    assert playing.accept().action == "go 0"
    move = playing.act("take")
    assert (move.proposal, move.action) == (None, "take")
    assert playing.accept().action == "go 2"
    assert [m.proposal is None for m in playing.played.moves] == [False, True, False]
    # Asked once a step, each time about all of the episode.
    assert playing.propose() is None
    assert [len(played.moves) for played in told.asked] == [0, 2]


def test_a_fault_of_the_game_leaves_the_episode_as_it_was() -> None:
    playing = session("raise")
    playing.act("go")
    with pytest.raises(EnvFault, match="kitchen is on fire"):
        playing.act("take")
    assert actions(playing.played) == ["go"]
    playing.restart()
    assert playing.act("go").step.observation.text == "saw key"


class Fickle(IdentityEnv):
    """Begins otherwise every time."""

    begun = 0

    def reset(self, game: Game, seed: int) -> Observation:
        self.begun += 1
        return Observation(f"{super().reset(game, seed).text} {self.begun}", ())


def test_a_game_that_answers_otherwise_is_not_gone_back_in() -> None:
    playing = session(env=Fickle(3))
    playing.act("go")
    with pytest.raises(EnvFault, match="does not answer as it did a moment ago"):
        playing.undo()


# Who is watched


@cache
def houses(folder: Path) -> tuple[Game, ...]:
    rooms = RoomSettings(receptacles=6, objects_per_receptacle=1.5, max_steps=12)
    return tuple(generate_games(rooms, 4, 1, "train", folder))


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> tuple[Game, ...]:
    return houses(tmp_path_factory.mktemp("houses"))


def watched(proposer: Proposer, games: Sequence[Game]) -> list[Played]:
    """Every game to its end, each step accepted."""
    pool = EnvPool(AlfworldEnv, 1)
    ended = []
    for one in games:
        playing = PlaySession(pool, one, episode_seed(one), proposer)
        while not playing.over:
            playing.accept()
        ended.append(playing.played)
    return ended


def test_the_expert_plays_as_it_demonstrates(games: tuple[Game, ...]) -> None:
    shown = [demonstrate(AlfworldEnv(), one, Expert()) for one in games]
    seen = watched(ExpertProposer(), games)
    assert [actions(played) for played in seen] == [list(one.commands) for one in shown]
    assert any(one.won for one in shown)


def test_random_play_draws_as_in_training(games: tuple[Game, ...]) -> None:
    plans = [EpisodePlan(one, episode_seed(one)) for one in games]
    drawn = play_at_random(EnvPool(AlfworldEnv, 1), plans, 0)
    seen = watched(RandomProposer(), games)
    assert [actions(played) for played in seen] == [[t.action for t in one.transitions] for one in drawn]


def settings(layout: str, form: str = "compact") -> RunConfig:
    return config_from(
        {
            "policy.model": str(checkpoint()),
            "rollout.layout": layout,
            "auxiliary.sp_rows": "policy" if layout == "transcript" else "questions",
            "prompt.form": form,
            "sampling": {"max_new_tokens": 8, "max_context": 500, "eval_temperature": 1.0},
        }
    )


def collected(config: RunConfig, policy: Policy, games: Sequence[Game]) -> list[Trajectory]:
    """The same games as an evaluation plays them, all at once."""
    collector = Collector(
        EnvPool(AlfworldEnv, len(games)),
        policy.chat,
        CollectorSettings(config.worded, config.sampling, config.rollout.layout),
    )
    plans = [EpisodePlan(one, episode_seed(one)) for one in games]
    return collector.collect(plans, session_factory(policy), temperature=1.0, policy_version=0)


@pytest.mark.parametrize("layout", ["transcript", "steps"])
def test_a_policy_writes_what_it_writes_in_an_evaluation(layout: str, games: tuple[Game, ...]) -> None:
    config, policy = settings(layout), policy_of(checkpoint())
    expected = collected(config, policy, games)
    pool = EnvPool(AlfworldEnv, 1)
    proposer = PolicyProposer(config, policy, session_factory, "random weights")
    for one, trajectory in zip(games, expected, strict=True):
        playing = PlaySession(pool, one, episode_seed(one), proposer)
        for number, transition in enumerate(trajectory.transitions):
            # Asked, gone back, and asked again: it makes no difference.
            if number == 3:
                playing.undo(2)
                playing.accept()
                playing.accept()
            move = playing.accept()
            assert move.proposal is not None
            assert move.proposal.answer is not None
            assert move.proposal.answer.token_ids == transition.generation.token_ids
            assert move.proposal.answer.logprobs == pytest.approx(transition.generation.logprobs, abs=1e-4)
            assert (move.proposal.action, move.admissible) == (transition.action, transition.admissible)
            assert move.step.observation == transition.next_observation
        if trajectory.stop is StopReason.TOKEN_LIMIT:
            with pytest.raises(PolicyFault, match=r"no longer fits sampling\.max_context=500"):
                playing.accept()
        else:
            assert playing.played.stop is trajectory.stop


@pytest.mark.parametrize("form", ["compact", "reasoned"])
def test_what_a_person_typed_stands_in_the_policys_conversation(form: str, games: tuple[Game, ...]) -> None:
    config, policy = settings("transcript", form), policy_of(checkpoint())
    read: list[list[int]] = []

    def listening(policy: Policy) -> Callable[[int], object]:
        opened = session_factory(policy)

        def open_session(rows: int) -> object:
            inner = opened(rows)
            append = inner.append

            def heard(blocks: Sequence[Sequence[int]]) -> None:
                read.append(list(blocks[0]))
                append(blocks)

            inner.append = heard  # type: ignore[method-assign]
            return inner

        return open_session

    proposer = PolicyProposer(config, policy, listening, "random weights")  # type: ignore[arg-type]
    playing = PlaySession(EnvPool(AlfworldEnv, 1), games[0], 0, proposer)
    playing.propose()
    playing.act("look")
    playing.propose()
    answered = {"compact": "look", "reasoned": "<think></think><action>look</action>"}[form]
    shown = policy.chat.decode_all(read[-1])
    # A new session reads all of it: the opening, the person's action as the policy's own, what followed.
    assert read[-1][: len(read[0])] == read[0]
    assert policy.chat.decode_all(read[-1][len(read[0]) :]).startswith(answered)
    assert playing.played.current.text in shown


# The dialogue


class Typed:
    """Lines of a script."""

    interactive = False

    def __init__(self, lines: Sequence[str], interactive: bool = False) -> None:
        self._lines = list(lines)
        self.interactive = interactive
        self.offered: list[str] = []

    def read(self, prompt: str, completions: Callable[[], Sequence[str]]) -> str | None:
        self.offered = list(completions())
        return self._lines.pop(0) if self._lines else None


def sitting(
    *lines: str, proposer: Proposer | None = None, auto: bool = False, interactive: bool = False
) -> tuple[str, Typed]:
    """What is written while these lines are typed, and the lines that were left."""
    scripted = [game("won"), game("raise")]
    stage = Stage(
        choose_games(scripted, None),
        lambda one: PlaySession(EnvPool(lambda: ScriptedEnv(SCRIPT), 1), one, 0, proposer),
        proposer,
        Told(),
    )
    out, typed = io.StringIO(), Typed(lines, interactive)
    Dialogue(stage, Screen(Console(file=out, width=100)), typed, auto).run(scripted[0])
    return out.getvalue(), typed


def test_a_person_plays_to_the_end() -> None:
    out, typed = sitting("/actions", "1", ":expert", "take", "win", "go", "/undo", "/look")
    assert "  1 go" in out
    assert "> go\nsaw key\n  step 1 of 9 · admissible · reward 0\n" in out
    assert "told: go 1\n" in out
    assert "Nothing happens.\n  step 2 of 9 · not admissible · reward 0\n" in out
    assert "won · task score 1.00 · 3 steps · return 1.00\n" in out
    assert "the game is over; /undo, /restart, /next or /quit\n" in out
    assert out.endswith("  back at step 2 of 9\nNothing happens.\nNothing happens.\n")
    assert set(typed.offered) == {"go", "win", "help", *(name.split()[0] for name in COMMANDS)}


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/undoo", "/undoo is no command: did you mean /undo? /help lists them all"),
        ("/xyz", "/xyz is no command: /help lists them all"),
        ("/undo x", "/undo x: give the number of steps, or nothing for one"),
        ("/undo 0", "/undo 0: give the number of steps, or nothing for one"),
        ("/game 7", "there is no game '7' here; give a number from 1 to 2"),
        ("/all", "/all is for watching: start with --policy"),
        ("17", "there is no action 17: there are 3 now"),
        ("search[<your query>]", "a search needs words"),
        ("", "type an action, the number of one in /actions, or /help"),
    ],
)
def test_what_cannot_be_done_is_told_and_costs_nothing(line: str, answer: str) -> None:
    out, _ = sitting(line, "go")
    assert answer in out
    assert "step 1 of 9" in out


def test_every_command_is_helped_with() -> None:
    out, _ = sitting("/help")
    assert [name for name in COMMANDS if name not in out] == []


def test_going_from_game_to_game() -> None:
    out, _ = sitting("go", "/next", "go", "take", "/next", "/game id-raise", "/quit", "go")
    assert [line.split(" · ")[1] for line in out.splitlines() if "game " in line and " of 2" in line] == [
        "game 1 of 2",
        "game 2 of 2",
        "game 1 of 2",
        "game 2 of 2",
    ]
    assert "kitchen is on fire" in out
    assert out.count("step 1 of 9") == 2


def test_watching_step_by_step_and_taking_over() -> None:
    out, _ = sitting("", "win", "/quit", proposer=Told())
    assert "told: go 0\n> go 0\nsaw key\n" in out
    assert "told: go 1\nNothing happens.\n  step 2 of 9 · admissible · reward 0\ntold: go 2\n" in out


@pytest.mark.parametrize(
    ("lines", "options", "ends"),
    [
        (["/all"], {"interactive": True}, True),
        ([], {"auto": True, "interactive": True}, True),
        ([""], {}, True),  # a pipe that ends
        ([""], {"interactive": True}, False),  # Ctrl-D
        (["/all", "/undo", "win"], {"interactive": True}, True),
    ],
)
def test_running_to_the_end(lines: list[str], options: dict[str, bool], ends: bool) -> None:
    out, _ = sitting(*lines, proposer=Told(), **options)
    assert ("won · task score 1.00 · 3 steps" in out) is ends


def test_a_proposer_at_a_loss_is_told_of_and_a_person_can_go_on() -> None:
    loss = "the one you watch is at a loss; type an action\n"
    out, _ = sitting("stump", "", "/all", "win", proposer=Told())
    assert out.count(loss) == 3
    assert out.endswith("won · task score 1.00 · 3 steps · return 1.00\n")
    # A pipe that ends there ends the sitting, without the game's end.
    out, _ = sitting("stump", proposer=Told())
    assert out.endswith(f"{loss}not played to its end · task score 0.25 · 1 step · return 0.00\n")


def test_games_by_number_id_and_task_type() -> None:
    kinds = [Game(f"{n}abcd{n}", "fake", "test", kind, "", 3) for n, kind in enumerate(("a", "b", "a"))]
    found = choose_games(kinds, "a")
    assert [n for n, _ in found.numbered] == [1, 3]
    assert found.find("3") is kinds[2]
    assert found.find("0abc") is kinds[0]
    assert (found.after(kinds[0]), found.after(kinds[2])) == (kinds[2], kinds[0])
    with pytest.raises(ConfigFault, match="there is no game '2' here; give one of the numbers 1, 3, or"):
        found.find("2")
    with pytest.raises(ConfigFault, match="no game of the task type 'c' here; choose from a, b"):
        choose_games(kinds, "c")
    twins = [Game(f"twins{n}", "fake", "test", "a", "", 3) for n in range(2)]
    with pytest.raises(ConfigFault, match="the ids of 2 games begin with 'twin'"):
        choose_games(twins, None).find("twin")


def test_a_page_of_the_shop_is_shown_line_by_line() -> None:
    page = "'Back to Search' [SEP] 'Page 1' [SEP] 'B0VAZEMA73' [SEP] 'Blue Shoes' [SEP] '$34.0' [SEP] 'x'"
    assert readable(page) == "Back to Search\nPage 1\nB0VAZEMA73  Blue Shoes  $34.0\nx"
    assert readable("'Search'\n\nYour task is to: find it") == "'Search'\n\nYour task is to: find it"
    assert readable("-= Welcome to TextWorld, ALFRED! =-\n\nYou see.") == "You see."


def test_undo_keeps_results_of_kept_steps() -> None:
    playing = session()
    first = playing.act("go")
    playing.act("take")
    playing.undo()
    assert playing.played.moves == (first,)
    assert isinstance(playing.played.moves[0].step, StepResult)
