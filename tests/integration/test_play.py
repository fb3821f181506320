"""``python -m envrl.play`` as somebody uses it: through a pipe, at a terminal, with a trained run."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from envrl.analysis.episodes import read_episodes
from envrl.experiments import play, train
from envrl.experiments.config import config_from
from studies import tiny, write_yaml
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")

SMALL = ["--set=evaluation.games=6", "--set=env.objects_per_receptacle=1.0"]
COMMAND = [sys.executable, "-m", "envrl.play"]


def piped(typed: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options], input=typed, capture_output=True, text=True, timeout=300, check=False
    )


def here(
    typed: str, *options: str, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """Runs the command in this process; its exit code and what it printed, errors included."""
    capsys.readouterr()
    patch.setattr(sys, "stdin", io.StringIO(typed))
    code = play.main(options)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def taken(out: str) -> list[str]:
    """Actions that were repeated on the screen."""
    return [line.removeprefix("> ") for line in out.splitlines() if re.match(r"> .", line)]


def test_help_loads_no_heavy_library() -> None:
    script = (
        "import sys\nfrom envrl.experiments import play\ntry:\n    play.main(['--help'])\nfinally:\n"
        "    print('HEAVY', sorted({'torch', 'lightning', 'transformers', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: python -m envrl.play")
    assert done.stdout.endswith("HEAVY []\n")


def test_a_house_through_a_pipe() -> None:
    done = piped("/actions\n1\n/expert\n/undo\n/nonsense\nlook\n", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert "alfworld · game 1 of 6 · " in out
    assert " · at most 12 steps · you play" in out
    assert "Your task is to: " in out
    assert "> 1\n> go to " in out
    assert "step 1 of 12 · admissible · reward 0\n> /expert\nexpert: " in out
    assert "back at step 0 of 12" in out
    assert "/nonsense is no command" in out
    assert out.rstrip().endswith("step 1 of 12 · admissible · reward 0")


def test_the_shop_through_a_pipe() -> None:
    done = piped("search[red shoes]\n/undo\n", "--env", "webshop", "--policy", "expert", "--steps=9")
    assert (done.returncode, done.stderr) == (0, "")
    out = done.stdout
    assert "Page 1 (Total results: 50)" in out
    assert "step 1 of 9 · admissible · reward 0" in out
    # The pipe's end lets the expert play on, from where the step was taken back.
    assert taken(out)[:2] == ["search[red shoes]", "/undo"]
    assert taken(out)[2].startswith("search[")
    assert taken(out)[-1] == "click[buy now]"
    assert re.search(r"(won|not won) · task score \d\.\d\d · ", out.splitlines()[-1])


class Terminal:
    """The command at a pseudo-terminal."""

    def __init__(self, *options: str) -> None:
        self._screen, inner = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *options],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
            start_new_session=True,
        )
        os.close(inner)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def interrupt(self) -> str:
        """Presses Ctrl-C until the command says that it was left; what is shown before that.

        Python notices a signal when ``input`` wakes up. One that comes after the prompt is shown and
        before ``input`` waits for a key is seen at the next key only, so one press isn't enough here.
        """
        for _ in range(40):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                return self.wait_for("left\n", limit_s=5)
        raise AssertionError(f"Ctrl-C has no effect: {self.shown!r}")

    def wait_for(self, text: str, limit_s: float = 200) -> str:
        """What is shown until the text is; what came before is forgotten.

        Raises:
            TimeoutError: It isn't shown in time.
        """
        deadline = time.monotonic() + limit_s
        while text not in self.shown:
            if time.monotonic() > deadline:
                raise TimeoutError(f"never shown: {text!r}, but {self.shown!r}")
            if not select.select([self._screen], [], [], 0.2)[0]:
                continue
            try:
                chunk = os.read(self._screen, 65536).decode(errors="replace")
            except OSError as error:  # Linux's way to say that the other side is closed
                raise AssertionError(f"it ended without {text!r}: {self.shown!r}") from error
            self.shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", chunk).replace("\r\n", "\n")
        before, _, self.shown = self.shown.partition(text)
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)


def test_at_a_terminal_with_completion_and_the_keys_that_end_it() -> None:
    terminal = Terminal("--policy", "expert", *SMALL)
    try:
        terminal.wait_for("expert: ")
        action = terminal.wait_for("\n").strip()
        terminal.wait_for("> ")
        terminal.type("\n")  # Enter takes the step
        terminal.wait_for(f"> {action}\n")
        terminal.wait_for("step 1 of 12 · admissible")
        terminal.wait_for("expert: ")
        terminal.wait_for("> ")
        terminal.type("inv\t\n")  # Tab completes
        terminal.wait_for("inventory\n")
        terminal.wait_for("You are ")
        terminal.wait_for("step 2 of 12 · admissible")
        terminal.wait_for("> ")
        terminal.type("/res\t\n")
        terminal.wait_for("/restart\n")
        terminal.wait_for("back at step 0 of 12")
        terminal.wait_for("> ")
        terminal.type("/unknown\n")
        terminal.wait_for("/unknown is no command")
        terminal.wait_for("> ")
        terminal.type("\x1b[A\x1b[A\n")  # twice the arrow up: the line before the last
        terminal.wait_for("back at step 0 of 12")
        terminal.wait_for("> ")
        terminal.type("\x04")  # Ctrl-D
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()


def test_ctrl_c_leaves_without_a_traceback() -> None:
    terminal = Terminal(*SMALL)
    try:
        terminal.wait_for("Type an action or /help.")
        terminal.wait_for("> ")
        before = terminal.interrupt()
        assert terminal.process.wait(60) == 130
        assert "Traceback" not in before + terminal.shown
    finally:
        terminal.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, own_places: None) -> Path:
    """The folder of a run of two iterations that is evaluated at its end."""
    root = tmp_path_factory.mktemp("trained")
    changes = {"train.iterations": 2, "train.diagnose_every": 0, "optim.lr": 0.01, "evaluation.every": 2}
    file = write_yaml(root / "run.yaml", tiny(checkpoint(), changes))
    assert train.main(["--config", str(file), "--root", str(root), "--seed=3"]) == 0
    return root / "studies" / "single" / "runs" / train.ARM / "seed_3"


def test_a_trained_run_plays_what_its_last_evaluation_played(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = list(read_episodes(trained))
    assert [episode.iteration for episode in episodes] == [2] * 6
    for episode in episodes[:3]:
        options = ["--policy", str(trained), "--game", episode.game_id[:12], "--auto"]
        code, out = here("", *options, capsys=capsys, patch=monkeypatch)
        assert code == 0
        assert "you watch run seed_3 after 2 iterations" in out
        assert taken(out) == [(turn.action or "").replace("\n", " ") for turn in episode.turns if turn.action]
        shown = [float(n.replace("−", "-")) for n in re.findall(r"log-probability (\S+)", out)]
        assert shown == pytest.approx([turn.logprob for turn in episode.turns], abs=2e-3)
        kinds = [line.split(" · ")[1] == "admissible" for line in out.splitlines() if " · reward " in line]
        assert kinds == [turn.action_admissible for turn in episode.turns]
        assert f"{len(episode.turns)} steps" in out


def test_temperature_and_seed_change_what_is_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*SMALL, "--policy=embedded", "--auto", f"--set=policy.model={checkpoint()}", "--steps=3"]

    def drawn(*more: str) -> list[str]:
        code, out = here("", *options, *more, capsys=capsys, patch=monkeypatch)
        assert code == 0
        return re.findall(r"log-probability (\S+)", out)

    usual, greedy = drawn("--temperature=1"), drawn("--temperature=0")
    assert drawn("--temperature=1") == usual
    assert drawn("--temperature=0", "--seed=1") == greedy
    assert len({tuple(numbers) for numbers in (usual, greedy, drawn("--temperature=1", "--seed=1"))}) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--policy=nowhere"], ["--policy is 'nowhere'", "give one of these"]),
        (["--policy=."], ["no folder of a trained run", "config.yaml"]),
        (["--policy=broken"], ["holds no checkpoint", "train it first"]),
        (["--policy=broken", "--env=webshop"], ["--env is webshop", "is on alfworld", "leave --env out"]),
        (["--game=7", *SMALL], ["there is no game '7' here", "from 1 to 6"]),
        (["--family=dancing", *SMALL], ["no game of the task type 'dancing'", "look_at_obj_in_light"]),
        (["--family=look_at_obj_in_light", "--game=nope", *SMALL], ["'nope'", "one of the numbers"]),
        (["--auto"], ["--auto", "add --policy"]),
        (["--policy=expert", "--temperature=0"], ["--temperature is 0.0", "leave it out"]),
        (["--policy=embedded", "--temperature=-1"], ["eval_temperature is -1", "use 0"]),
        (["--seed=-1"], ["--seed is -1", "use 0"]),
        (["--steps=0"], ["env.max_steps is 0", "use at least 1"]),
        (["--set=env.rooms=3"], ["'env' does not accept option 'rooms'"]),
        (["--set=env.name"], ["--set env.name", "KEY=VALUE"]),
        (["--env=webshop", "--split=valid_seen"], ["evaluation.split is valid_seen", "test"]),
        (["--games=official"], ["ALFWORLD_DATA"]),
    ],
)
def test_what_is_impossible_is_refused_before_anything_starts(
    options: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken").mkdir()
    write_yaml(tmp_path / "broken" / "config.yaml", tiny(checkpoint()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "nothing"))
    code, said = here("", *options, capsys=capsys, patch=monkeypatch)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert [word for word in words if word not in said] == []


def test_settings_of_a_game_are_those_of_the_other_commands() -> None:
    def config(*options: str, run: Path | None = None) -> Any:
        return play.play_config(play.parser().parse_args(options), run)

    assert config() == config_from({})
    assert config("--env=webshop") == config_from({"env.name": "webshop"})
    official = config("--games=official")
    assert (official.env.games, official.env.steps) == ("official", 50)
    assert config("--games=official", "--steps=7").env.steps == 7
    assert config("--games=official", "--set=env.max_steps=8").env.steps == 8
    assert config("--split=valid_unseen", "--set=env.receptacles=null") == config_from(
        {"evaluation.split": "valid_unseen", "env.receptacles": None}
    )
