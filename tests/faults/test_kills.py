"""SIGKILL at any moment of a study: the same command goes on to the same end, to the last digit."""

from __future__ import annotations

import os
import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kills import KILLED, Launcher, Moment, differences, left_by, lost_or_doubled

from envrl.analysis.records import load_records
from envrl.experiments.resume import newest_checkpoint
from studies import tiny, write_study
from support import checkpoint

pytestmark = pytest.mark.usefixtures("own_places")

RUNS = ["tiny", "grpo/seed_0", "both/seed_0"]


@dataclass(frozen=True)
class Whole:
    """A study that nobody killed.

    Attributes:
        file: Its YAML file.
        left: What it left.
        seconds: What all its runs took.
    """

    file: Path
    left: dict[str, Any]
    seconds: float


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory, own_places: None) -> Iterator[Launcher]:
    with Launcher(tmp_path_factory.mktemp("launcher") / "log.txt") as started:
        yield started


def whole(launcher: Launcher, folder: Path, **changes: Any) -> Whole:
    file, root = write_study(folder, checkpoint(), **changes), folder / "whole"
    assert launcher.study(file, root) == 0
    seconds = sum(record.seconds for record in load_records(root / "studies" / "tiny"))
    return Whole(file, left_by(root), seconds)


PLAN = (
    # A store without tables, a study without a run, a run without a name.
    *(Moment("opening the store"), Moment("a statement of SQL", 40), Moment("opening the store", after=True)),
    *(Moment("beginning the study"), Moment("beginning the study", after=True)),
    *(Moment("making a run in MLflow"), Moment("making a run in MLflow", after=True)),
    # The first run: before its first checkpoint, ...
    *(Moment("evaluating"), Moment("evaluating", after=True), Moment("logging", 5, after=True)),
    *(Moment("collecting", 3), Moment("computing a loss", after=True), Moment("updating"), 0.5),
    *(
        Moment("updating", after=True),
        Moment("half a checkpoint"),
        Moment("writing a checkpoint", after=True),
    ),
    # ... at it and after it, ...
    *(
        Moment("a checkpoint in its place"),
        Moment("half a checkpoint"),
        1.0,
        Moment("a statement of SQL", 60),
    ),
    *(Moment("keeping the checkpoint before", after=True), Moment("logging", 8), 2.0),
    *(Moment("logging", 8, after=True), Moment("keeping a file", 3), Moment("keeping a file", 5, after=True)),
    # ... and in the end.
    *(Moment("a checkpoint in its place", after=True), Moment("evaluating", after=True)),
    *(Moment("half a checkpoint"), Moment("ending a run"), Moment("ending a run", after=True)),
    # The second run, and what comes after all runs.
    *(Moment("making a run in MLflow"), Moment("collecting", 6), 3.0, Moment("a checkpoint in its place")),
    *(Moment("keeping the checkpoint before"), 2.5, Moment("logging", 9, after=True), 1.5),
    *(Moment("ending a run", after=True), Moment("reporting"), Moment("registering")),
    *(Moment("registering", after=True), Moment("ending the study"), Moment("ending the study", after=True)),
)
"""When to die, in this order over one study; a number is a time in seconds, up to which it is drawn."""
LEAST_KILLS = 30


@pytest.fixture(scope="module")
def unharmed(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole(launcher, tmp_path_factory.mktemp("unharmed"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.fault(
    "A study is killed (SIGKILL) over and over: while it makes its store, collects, updates, evaluates, "
    "logs, writes a checkpoint, reports, and at random times",
    "The same command goes on each time; records, curves, episodes and weights are in the end those of a "
    "study nobody killed, to the last digit, and MLflow has each run and each point of its curves once",
)
def test_a_study_killed_over_and_over_comes_to_the_same_end(
    launcher: Launcher, unharmed: Whole, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    draw, root, kills, missed = random.Random(0), tmp_path / "mlruns", 0, []
    record_property("faults", len(PLAN))
    for entry in PLAN:
        if isinstance(entry, Moment):
            code = launcher.study(unharmed.file, root, entry)
        else:
            code = launcher.study(unharmed.file, root, seconds=draw.uniform(0, entry))
        kills += code == KILLED
        if code != KILLED:
            missed.append(str(entry))
    assert missed == [], "each must have been reached"
    assert kills == len(PLAN) >= LEAST_KILLS
    assert launcher.study(unharmed.file, root) == 0
    lost = lost_or_doubled(root, RUNS)
    record_property("lost_runs", lost)
    assert lost == 0
    assert differences(left_by(root), unharmed.left) == {}
    record_property("survived", kills)


SEED = "ENVRL_KILL_SEED"
"""Environment variable with the seed of the random times; without it, each run of the tests has another."""
ITERATIONS = 16


def iterations_kept(root: Path) -> int:
    """Iterations behind the checkpoints of all runs of a study."""
    found = [newest_checkpoint(run) for run in root.glob("studies/tiny/runs/*/seed_0")]
    return sum(one.completed for one in found if one is not None)


@pytest.fixture(scope="module")
def longer(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Two runs of so many iterations that some are left after all kills."""
    changes = {"train": {"iterations": ITERATIONS}, "evaluation": {"every": 4}}
    return whole(launcher, tmp_path_factory.mktemp("longer"), base=tiny(checkpoint(), changes))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.fault(
    "A study is killed (SIGKILL) thirty times in a row, each time at a random moment, other ones in each run "
    "of the test",
    "It goes on each time and comes to the end of a study nobody killed, to the last digit, with no run of "
    "MLflow lost or doubled",
)
def test_kills_at_random_times_change_nothing(
    launcher: Launcher, longer: Whole, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seed = int(os.environ.get(SEED) or secrets.randbits(32))
    # Told in the output of a test that failed, too.
    print(f"random times of seed {seed}; set {SEED}={seed} for the same")
    record_property("kill_seed", seed)
    record_property("faults", LEAST_KILLS)
    draw, root = random.Random(seed), tmp_path / "mlruns"
    iteration_s = longer.seconds / (2 * ITERATIONS)
    at_work: Counter[str] = Counter()
    kept = [0]
    while at_work.total() < LEAST_KILLS:
        # One in five before or at the start of the work; the others in an iteration or the one after it. So
        # the study comes forward between the kills, however fast the machine, and some is left in the end.
        iteration = draw.choices((0, 1, 2), (0.2, 0.5, 0.3))[0]
        seconds = draw.uniform(0, 1.5 * iteration_s if iteration else 3.0)
        if launcher.study(longer.file, root, seconds=seconds, iteration=iteration) == KILLED:
            at_work[launcher.at_work] += 1
            kept.append(iterations_kept(root))
    print(f"killed at {dict(at_work)}; iterations kept {kept}")
    record_property("killed_at", dict(at_work))
    assert kept == sorted(kept), "what was kept is never lost"
    assert len(set(kept)) > 5, "it must have come forward between the kills"
    assert launcher.study(longer.file, root) == 0
    lost = lost_or_doubled(root, RUNS)
    record_property("lost_runs", lost)
    assert lost == 0
    assert differences(left_by(root), longer.left) == {}
    record_property("survived", at_work.total())


@pytest.mark.slow
@pytest.mark.fault(
    "A run is killed, and the checkpoint it would go on from is damaged",
    "It goes on from the one before to the same end, says so on the console, in its record and in MLflow, "
    "and logs no point of a curve twice",
)
def test_a_run_goes_on_from_the_checkpoint_before(
    launcher: Launcher, unharmed: Whole, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    root = tmp_path / "mlruns"
    assert launcher.study(unharmed.file, root, Moment("a checkpoint in its place", 2, after=True)) == KILLED
    run = root / "studies" / "tiny" / "runs" / "grpo" / "seed_0"
    content = bytearray((run / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "last.ckpt").write_bytes(content)
    assert launcher.study(unharmed.file, root) == 0
    note = (
        f"the checkpoint {run / 'last.ckpt'} is broken (its checksum does not match); the one before it is "
        "used, previous.ckpt after 1 iterations"
    )
    assert f"warning: grpo/seed_0: {note}\n" in launcher.log.read_text()
    different = differences(left_by(root), unharmed.left)
    assert different.pop("grpo: record, notes") == ((note,), ())
    assert different.pop("MLflow grpo/seed_0: tags, notes") == (note, None)
    mine, theirs = different.pop("grpo: files")
    assert mine - theirs == {"broken.ckpt"}
    assert different == {}
    lost = lost_or_doubled(root, RUNS)
    record_property("lost_runs", lost)
    assert lost == 0
