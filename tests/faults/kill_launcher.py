"""Runs studies in processes that die at a chosen moment; started by ``kills.py``, not a test by itself.

It imports everything once and forks a process for each study, which is then there within milliseconds. The
study's runs are made in that same process, so that SIGKILL takes the whole of it, as a machine that goes
down would. Requests and answers are lines of JSON on the standard streams.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from envrl.experiments import ablate, study, workers
from envrl.experiments.workers import Ended, PlannedRun, WorkPlace
from envrl.tracking.store import quiet_mlflow

PRELOADED = ("envrl.experiments.run", "envrl.analysis.report", "mlflow.store.tracking.sqlalchemy_store")

AIMS = {
    "opening the store": "envrl.tracking.store:_probe",
    "beginning the study": "envrl.experiments.study:start_study",
    "making a run in MLflow": "envrl.tracking.runs:_create",
    "playing": "envrl.rollout.collector:Collector.collect",
    "collecting": "envrl.rollout.collector:Collector._advance",
    "computing a loss": "envrl.training.module:EnvRLModule.training_step",
    "updating": "envrl.training.module:EnvRLModule.optimizer_step",
    "logging": "envrl.tracking.outbox:send",
    "evaluating": "envrl.experiments.runner:play_panel",
    "keeping a file": "envrl.analysis.records:write_bytes_atomic",
    "putting down a checkpoint": "envrl.training.callbacks:write_checkpoint",
    "writing a checkpoint": "envrl.training.checkpoints:_Sealed.finish",
    "keeping the checkpoint before": "envrl.training.checkpoints:_keep_as_previous",
    "a checkpoint in its place": "envrl.training.checkpoints:_sync_folder",
    "ending a run": "envrl.experiments.runner:Runner._log_endings",
    "reporting": "envrl.experiments.study:report_study",
    "registering": "envrl.experiments.register:register_adapter",
    "ending the study": "envrl.experiments.study:finish_study",
}
"""Moment → the function that is at work then."""
HALF = "half a checkpoint"
SQL = "a statement of SQL"
AT_WORK = mmap.mmap(-1, 64)
"""What the process of a study is at, in memory that outlives it."""
ELSE = "anything else"
COLLECTED = mmap.mmap(-1, 1)
"""How many iterations have begun to play their games."""


def die(*_: object, **__: object) -> None:
    """Nothing is tidied up, nothing flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def aim(moment: str, call: int, after: bool) -> None:
    """Has this process die at the given call of what is at work in that moment, or right after it."""
    if moment == SQL:
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        event.listen(Engine, "after_cursor_execute" if after else "before_cursor_execute", counted(call))
        return
    owner, name = place_of("writing a checkpoint" if moment == HALF else moment)
    real, due = getattr(owner, name), counted(call)

    def half(sealed: Any) -> None:
        real(sealed)
        sealed._handle.flush()
        sealed._handle.truncate(sealed._handle.tell() // 2)
        due()

    def before_or_after(*arguments: Any, **options: Any) -> Any:
        if not after:
            due()
        result = real(*arguments, **options)
        if after:
            due()
        return result

    setattr(owner, name, half if moment == HALF else before_or_after)


def place_of(moment: str) -> tuple[Any, str]:
    """Module or class that holds what is at work in that moment, and its name there."""
    module, _, path = AIMS[moment].partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def tell_what_is_at_work() -> None:
    """Has this process note what it is at."""
    for moment in AIMS:
        owner, name = place_of(moment)
        setattr(owner, name, noted(moment, getattr(owner, name)))


def noted(moment: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """The function; as long as it works and is no part of another moment, its own is noted."""

    def called(*arguments: Any, **options: Any) -> Any:
        if AT_WORK[:] != in_words(ELSE):
            return real(*arguments, **options)
        AT_WORK[:] = in_words(moment)
        if moment == "playing":
            COLLECTED[0] += 1
        try:
            return real(*arguments, **options)
        finally:
            AT_WORK[:] = in_words(ELSE)

    return called


def in_words(moment: str) -> bytes:
    return moment.encode().ljust(len(AT_WORK))


def counted(call: int) -> Callable[..., None]:
    """Dies when it is called for that time, 1 being the first."""
    left = call

    def due(*_: object, **__: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()

    return due


def work_here(runs: list[PlannedRun], place: WorkPlace, jobs: int) -> Iterator[Ended | None]:
    """In place of :func:`envrl.experiments.workers.work`: one run after the other, in this process."""
    for run in runs:
        yield Ended(run, workers._execute(run, place))


def child(request: dict[str, Any]) -> int:
    """The command with these arguments, all it prints in a file."""
    with Path(request["log"]).open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    study.work = work_here
    if request["moment"] is not None:
        aim(request["moment"], request["call"], request["after"])
    if request["seconds"] is not None:
        tell_what_is_at_work()
    return ablate.main(request["arguments"])


def kill_after(pid: int, seconds: float, iteration: int) -> None:
    """Kills a process that was not waited for yet, so that its number is still its own."""
    while COLLECTED[0] < iteration and not ended(pid):
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)


def ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def serve() -> None:
    """Answers each request with the exit code of its process, -9 if it was killed, and what it was at."""
    quiet_mlflow()
    for module in PRELOADED:
        importlib.import_module(module)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        AT_WORK[:], COLLECTED[0] = in_words(ELSE), 0
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(request)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if request["seconds"] is not None:
            kill_after(pid, request["seconds"], request["iteration"])
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps([code, AT_WORK[:].decode().rstrip()]), flush=True)


if __name__ == "__main__":
    serve()
