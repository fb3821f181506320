"""Files and options that configure: studies, sweeps, runs."""

from __future__ import annotations

from pathlib import Path

from fuzz.target import Run, Target, text_of

_STUDY = b"""name: s
baseline: a
seeds: [0, 1]
base: {env.max_steps: 5, loss: {sp.weight: 0.1}}
arms: {a: {}, b: {loss.id.weight: 0.2}}
factors: {f: {none: {}, x: {optim.lr: 1e-3}}}
more_seeds: {b: [2]}
jobs: 1
"""
_SWEEP = b"""name: s
base: {env.max_steps: 5}
space: {optim.lr: {low: 1.0e-5, high: 1.0e-3, log: true}, batch.updates: {choices: [1, 2]}}
sampler: {kind: random}
trials: 3
seeds: [0]
enqueue: [{optim.lr: 1.0e-4, batch.updates: 1}]
"""
_CONFIG = b"""seed: 3
env: {name: alfworld, max_steps: 5, train_games: 8}
rollout: {layout: transcript, games: 2, episodes_per_game: 2}
loss: {sp: {weight: 0.1, kind: linear, length: 2}, objectives: []}
optim: {lr: 0.001}
train: {iterations: 3}
"""
_YAML_WORDS = (
    *(b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"!!int ", b"!!binary ", b"!!timestamp "),
    *(b"null", b"true", b"-1", b"1e400", b".nan", b".inf", b"0x_", b"2001-99-99", b"99999999999999999999"),
    *(b"extends: ", b"../", b"- ", b": ", b"{}", b"[]", b"\x00", b"a.b.c", b"os:system"),
)


def _study_file(folder: Path) -> Run:
    from envrl.experiments.study_file import load_study

    path = folder / "study.yaml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load_study(path)

    return run


def _sweep_file(folder: Path) -> Run:
    from envrl.experiments.sweep_file import load_sweep

    path = folder / "sweep.yaml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load_sweep(path)

    return run


def _run_config(folder: Path) -> Run:
    from envrl.experiments.config import config_from
    from envrl.experiments.trained import trained_config

    def run(data: bytes) -> None:
        (folder / "config.yaml").write_bytes(data)
        config_from(trained_config(folder))

    return run


def _option(folder: Path) -> Run:
    from envrl.experiments.plain import assignments

    del folder
    return lambda data: assignments([text_of(data)])


TARGETS: dict[str, Target] = {
    "study_file": Target(_study_file, lambda: [_STUDY], _YAML_WORDS),
    "sweep_file": Target(_sweep_file, lambda: [_SWEEP], _YAML_WORDS),
    "run_config": Target(_run_config, lambda: [_CONFIG], _YAML_WORDS),
    "option": Target(_option, lambda: [b"train.iterations=3", b"a.b={c: [1, 2]}"], _YAML_WORDS),
}
