"""Episodes as a run keeps them: every turn with what was read, written and done, token by token.

An evaluation's episodes are one compressed file of JSON lines, replaced as a whole, so that a killed run
leaves the last complete one. Reports, pages and notebooks read them; nothing is computed from a policy here.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from envrl.analysis.records import write_bytes_atomic
from envrl.errors import DataFault
from envrl.types import Finish, Generation, StopReason, Trajectory

Decode = Callable[[Sequence[int]], str]
"""Turns token ids into text, special tokens included."""

FOLDER = "episodes"
"""Folder of a run that holds one file for each evaluation."""
_LARGEST_LINE = 64 << 20
_LARGEST_FILE = 4 << 30
_UNFINISHED = "\ufffd"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Turn(_Model):
    """One environment step."""

    prompt: str
    """What the policy was given since its last answer, markup included; its whole prompt where that is not
    a continuation of the turn before (``rollout.layout: steps``)."""
    observation: str
    admissible: tuple[str, ...]
    """Actions that would have done something here, as far as the environment can list them."""
    pieces: tuple[tuple[str, float], ...]
    """What was written, token by token: text, and natural logarithm of its probability under the model.
    Tokens that only together make up a character are one piece."""
    finish: Finish
    action: str | None
    """The command sent to the environment; null if none could be parsed."""
    format_valid: bool
    action_admissible: bool
    reward: float
    next_observation: str

    @property
    def written(self) -> str:
        """The whole answer."""
        return "".join(text for text, _ in self.pieces)

    @property
    def logprob(self) -> float:
        """Natural logarithm of the answer's probability under the model."""
        return sum(value for _, value in self.pieces)


class Episode(_Model):
    """One episode of an evaluation."""

    arm: str
    seed: int = Field(ge=0)
    """Seed of the run."""
    iteration: int = Field(ge=0)
    """Training iterations completed when it was played."""
    game_id: str
    family: str
    """Task type."""
    stop: StopReason
    won: bool
    task_score: float
    fault: str | None = None
    """What failed, when the environment did."""
    turns: tuple[Turn, ...]

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of environment rewards."""
        return sum(turn.reward for turn in self.turns)


def episode_of(trajectory: Trajectory, decode: Decode, *, arm: str, seed: int, iteration: int) -> Episode:
    """A trajectory in the words of its tokenizer."""
    turns = []
    known: tuple[int, ...] = ()
    for transition in trajectory.transitions:
        generation = transition.generation
        given = generation.prompt_ids
        fresh = given[len(known) :] if known and given[: len(known)] == known else given
        known = given + generation.token_ids
        turns.append(
            Turn(
                prompt=decode(fresh),
                observation=transition.observation.text,
                admissible=transition.observation.admissible,
                pieces=tuple(_pieces(generation, decode)),
                finish=generation.finish,
                action=transition.action,
                format_valid=transition.format_valid,
                action_admissible=transition.admissible,
                reward=transition.reward,
                next_observation=transition.next_observation.text,
            )
        )
    return Episode(
        arm=arm,
        seed=seed,
        iteration=iteration,
        game_id=trajectory.game_id,
        family=trajectory.family,
        stop=trajectory.stop,
        won=trajectory.won,
        task_score=trajectory.task_score,
        fault=trajectory.fault,
        turns=tuple(turns),
    )


def _pieces(generation: Generation, decode: Decode) -> Iterator[tuple[str, float]]:
    """Text and log-probability of each token; tokens that split a character are put together.

    Most tokenizers decode token by token to the same text as all at once. One that doesn't (leading spaces
    dropped) is decoded by growing prefixes, which is slower.
    """
    ids, logprobs = generation.token_ids, generation.logprobs
    whole = decode(ids)
    found = list(_grouped(ids, logprobs, lambda start, end: decode(ids[start:end])))
    if "".join(text for text, _ in found) != whole:
        found = list(
            _grouped(ids, logprobs, lambda start, end: decode(ids[:end]).removeprefix(decode(ids[:start])))
        )
    yield from found


def _grouped(
    ids: Sequence[int], logprobs: Sequence[float], text_of: Callable[[int, int], str]
) -> Iterator[tuple[str, float]]:
    start = 0
    for end in range(1, len(ids) + 1):
        text = text_of(start, end)
        if _UNFINISHED in text and end < len(ids):
            continue
        yield text, float(sum(logprobs[start:end]))
        start = end


def episodes_path(run_folder: Path, iteration: int) -> Path:
    """Where a run keeps the episodes of an evaluation."""
    return run_folder / FOLDER / f"iteration_{iteration:05d}.jsonl.gz"


def write_episodes(run_folder: Path, iteration: int, episodes: Iterable[Episode]) -> Path:
    """Replaces the file of an evaluation by these episodes and returns its path.

    Raises:
        DataFault: The folder can't be written.
    """
    path = episodes_path(run_folder, iteration)
    buffer = io.BytesIO()
    # No time and no name in the header: the same episodes are the same bytes.
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as packed:
        for episode in episodes:
            packed.write(episode.model_dump_json().encode() + b"\n")
    write_bytes_atomic(path, buffer.getvalue())
    return path


def evaluated_iterations(run_folder: Path) -> tuple[int, ...]:
    """Iterations whose episodes a run has kept, rising."""
    found = (path.name.removeprefix("iteration_").removesuffix(".jsonl.gz") for path in _files(run_folder))
    return tuple(sorted(int(number) for number in found if number.isdecimal()))


def read_episodes(run_folder: Path, iteration: int | Literal["all", "last"] = "last") -> Iterator[Episode]:
    """The episodes a run has kept, one after the other.

    Args:
        run_folder: Folder of the run.
        iteration: Evaluation after so many iterations, the last one kept, or all of them.

    Raises:
        DataFault: None are kept, not of that iteration, or a file is broken; the message names it.
    """
    kept = evaluated_iterations(run_folder)
    if not kept:
        raise DataFault(
            f"there are no episodes under {run_folder / FOLDER}; name the folder of a run, such as "
            "mlruns/studies/quick/runs/grpo/seed_0, that was made with evaluation.episodes above 0"
        )
    if isinstance(iteration, int) and iteration not in kept:
        numbers = ", ".join(map(str, kept))
        raise DataFault(
            f"{run_folder} keeps no episodes of iteration {iteration}; there are those of {numbers}"
        )
    chosen = kept if iteration == "all" else (kept[-1] if iteration == "last" else iteration,)
    for number in chosen:
        yield from _read(episodes_path(run_folder, number))


def _files(run_folder: Path) -> Iterator[Path]:
    return (run_folder / FOLDER).glob("iteration_*.jsonl.gz")


def _read(path: Path) -> Iterator[Episode]:
    number = 0
    try:
        with gzip.open(path) as handle:
            while line := handle.readline(_LARGEST_LINE):
                number += 1
                if handle.tell() > _LARGEST_FILE:
                    raise OSError(f"unpacked it has more than {_LARGEST_FILE} bytes, the most that are read")
                yield Episode.model_validate_json(line)
    except (OSError, EOFError, zlib.error, ValidationError) as fault:
        reason = fault.errors()[0]["msg"] if isinstance(fault, ValidationError) else str(fault)
        raise DataFault(
            f"the episodes in {path} can't be read at line {max(1, number)} ({reason}); remove the file, "
            "the others can still be read"
        ) from fault
