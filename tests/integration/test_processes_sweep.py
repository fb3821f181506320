"""A sweep whose trials have two processes each, and whose pruner gives them up."""

from __future__ import annotations

import subprocess
from pathlib import Path

import optuna
import pytest

from envrl.analysis.records import load_record
from envrl.experiments.sweep_file import StorageSettings, load_sweep
from envrl.experiments.sweep_search import open_search
from envrl.tracking.store import client, open_store
from studies import command, require_gone, tiny, write_yaml
from support import checkpoint

pytestmark = [pytest.mark.usefixtures("own_places"), pytest.mark.slow]

LR = "optim.lr"
RATES = (0.001, 0.0001)


def write_sweep(folder: Path) -> Path:
    base = tiny(
        checkpoint(),
        {"train.devices": 2, "train.iterations": 2, "batch.micro_batches": 2},
        {"evaluation.every": 1, "evaluation.dynamics": 0, "evaluation.games": 2},
    )
    content = {
        "name": "tiny",
        "base": base,
        "space": {LR: {"choices": list(RATES)}},
        "trials": 3,
        "enqueue": [{LR: rate} for rate in RATES],
        "sampler": {"kind": "random"},
        "pruner": {"kind": "median", "n_startup_trials": 0},
    }
    return write_yaml(folder / "sweep.yaml", content)


def already_won(file: Path, folder: Path) -> None:
    """Puts a trial into the storage that won every game, so that the next ones are below the median."""
    study = open_search(load_sweep(file), StorageSettings(), folder).study
    chosen = optuna.distributions.CategoricalDistribution(RATES)
    best = optuna.create_trial(
        params={LR: RATES[0]},
        distributions={LR: chosen},
        value=1.0,
        intermediate_values={1: 1.0, 2: 1.0},
    )
    study.add_trial(best)


def test_a_trial_that_is_given_up_ends_in_both_processes(tmp_path: Path) -> None:
    file, root = write_sweep(tmp_path), tmp_path / "mlruns"
    folder = root / "studies" / "tiny"
    already_won(file, folder)
    arguments = command("sweep", "--study", file, "--root", root)
    pipe = subprocess.PIPE
    process = subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    try:
        out, errors = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, out + errors
    require_gone(process.pid)
    assert errors == "", "the process that only helps has nothing to say of it"
    # The second one shows that the first left nothing behind that it would wait for.
    for number in range(2):
        assert f"trial_000{number} pruned after 1 iterations of 2" in out
        record = load_record(folder / "runs" / f"trial_000{number}" / "seed_0" / "record.json")
        assert (record.status, record.error) == ("pruned", "pruned after 1 iterations of 2")
        assert record.config["train"]["devices"] == 2
    mlflow_client = client(open_store(root))
    experiment = mlflow_client.get_experiment_by_name("tiny")
    runs = mlflow_client.search_runs([experiment.experiment_id], "tags.pruned = 'true'")
    assert len(runs) == 2
    assert {(run.data.tags["processes"], run.info.status) for run in runs} == {("2", "FINISHED")}
