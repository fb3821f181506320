"""A local HTTP server with the documented interface of vLLM, as far as sampling uses it.

It runs a small checkpoint with transformers and reads adapters with peft, so it shares no code with the
sampler or the trainer. It is written after vLLM's documentation: what it does is what the documentation
says, and that a real server does the same is not shown by it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

Json = dict[str, Any]


class Answer(Exception):
    """An answer that is no success: its status and the message in it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class FakeServer:
    """What the server holds, what it was asked, and how it is to misbehave.

    Attributes:
        base: Folder of the model it serves, also its name.
        max_model_len: Longest sequence.
        api_key: Demanded as a bearer token.
        failures: Answers still to be given with status 500.
        delay_s: Pause before a completion.
        ignores_adapters: Samples from the base whatever was loaded.
        loads_adapters: Whether it was started with runtime updates of adapters.
        spoil: Changes a choice of a completion before it is sent.
        asked: Path, body and authorisation of every request.
        written: Every answer: prompt, token ids, log-probabilities.
    """

    base: Path
    max_model_len: int = 512
    api_key: str | None = None
    failures: int = 0
    delay_s: float = 0.0
    ignores_adapters: bool = False
    loads_adapters: bool = True
    processed_logprobs: bool = False
    spoil: Callable[[Json], None] = lambda choice: None
    asked: list[tuple[str, Json, str | None]] = field(default_factory=list)
    written: list[tuple[list[int], list[int], list[float]]] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, Any] = {str(self.base): self._load()}

    def paths(self, part: str = "") -> list[str]:
        """Paths that were asked for, in order; those with ``part`` in them."""
        return [path for path, _, _ in self.asked if part in path]

    @property
    def loaded(self) -> list[str]:
        """Names it answers to."""
        return list(self._models)

    def answer(self, path: str, body: Json, authorisation: str | None) -> Json | str:
        """Answer to a request; the work is done one request after the other."""
        with self._lock:
            self.asked.append((path, body, authorisation))
            if self.api_key is not None and authorisation != f"Bearer {self.api_key}":
                raise Answer(401, "Unauthorized")
            if self.failures > 0:
                self.failures -= 1
                raise Answer(500, "the engine had a hiccup")
        if path == "/v1/models":
            return {"data": [{"id": name, "max_model_len": self.max_model_len} for name in self._models]}
        if path == "/v1/completions":
            time.sleep(self.delay_s)
            with self._lock, torch.inference_mode():
                return self._complete(body)
        if self.loads_adapters and path == "/v1/load_lora_adapter":
            with self._lock:
                return self._load_adapter(body["lora_name"], body["lora_path"])
        if self.loads_adapters and path == "/v1/unload_lora_adapter":
            with self._lock:
                if self._models.pop(body["lora_name"], None) is None:
                    raise Answer(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
            return "Success"
        raise Answer(404, "Not Found")

    def _load(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()

    def _load_adapter(self, name: str, folder: str) -> str:
        if name in self._models:
            raise Answer(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(folder) / "adapter_config.json").is_file():
            raise Answer(404, f"No adapter found for {folder}")
        model = PeftModel.from_pretrained(self._load(), folder).eval()
        self._models[name] = self._load() if self.ignores_adapters else model
        return f"Success: LoRA adapter '{name}' added successfully."

    def _complete(self, body: Json) -> Json:
        if body["model"] not in self._models:
            raise Answer(404, f"The model `{body['model']}` does not exist.")
        prompt = body["prompt"]
        if len(prompt) + body["max_tokens"] > self.max_model_len:
            raise Answer(400, f"This model's maximum context length is {self.max_model_len} tokens.")
        # A server takes what a request leaves out from the model's generation_config.json.
        given = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1}
        assert {name: body[name] for name in given} == given
        assert body["ignore_eos"]
        model, rng = self._models[body["model"]], np.random.default_rng(body["seed"])
        ids, logprobs, reason = [], [], "length"
        for _ in range(body["max_tokens"]):
            scores = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].double()
            token = self._draw(scores, body["temperature"], rng)
            cooled = body["temperature"] if self.processed_logprobs and body["temperature"] > 0 else 1.0
            ids.append(token)
            logprobs.append(float(torch.log_softmax(scores / cooled, -1)[token]))
            if token in body["stop_token_ids"]:
                reason = "stop"
                break
        self.written.append((list(prompt), ids, logprobs))
        choice: Json = {
            "index": 0,
            "text": "",
            "finish_reason": reason,
            "logprobs": {"token_logprobs": list(logprobs), "tokens": [f"token_id:{t}" for t in ids]},
        }
        if body["return_token_ids"]:
            choice |= {"token_ids": list(ids), "prompt_token_ids": list(prompt)}
        self.spoil(choice)
        return {"object": "text_completion", "model": body["model"], "choices": [choice]}

    def _draw(self, scores: torch.Tensor, temperature: float, rng: np.random.Generator) -> int:
        if temperature == 0:
            return int(scores.argmax())
        weights = torch.softmax(scores / temperature, -1).numpy()
        return int(rng.choice(len(weights), p=weights / weights.sum()))


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Listens on a free port of this machine; the server's ``url`` is then set."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: Json) -> None:
            try:
                status, content = 200, server.answer(self.path, body, self.headers["Authorization"])
            except Answer as answer:
                status, content = answer.status, {"error": {"message": str(answer), "code": answer.status}}
            text = content if isinstance(content, str) else json.dumps(content)
            try:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())
            except BrokenPipeError:
                pass  # whoever asked did not wait

        def log_message(self, *_: Any) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    listener = Listener(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
