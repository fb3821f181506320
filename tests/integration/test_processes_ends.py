"""How runs of several processes end before their time, and what each process keeps for going on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from envrl.experiments.console import GO_ON
from envrl.experiments.strategy import strategy_of
from envrl.policy.ranks import ALONE, Ranks
from envrl.training.callbacks import RandomStateCallback
from process_runs import configured, interrupted, require_same, run, state_of
from studies import command, require_gone, tiny, write_study, write_yaml
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")
LONG: dict[str, Any] = {"train": {"devices": 2, "iterations": 60}, "batch": {"micro_batches": 2}}


def stopped(arguments: list[str], root: Path, sent: signal.Signals) -> tuple[int, str]:
    """Starts a command, sends it a signal in its first iterations; how it ended, and what it said."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300
        while not list(root.glob("studies/*/runs/*/seed_0/last.ckpt")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "it never came to its first checkpoint"
            time.sleep(0.01)
        process.send_signal(sent)
        said = process.communicate(timeout=90)[1]
        require_gone(process.pid)
        return process.returncode, said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


TERMINATED = """
import os, signal, sys
from pathlib import Path
from envrl.experiments.console import GO_ON, guarded
from process_runs import configured, run

def terminate(progress):
    if progress.iteration == 2:
        os.kill(os.getpid(), signal.SIGTERM)

def main():
    run(Path(sys.argv[1]), configured(2, **{"policy.model": sys.argv[2]}), terminate)
    return 0

sys.exit(guarded(main, GO_ON))
"""


@pytest.mark.fault(
    "SIGTERM to a run of several processes while one of them waits for the others",
    "all end; the same command goes on from the last checkpoint",
)
def test_a_signal_comes_while_the_other_process_waits(tmp_path: Path) -> None:
    # Lightning's own handler would begin an exchange, while the other process is in another one.
    here = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, str(tmp_path), str(checkpoint())],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "PYTHONPATH": here},
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == GO_ON
    # It was stopped before the second iteration's checkpoint.
    resumed = run(tmp_path, configured(2))
    assert resumed.record.status == "finished"
    assert len(resumed.episodes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_run_of_two_processes_ends_when_it_is_told_to(tmp_path: Path, sent: signal.Signals) -> None:
    config = write_yaml(tmp_path / "run.yaml", tiny(checkpoint(), LONG))
    arguments = command("train", "--config", config, "--root", tmp_path)
    returncode, said = stopped(arguments, tmp_path, sent)
    assert returncode == 130, said
    assert "run the same command again" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_study_of_such_runs_ends_when_it_is_told_to(tmp_path: Path) -> None:
    study = write_study(tmp_path, checkpoint(), base=tiny(checkpoint(), LONG), arms={"grpo": None})
    returncode, said = stopped(
        command("ablate", "--study", study, "--root", tmp_path), tmp_path, signal.SIGINT
    )
    assert returncode == 130, said
    assert "Traceback" not in said


WATCHED = """
import multiprocessing, os, time
from envrl.experiments.processes import watched

context = multiprocessing.get_context("spawn")
told, tells = context.Pipe(duplex=False)
child = context.Process(target=os._exit, args=({code},))
child.start()
tells.send("process 1 of 2 ended by this: no memory")
with watched([(child, told)], {patience}):
    {work}
time.sleep(0.5)
print("went on")
"""


@pytest.mark.fault(
    "a process dies, and another waits for it in an exchange that does not notice",
    "that one ends after ten minutes, with the sentence of the one that died",
)
@pytest.mark.parametrize(
    ("code", "patience", "work", "ending"),
    [
        (3, 0.1, "time.sleep(60)", (1, "", "error: process 1 of 2 ended by this: no memory\n")),
        (0, 0.1, "child.join(); time.sleep(3)", (0, "went on\n", "")),
        (3, 30.0, "child.join(); time.sleep(1)", (0, "went on\n", "")),
    ],
    ids=["failed and unnoticed", "done", "failed and noticed"],
)
def test_who_waits_for_the_dead_without_end_is_ended(
    code: int, patience: float, work: str, ending: tuple[int, str, str]
) -> None:
    script = WATCHED.format(code=code, patience=patience, work=work)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == ending


def test_lightning_leaves_the_number_of_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=strategy_of(Ranks(0, 2)), logger=False, barebones=True
    )
    assert trainer.world_size == 2
    assert trainer.strategy.launcher is None
    assert torch.get_num_threads() == before
    assert "OMP_NUM_THREADS" not in os.environ


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def test_each_process_goes_on_with_its_own_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def states(seed: int) -> tuple[dict[str, Any], tuple[float, float, float]]:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        return RandomStateCallback().state_dict(), draws()

    (first, drawn), (second, others) = states(1), states(2)
    assert drawn != others
    both = [{name: state[name] for name in state if name != "others"} for state in (first, second)]
    monkeypatch.setattr(Ranks, "everyone", lambda self, work: both)
    kept = RandomStateCallback(Ranks(0, 2)).state_dict()
    for ranks, expected in ((Ranks(0, 2), drawn), (Ranks(1, 2), others), (ALONE, drawn)):
        RandomStateCallback(ranks).load_state_dict(kept)
        assert draws() == expected
    # A third one was not there.
    going_on = states(3)[1]
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    RandomStateCallback(Ranks(2, 3)).load_state_dict(kept)
    assert draws() == going_on


def test_the_state_of_one_device_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    state, set_to = torch.tensor([1, 2, 3], dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_to.append)
    kept = RandomStateCallback().state_dict()
    assert len(kept["cuda"]) == 1
    RandomStateCallback().load_state_dict(kept)
    assert set_to == [state]


@pytest.mark.slow
def test_two_processes_with_dropout_go_on_as_if_they_had_not_stopped(tmp_path: Path) -> None:
    dropping = {"policy.lora.dropout": 0.2, "train.iterations": 3}
    whole = run(tmp_path / "whole", configured(2, **dropping))
    interrupted(tmp_path / "stopped", configured(2, **dropping), 2)
    resumed = run(tmp_path / "stopped", configured(2, **dropping))
    assert len(whole.episodes) == 3
    assert len(resumed.episodes) == 2
    require_same(state_of(tmp_path / "whole"), state_of(tmp_path / "stopped"))
