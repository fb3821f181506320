"""The HTTP interface of a vLLM server, as far as sampling needs it; imports no model library.

The server runs in an environment of its own, and nothing of it is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envrl.errors import PolicyFault
from envrl.policy.settings import SamplingSettings, ServerSettings
from envrl.policy.transport import Refusal, Transport

_MOST_TOKENS = 1 << 31
_LEAST_LOGPROB = -9999.0
"""What vLLM writes in place of a smaller number, minus infinity included."""
_ROUNDING = 1e-3
"""How far above 0 rounding may lift a log-probability, in nats."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What to draw behind a prompt.

    Attributes:
        prompt_ids: Token ids of the whole prompt.
        temperature: Softmax temperature, 0 = greedy.
        max_new_tokens: Most tokens, the end-of-turn token included.
        end_id: End-of-turn token, the only one that ends an answer.
        seed: Seed of the draws, below 2**63.
    """

    prompt_ids: Sequence[int]
    temperature: float
    max_new_tokens: int
    end_id: int
    seed: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens of an answer with the natural log-probability of each."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class InferenceServer:
    """Requests to an OpenAI-compatible vLLM server; may be used from several threads at once.

    Args:
        settings: Address, time-out and retries; ``url`` is set.
        model: Name of the base model on the server.
        backoff_s: Seconds before the first repetition; each further pause is twice as long.
    """

    def __init__(self, settings: ServerSettings, model: str, *, backoff_s: float = 0.5) -> None:
        self._transport = Transport(settings, backoff_s)
        self.url = self._transport.url
        self.model = model

    def models(self) -> dict[str, int | None]:
        """Names the server answers to, adapters included, each with its longest sequence in tokens.

        Raises:
            PolicyFault: The server can't be reached or answers something else.
        """
        answer = self._transport.json("/v1/models", None)
        try:
            found = {str(card["id"]): card.get("max_model_len") for card in answer["data"]}
            if not all(length is None or type(length) is int for length in found.values()):
                raise TypeError("a length is no whole number")
            return found
        except (KeyError, TypeError, AttributeError) as error:
            raise self._transport.unexpected("/v1/models", "a list of models") from error

    def load_adapter(self, name: str, folder: Path) -> None:
        """Has the server read adapters in peft format.

        Args:
            name: Model name to sample them by.
            folder: Where they stand, absolute.

        Raises:
            PolicyFault: The server can't be reached, can't read them or was not started for it.
        """
        try:
            self._transport.call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
            refusal = None
        except Refusal as error:
            refusal = error
        # Where the first answer was lost on its way, the repetition is refused although all is well.
        if name not in self.models():
            said = "said that it did" if refusal is None else str(refusal)
            raise PolicyFault(
                f"the server {self.url} did not load the adapters in {folder} ({said}); start it with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and --max-lora-rank of at least "
                "policy.lora.rank, and choose a folder sampling.server.adapters that it sees under this path"
            ) from refusal

    def unload_adapter(self, name: str) -> None:
        """Has the server forget adapters.

        Raises:
            PolicyFault: The server can't be reached, or does not know them.
        """
        self._transport.call("/v1/unload_lora_adapter", {"lora_name": name}, once=True)

    def draw(self, name: str, wanted: Draw) -> Drawn:
        """Has an answer written.

        Args:
            name: Base model or adapters.
            wanted: Prompt and limits.

        Raises:
            PolicyFault: The server can't be reached, or its answer is not what was asked for.
        """
        path = "/v1/completions"
        answer = self._transport.json(path, _request(name, wanted))
        try:
            (choice,) = answer["choices"]
            token_ids, logprobs = choice.get("token_ids"), choice["logprobs"]["token_logprobs"]
            reason = choice.get("finish_reason")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._transport.unexpected(path, "one choice with log-probabilities") from error
        if not (isinstance(token_ids, list) and token_ids and all(map(_is_id, token_ids))):
            raise PolicyFault(
                f"the server {self.url} answers without token ids, so the tokens it drew are not known; use "
                "vLLM 0.10.2 or later, which knows return_token_ids"
            )
        if not isinstance(logprobs, list) or len(logprobs) != len(token_ids):
            count = len(logprobs) if isinstance(logprobs, list) else 0
            raise PolicyFault(
                f"the server {self.url} gives {count} log-probabilities for {len(token_ids)} tokens; use a "
                "version of vLLM that gives one for each token, the end-of-turn token included"
            )
        self._check_numbers(logprobs)
        self._check_ending(token_ids, reason, wanted)
        return Drawn(tuple(token_ids), tuple(min(0.0, float(p)) for p in logprobs))

    def _check_numbers(self, logprobs: Sequence[Any]) -> None:
        for value in logprobs:
            # Beyond a million nothing is a log-probability, and an integer may be too large for a float.
            known = isinstance(value, (int, float)) and abs(value) < 1e6
            number = float(value) if known else math.nan
            if not math.isfinite(number) or number <= _LEAST_LOGPROB:
                raise PolicyFault(
                    f"the server {self.url} gives {value} as a log-probability of a token it drew; the "
                    "weights have diverged (lower optim.lr), or they overflow in its precision (serve "
                    "with --dtype bfloat16 or float32)"
                )
            if number > _ROUNDING:
                raise PolicyFault(
                    f"the server {self.url} gives {value} as a log-probability, which can't be above 0; "
                    "start it with --logprobs-mode raw_logprobs"
                )

    def _check_ending(self, token_ids: Sequence[int], reason: Any, wanted: Draw) -> None:
        """The answer ends with the end-of-turn token, its only one, or is as long as it may be."""
        early = wanted.end_id in token_ids[:-1]
        ended = token_ids[-1] == wanted.end_id
        if early or len(token_ids) > wanted.max_new_tokens:
            raise PolicyFault(
                f"the server {self.url} went on behind the end-of-turn token {wanted.end_id} or the limit of "
                f"{wanted.max_new_tokens} tokens; use a server that obeys stop_token_ids and max_tokens"
            )
        if not ended and len(token_ids) < wanted.max_new_tokens:
            raise PolicyFault(
                f"the server {self.url} ended an answer after {len(token_ids)} of {wanted.max_new_tokens} "
                f"tokens without the end-of-turn token {wanted.end_id} (finish_reason {reason}); serve with "
                "--generation-config vllm and a --max-model-len of at least sampling.max_context"
            )


def connect(sampling: SamplingSettings, base: str) -> InferenceServer:
    """Finds the server of ``sampling.server``, and that it can do what a run will ask.

    Args:
        sampling: Its address and the longest sequence; ``server.url`` is set.
        base: Folder or hub id of the base model, its name on the server unless ``server.model`` is set.

    Raises:
        PolicyFault: It can't be reached, refuses the key, serves another model or only shorter sequences.
    """
    server = InferenceServer(sampling.server, sampling.server.model or base)
    found = server.models()
    if server.model not in found:
        raise PolicyFault(
            f"the server {server.url} does not serve '{server.model}' but {', '.join(found) or 'nothing'}; "
            "set sampling.server.model to the name of the base model there, or serve that model"
        )
    longest = found[server.model]
    if longest is not None and longest < sampling.max_context:
        raise PolicyFault(
            f"the server {server.url} takes sequences of {longest} tokens, fewer than sampling.max_context="
            f"{sampling.max_context}; start it with --max-model-len {sampling.max_context}, or lower the "
            "setting"
        )
    return server


def _is_id(token: object) -> bool:
    return type(token) is int and 0 <= token < _MOST_TOKENS


def _request(name: str, wanted: Draw) -> dict[str, Any]:
    return {
        "model": name,
        "prompt": list(wanted.prompt_ids),
        "max_tokens": wanted.max_new_tokens,
        "temperature": wanted.temperature,
        "seed": wanted.seed,
        "n": 1,
        # Left out, these would be what the model's generation_config.json says.
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        # The end-of-turn token alone ends an answer, as in the built-in sampler.
        "stop_token_ids": [wanted.end_id],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        # None beside the drawn token's own.
        "logprobs": 0,
        "return_token_ids": True,
    }
