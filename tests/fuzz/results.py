"""What runs leave, and strangers may hand on: records, panels, recordings, episodes, checkpoints."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

from fuzz.target import JSON_WORDS, Run, Target


def _json_file(folder: Path) -> Run:
    from envrl.analysis.frames import baseline_of
    from envrl.analysis.records import load_record
    from envrl.envs.panels import Panel
    from envrl.envs.webshop.replay import read_recording

    path = folder / "study.json"
    readers: dict[bytes, Callable[[Path], object]] = {
        b"r": load_record,
        b"p": Panel.load,
        b"w": read_recording,
        b"s": lambda place: baseline_of(place.parent),
    }

    def run(data: bytes) -> None:
        path.write_bytes(data[1:])
        readers.get(data[:1], load_record)(path)

    return run


def _json_seeds() -> list[bytes]:
    outcome = {"game_id": "g", "family": "f", "won": True, "steps": 3, "task_score": 1.0}
    record = {
        "arm": "grpo",
        "seed": 0,
        "status": "finished",
        "panel_hash": "0",
        "evaluations": [{"iteration": 0, "outcomes": [outcome], "dynamics": {"dynamics/sp": 0.5}}],
        "config": {"seed": 0},
    }
    from envrl.envs.panels import Panel
    from envrl.types import Game

    games = (Game("g", "alfworld", "train", "f", "g.tw-pddl", 5),)
    game = {**{k: getattr(games[0], k) for k in ("game_id", "env", "split", "family", "spec", "max_steps")}}
    panel = {"name": "p", "panel_hash": Panel("p", games).panel_hash, "games": [game]}
    episode = {"human_goals": 0, "seed": 1, "session": None, "kwargs": {}, "steps": [{}, {"action": "x"}]}
    study = {"study": {"baseline": "grpo"}}
    named = ((b"r", record), (b"p", panel), (b"w", {"episodes": [episode]}), (b"s", study))
    return [kind + json.dumps(content).encode() for kind, content in named]


def _episodes(folder: Path) -> Run:
    from envrl.analysis.episodes import episodes_path, read_episodes
    from envrl.analysis.predictions import read_predictions

    path = episodes_path(folder, 0)
    path.parent.mkdir()

    def run(data: bytes) -> None:
        # As it is, or packed, so that mutations reach what is inside.
        path.write_bytes(data[1:] if data[:1] in b"GZ" else gzip.compress(data[1:], 1))
        if data[:1] in b"pZ":
            read_predictions(path)
        else:
            for episode in read_episodes(folder):
                assert episode.episode_return is not None

    return run


def _episode_seeds() -> list[bytes]:
    turn = {
        "prompt": "p",
        "observation": "o",
        "admissible": ["a"],
        "pieces": [["a", -0.5]],
        "finish": "end",
        "action": "a",
        "format_valid": True,
        "action_admissible": True,
        "reward": 0.0,
        "next_observation": "n",
    }
    episode = {
        "arm": "grpo",
        "seed": 0,
        "iteration": 0,
        "game_id": "g",
        "family": "f",
        "stop": "won",
        "won": True,
        "task_score": 1.0,
        "turns": [turn],
    }
    answers = {"sp-0": {"text": "t", "cut": False}}
    predictions = {"iteration": 1, "sp_form": "question", "trained": ["sp"], "answers": answers}
    lines = json.dumps(episode).encode() + b"\n"
    packed = gzip.compress(json.dumps(predictions).encode(), mtime=0)
    return [
        *(b"e" + lines, b"p" + json.dumps(predictions).encode()),
        *(b"G" + gzip.compress(lines, mtime=0), b"Z" + packed),
    ]


def torch_archive(pickled: bytes) -> bytes:
    """A checkpoint file around a pickle of its own, with one storage of four bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (
            *(("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")),
            *(("data/0", b"\0\0\0\0"), (".format_version", b"1")),
        ):
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def _checkpoint(folder: Path) -> Run:
    from envrl.experiments.resume import completed_iterations, read_checkpoint

    path = folder / "last.ckpt"

    def run(data: bytes) -> None:
        path.write_bytes(data[1:] if data[:1] == b"z" else torch_archive(data[1:]))
        completed_iterations(read_checkpoint(path))

    return run


def _checkpoint_seeds() -> list[bytes]:
    import torch

    progress = {"fit_loop": {"epoch_progress": {"current": {"processed": 2}}}}
    content = {"state_dict": {"policy.w": torch.zeros(1)}, "loops": progress}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as archive:
        inner = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    plain = pickle.dumps({"state_dict": {}, "loops": progress}, protocol=2)
    return [b"p" + inner, b"p" + plain, b"z" + buffer.getvalue()]


TARGETS: dict[str, Target] = {
    "json_file": Target(_json_file, _json_seeds, JSON_WORDS),
    "episodes": Target(_episodes, _episode_seeds, JSON_WORDS),
    "checkpoint": Target(
        _checkpoint,
        _checkpoint_seeds,
        (b"cos\nsystem\n", b"cbuiltins\neval\n", b"R", b".", b"\x85", b"(", b"b"),
    ),
}
