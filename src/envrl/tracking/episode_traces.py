"""Episodes as MLflow traces: a span for each turn, in the run's tab `Traces`.

Ids are made from run, iteration and number of the episode, so that an evaluation that is logged again after
a kill replaces its traces.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envrl.tracking.journal import Entry
from envrl.tracking.traces import Decode
from envrl.types import Trajectory, Transition

_TURN_NS = 1_000_000
"""Turns carry no clock time; in MLflow each takes a millisecond, one after the other."""
_PREVIEW = 1000


@dataclass(frozen=True)
class TraceOrigin:
    """Where traces of an evaluation's episodes belong.

    Attributes:
        run_id: MLflow run.
        experiment_id: Its experiment.
        arm: Arm of the run.
        seed: Seed of the run.
        iteration: Training iterations completed when the episodes were played.
        time_ms: When, in ms since 1970.
    """

    run_id: str
    experiment_id: str
    arm: str
    seed: int
    iteration: int
    time_ms: int

    def key(self, number: int) -> bytes:
        """Id of the trace of an episode by its number."""
        return hashlib.blake2b(f"{self.run_id}/{self.iteration}/{number}".encode(), digest_size=16).digest()


def episode_traces(origin: TraceOrigin, trajectories: Sequence[Trajectory], decode: Decode) -> Entry:
    """What the outbox is given to log episodes of an evaluation as traces.

    Args:
        origin: Where they belong.
        trajectories: The episodes.
        decode: Shows prompts and answers as the policy saw them.
    """
    numbered = list(enumerate(trajectories))
    return {
        "kind": "traces",
        "experiment_id": origin.experiment_id,
        "infos": [_info(origin, number, trajectory) for number, trajectory in numbered],
        "spans": [s for number, t in numbered for s in _spans(origin, number, t, decode)],
    }


def _spans(origin: TraceOrigin, number: int, trajectory: Trajectory, decode: Decode) -> list[dict[str, Any]]:
    """The spans of one episode: itself, and each of its turns."""
    made = _Spans(origin.key(number), (origin.time_ms + number) * 1_000_000)
    root = made.add(
        "episode",
        "AGENT",
        None,
        {"game": trajectory.game_id, "task type": trajectory.family, "start": _start(trajectory)},
        _outcome(trajectory),
        turns=len(trajectory.transitions),
    )
    known: tuple[int, ...] = ()
    for position, turn in enumerate(trajectory.transitions):
        given = turn.generation.prompt_ids
        # Of a conversation that grows, what is new since the last answer.
        fresh = given[len(known) :] if known and given[: len(known)] == known else given
        known = given + turn.generation.token_ids
        made.turn(position, turn, root, decode(fresh), decode(turn.generation.token_ids))
    return made.spans


def _info(origin: TraceOrigin, number: int, trajectory: Trajectory) -> dict[str, Any]:
    """What MLflow lists of the trace of one episode."""
    iteration = origin.iteration
    return {
        "trace_id": f"tr-{origin.key(number).hex()}",
        "trace_location": {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": origin.experiment_id},
        },
        "request_time": _moment(origin.time_ms + number),
        "state": "OK" if trajectory.fault is None else "ERROR",
        "request_preview": f"iteration {iteration} · {_task(trajectory)}"[:_PREVIEW],
        "response_preview": _summary(trajectory),
        "execution_duration_ms": len(trajectory.transitions),
        "trace_metadata": {
            "mlflow.sourceRun": origin.run_id,
            "mlflow.trace_schema.version": "3",
            "mlflow.trace.tokenUsage": json.dumps(_usage(trajectory.transitions)),
        },
        "tags": {
            "mlflow.traceName": f"{origin.arm}/seed_{origin.seed} iteration {iteration}",
            "arm": origin.arm,
            "seed": str(origin.seed),
            "iteration": str(iteration),
            "game": trajectory.game_id,
            "task_type": trajectory.family,
            "won": str(trajectory.won).lower(),
            "return": f"{trajectory.episode_return:g}",
            "stop": trajectory.stop.value,
        },
    }


class _Spans:
    """Spans of one trace in MLflow's format; attributes are JSON inside strings, as MLflow writes them."""

    def __init__(self, key: bytes, start_ns: int) -> None:
        self.spans: list[dict[str, Any]] = []
        self._key = key
        self._start = start_ns

    def turn(self, position: int, turn: Transition, root: str, prompt: str, written: str) -> None:
        generation = turn.generation
        self.add(
            f"turn {position + 1}: {turn.action if turn.action is not None else '(no action)'}"[:_PREVIEW],
            "LLM",
            root,
            {
                "observation": turn.observation.text,
                "admissible actions": list(turn.observation.admissible),
                "prompt": prompt,
            },
            {
                "written": written,
                "action": turn.action,
                "admissible": turn.admissible,
                "format valid": turn.format_valid,
                "reward": turn.reward,
                "next observation": turn.next_observation.text,
                "tokens": len(generation.token_ids),
                "log-probability": sum(generation.logprobs),
                "finish": generation.finish.value,
            },
            first=position,
            usage=_usage([turn]),
        )

    def add(
        self,
        name: str,
        kind: str,
        parent: str | None,
        inputs: dict[str, Any],
        outputs: dict[str, Any],
        *,
        first: int = 0,
        turns: int = 1,
        usage: dict[str, int] | None = None,
    ) -> str:
        """Adds a span over ``turns`` turns from the turn ``first`` on and returns its id."""
        digest = hashlib.blake2b(self._key + len(self.spans).to_bytes(4, "big"), digest_size=8).digest()
        span_id = base64.b64encode(digest).decode()
        attributes: dict[str, Any] = {
            "mlflow.traceRequestId": f"tr-{self._key.hex()}",
            "mlflow.spanType": kind,
            "mlflow.spanInputs": inputs,
            "mlflow.spanOutputs": outputs,
        }
        if usage is not None:
            attributes["mlflow.chat.tokenUsage"] = usage
        start = self._start + first * _TURN_NS
        self.spans.append(
            {
                "trace_id": base64.b64encode(self._key).decode(),
                "span_id": span_id,
                "parent_span_id": parent or "",
                "name": name,
                "start_time_unix_nano": start,
                "end_time_unix_nano": start + turns * _TURN_NS,
                "events": [],
                "status": {"code": "STATUS_CODE_OK", "message": ""},
                "attributes": {k: json.dumps(v, ensure_ascii=False) for k, v in attributes.items()},
            }
        )
        return span_id


def _start(trajectory: Trajectory) -> str:
    return trajectory.transitions[0].observation.text if trajectory.transitions else ""


def _task(trajectory: Trajectory) -> str:
    """Task type and the last line of the first observation, which says what to do in most games."""
    lines = _start(trajectory).strip().splitlines()
    return " · ".join((trajectory.family, *lines[-1:]))


def _outcome(trajectory: Trajectory) -> dict[str, Any]:
    fault = {} if trajectory.fault is None else {"environment fault": trajectory.fault}
    return {
        "won": trajectory.won,
        "return": trajectory.episode_return,
        "task score": trajectory.task_score,
        "ended by": trajectory.stop.value,
        "turns": len(trajectory.transitions),
        "actions": [turn.action for turn in trajectory.transitions],
    } | fault


def _summary(trajectory: Trajectory) -> str:
    return (
        f"{'won' if trajectory.won else 'not won'}, return {trajectory.episode_return:g}, "
        f"{len(trajectory.transitions)} turns, ended by {trajectory.stop.value}"
    )


def _usage(turns: Sequence[Transition]) -> dict[str, int]:
    given = sum(len(turn.generation.prompt_ids) for turn in turns)
    written = sum(len(turn.generation.token_ids) for turn in turns)
    return {"input_tokens": given, "output_tokens": written, "total_tokens": given + written}


def _moment(time_ms: int) -> str:
    """A time as MLflow's JSON has it."""
    from google.protobuf.timestamp_pb2 import Timestamp

    moment = Timestamp()
    moment.FromMilliseconds(time_ms)
    return str(moment.ToJsonString())
