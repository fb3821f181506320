"""One run in several processes: the same as in one, from the first episode to the last weight."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import torch

from envrl.analysis.records import load_record
from envrl.errors import ConfigFault, EnvrlError, PolicyFault
from envrl.experiments.processes import _help as helping
from envrl.experiments.processes import processes
from envrl.experiments.resume import CHECKPOINT
from envrl.training.progress import Progress
from envrl.types import Group
from process_runs import EVERYTHING, Done, configured, place_in, require_equal_weights, run
from studies import call, tiny, write_study, write_yaml
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return run(tmp_path_factory.mktemp("alone"), configured())


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return run(tmp_path_factory.mktemp("two"), configured(2))


def written(groups: tuple[Group, ...]) -> list[Any]:
    """Everything of some episodes but the log-probabilities, which depend on who else is in a batch."""
    return [
        (g.game.game_id, t.episode_seed, t.stop, [(s.generation.token_ids, s.action) for s in t.transitions])
        for g in groups
        for t in g.trajectories
    ]


def test_two_processes_play_and_learn_the_same_as_one(alone: Done, two: Done) -> None:
    assert written(two.episodes[0]) == written(alone.episodes[0])
    assert len({game for game, *_ in written(two.episodes[0])}) == 3
    require_equal_weights(alone, two)
    assert [e.outcomes for e in two.record.evaluations] == [e.outcomes for e in alone.record.evaluations]
    assert two.record.training_success == alone.record.training_success


def test_metrics_are_those_of_the_whole(alone: Done, two: Done) -> None:
    def timeless(done: Done) -> dict[str, float]:
        timed = ("seconds", "tokens_per_second")
        return {
            name: value
            for name, value in done.metrics.items()
            if not name.startswith("system/") and not name.endswith(timed)
        }

    assert {"train/grad_norm", "train/grad_cosine/sp", "train/weight_factor/id", "train/kl"} <= set(
        alone.metrics
    )
    assert timeless(two) == pytest.approx(timeless(alone), rel=2e-3, abs=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, alone: Done) -> None:
    def stop(progress: Progress) -> None:
        if progress.iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, configured(2), stop)
    # It was stopped before the second iteration's checkpoint, so it goes on from the first one's.
    resumed = run(tmp_path, configured(1))
    assert len(resumed.episodes) == 1
    require_equal_weights(alone, resumed)
    assert resumed.record.status == "finished"


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    def kill(progress: Progress) -> None:
        if progress.iteration == 1:
            [child] = [c for c in psutil.Process().children() if "spawn_main" in " ".join(c.cmdline())]
            child.kill()

    with pytest.raises(EnvrlError, match=r"another process of this run has ended.*Run the same"):
        run(tmp_path, configured(2), kill)
    assert not torch.distributed.is_initialized()


def _failing_helper(config: Any, place: Any, address: Any, told: Any) -> None:
    """A helping process that can't load the policy."""
    with patch("envrl.experiments.run.load_policy", side_effect=PolicyFault("no memory; use a smaller one")):
        helping(config, place, address, told)


@pytest.mark.slow
def test_what_a_process_fails_of_is_what_the_run_fails_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envrl.experiments.processes._help", _failing_helper)
    with pytest.raises(EnvrlError, match="process 1 of 2 ended by this: no memory; use a smaller one"):
        run(tmp_path, configured(2))


@pytest.mark.slow
def test_what_the_first_process_fails_of_is_told_by_itself(tmp_path: Path) -> None:
    def fail(progress: Progress) -> None:
        raise PolicyFault("the report failed")

    with pytest.raises(PolicyFault, match="the report failed"):
        run(tmp_path, configured(2), fail)


@pytest.mark.slow
def test_torchrun_starts_a_run_too(tmp_path: Path, alone: Done) -> None:
    config = write_yaml(tmp_path / "run.yaml", tiny(checkpoint(), EVERYTHING))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "envrl.experiments.train", "--config", str(config), "--root", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert refused.returncode != 0
    assert "torchrun has started 2 processes, but train.devices=1 times train.nodes=1 is 1" in refused.stderr
    done = subprocess.run(
        [*command, "--train.devices=2"], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("iteration 2/2") == 1
    state = torch.load(tmp_path / "studies/single/runs/run/seed_0" / CHECKPOINT, weights_only=True)[
        "state_dict"
    ]
    require_equal_weights(alone, Done(alone.record, state, {}))


@pytest.mark.slow
def test_two_torchruns_of_one_process_each_make_one_run(tmp_path: Path, alone: Done) -> None:
    # As on two machines: each knows of the other by the address where they meet alone.
    config = write_yaml(tmp_path / "run.yaml", tiny(checkpoint(), EVERYTHING))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--local-addr", "127.0.0.1"]
    command += ["-m", "envrl.experiments.train", "--config", str(config), "--root", str(tmp_path)]
    command += ["--train.nodes=2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    machines = [subprocess.Popen(command, start_new_session=True, **pipes) for _ in range(2)]
    try:
        said = [machine.communicate(timeout=400) for machine in machines]
    finally:
        for machine in machines:
            if machine.poll() is None:
                os.killpg(machine.pid, signal.SIGKILL)
    assert [machine.returncode for machine in machines] == [0, 0], said
    # One of the two reports, and writes.
    assert sorted(out.count("iteration 2/2") for out, _ in said) == [0, 1]
    folder = tmp_path / "studies/single/runs/run/seed_0"
    state = torch.load(folder / CHECKPOINT, weights_only=True)["state_dict"]
    require_equal_weights(alone, Done(alone.record, state, {}))
    record = load_record(folder / "record.json")
    assert [e.outcomes for e in record.evaluations] == [e.outcomes for e in alone.record.evaluations]
    assert record.training_success == alone.record.training_success


@pytest.mark.slow
def test_a_study_has_runs_of_several_processes(tmp_path: Path) -> None:
    base = tiny(checkpoint(), {"train": {"devices": 2, "iterations": 1}, "batch": {"micro_batches": 2}})
    study = write_study(tmp_path, checkpoint(), base=base, arms={"grpo": None})
    done = call("ablate", "--study", study, "--root", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_study_is_not_started_by_torchrun(tmp_path: Path) -> None:
    done = call(
        "ablate",
        *("--study", write_study(tmp_path, checkpoint()), "--root", tmp_path),
        TORCHELASTIC_RUN_ID="x",
        RANK="0",
        WORLD_SIZE="2",
    )
    assert done.returncode == 2
    assert "a study starts the processes of its runs itself; start it without torchrun" in done.stderr


def test_torchrun_must_start_as_many_as_are_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setitem(os.environ, name, value)
    with (
        pytest.raises(ConfigFault, match=r"started 3 processes, but train\.devices=2 times .* is 2"),
        processes(configured(2), place_in(tmp_path)),
    ):
        pass
