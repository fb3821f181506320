"""What a model writes, and the server that samples from it."""

from __future__ import annotations

import json
from pathlib import Path

from fuzz.target import JSON_WORDS, Run, Target, text_of

_TAGS = (
    b"<think>",
    b"</think>",
    b"<action>",
    b"</action>",
    b"search[",
    b"click[",
    b"]",
    b"[",
    b"\n",
    "新".encode(),
)


def _model_output(folder: Path) -> Run:
    from envrl.envs.webshop.actions import admits, parse_action
    from envrl.prompts.parse import parse_action as parse_output

    del folder
    admissible = ("search[<your query>]", "click[b000000001]")

    def run(data: bytes) -> None:
        text = text_of(data)
        for tail in (20, 30):
            reasoned = parse_output(text, "reasoned", tail_characters=tail)
            assert reasoned.action is None or reasoned.action == reasoned.action.strip() != ""
        compact = parse_output(text, "compact")
        assert compact.action is None or 0 < len(compact.action) <= 200
        for action in (reasoned.action, compact.action):
            if action is not None:
                parse_action(action)
                admits(admissible, action)

    return run


def _server_answer(folder: Path) -> Run:
    from envrl.policy.server import Draw, InferenceServer
    from envrl.policy.settings import ServerSettings

    del folder
    server = InferenceServer(ServerSettings(url="http://127.0.0.1:1"), "model")
    wanted = Draw((1, 2), 1.0, 4, 7, 0)
    answer = [""]
    server._transport.call = lambda *_, **__: answer[0]  # type: ignore[method-assign]

    def run(data: bytes) -> None:
        answer[0] = text_of(data[1:])
        if data[:1] == b"m":
            server.models()
        else:
            drawn = server.draw("model", wanted)
            assert len(drawn.token_ids) == len(drawn.logprobs)

    return run


def _answer_seeds() -> list[bytes]:
    choice = {"token_ids": [5, 7], "logprobs": {"token_logprobs": [-0.5, -1.0]}, "finish_reason": "stop"}
    models = {"data": [{"id": "model", "max_model_len": 2048}]}
    return [b"d" + json.dumps({"choices": [choice]}).encode(), b"m" + json.dumps(models).encode()]


TARGETS: dict[str, Target] = {
    "model_output": Target(
        _model_output, lambda: [b"<think>so</think><action>search[oak]</action>", b"go to desk 1"], _TAGS, 2
    ),
    "server_answer": Target(_server_answer, _answer_seeds, JSON_WORDS),
}
