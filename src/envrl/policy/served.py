"""Sampling on a server: sessions over HTTP, the adapters' way there, and a check that it worked."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from envrl.errors import PolicyFault
from envrl.policy.model import Policy
from envrl.policy.sampler import SampledTokens, evaluation_mode
from envrl.policy.server import Draw, InferenceServer
from envrl.policy.settings import ServerSettings
from envrl.types import Finish

_MOST_REQUESTS = 256
"""Rows that are asked for at once: about as many as a server works on at a time."""
_CHECKED_ROWS = 8

Witness = Callable[[Sequence[Sequence[int]], Sequence[SampledTokens]], None]
"""Told the prompt and the answer of every row."""


class ServedSession:
    """:class:`envrl.policy.sampler.SamplerSession` whose rows are continued by a server.

    The whole row is sent each time, as token ids; the server's prefix cache knows what it saw before.

    Args:
        server: Where tokens are drawn.
        name: Model or adapters to draw from.
        rows: Number of sequences.
        end_id: End-of-turn token.
        pool: Sends the rows' requests side by side.
        witness: Told what was drawn, before it becomes part of the rows.
    """

    def __init__(
        self,
        server: InferenceServer,
        name: str,
        rows: int,
        end_id: int,
        *,
        pool: ThreadPoolExecutor,
        witness: Witness,
    ) -> None:
        self._server = server
        self._name = name
        self._rows: list[list[int]] = [[] for _ in range(rows)]
        self._end_id = end_id
        self._pool = pool
        self._witness = witness

    def append(self, blocks: Sequence[Sequence[int]]) -> None:
        """Adds given tokens to each row."""
        for row, block in zip(self._rows, blocks, strict=True):
            row.extend(block)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops the rows that are not listed."""
        self._rows = [self._rows[r] for r in rows]

    def rewrite(self, prompts: Sequence[Sequence[int]], rows: Sequence[int] | None = None) -> None:
        """Replaces what stands in rows; the server's prefix cache knows what it has seen before."""
        for row, prompt in zip(range(len(self._rows)) if rows is None else rows, prompts, strict=True):
            self._rows[row] = list(prompt)

    def sample(
        self, generators: Sequence[np.random.Generator], temperature: float, max_new_tokens: int
    ) -> list[SampledTokens]:
        """See :class:`envrl.policy.sampler.SamplerSession`.

        Each row draws one number from its own generator, the seed of its request.

        Raises:
            PolicyFault: The server can't be reached, its answer is not what was asked for, or it samples
                from other weights.
        """
        if not all(self._rows):
            raise ValueError("every row needs at least one token before it can be sampled")
        wanted = [
            Draw(row, temperature, max_new_tokens, self._end_id, int(rng.integers(2**31)))
            for row, rng in zip(self._rows, generators, strict=True)
        ]
        requests = [self._pool.submit(self._server.draw, self._name, draw) for draw in wanted]
        try:
            drawn = [request.result() for request in requests]
        finally:
            # After a fault or an interrupt nobody wants the other answers.
            for request in requests:
                request.cancel()
        answers = [
            SampledTokens(
                answer.token_ids,
                answer.logprobs,
                Finish.END if answer.token_ids[-1] == self._end_id else Finish.LENGTH,
            )
            for answer in drawn
        ]
        self._witness(self._rows, answers)
        for row, sampled in zip(self._rows, answers, strict=True):
            row.extend(sampled.token_ids)
        return answers


class ServedSampler:
    """Keeps a server at the policy's current weights and opens sessions on it.

    Called with the policy before every collection, as :data:`envrl.rollout.source.Sampler`. Adapters are
    sent when they differ from those sent last. What is first sampled from new ones is compared with the
    policy's own log-probabilities, because a server on other weights would look like a policy that does
    not learn.

    Args:
        server: Checked by :func:`envrl.policy.server.connect`.
        settings: Folder of the adapters and the largest difference allowed.
    """

    def __init__(self, server: InferenceServer, settings: ServerSettings) -> None:
        self._server = server
        self._settings = settings
        self._folder = Path(settings.adapters).expanduser().absolute()
        # Several runs may share a server, and it keys its prefix cache by the name of the adapters: a
        # name must never be used again for other weights.
        self._owner = secrets.token_hex(4)
        self._pool = ThreadPoolExecutor(_MOST_REQUESTS, thread_name_prefix="served-row")
        self._name: str | None = None
        self._digest: str | None = None
        self._checked = False

    def __call__(self, policy: Policy) -> Callable[[int], ServedSession]:
        """Brings the server to the policy's weights; the result opens sessions for a number of rows.

        Raises:
            PolicyFault: The folder can't be written, or the server does not load the adapters.
        """
        digest = weights_digest(policy)
        if digest != self._digest:
            self._send(policy, digest)
        name = self._name
        assert name is not None

        def witness(prompts: Sequence[Sequence[int]], answers: Sequence[SampledTokens]) -> None:
            self._compare(policy, prompts, answers)

        def open_session(rows: int) -> ServedSession:
            end_id = policy.chat.end_id
            return ServedSession(self._server, name, rows, end_id, pool=self._pool, witness=witness)

        return open_session

    def close(self) -> None:
        """Removes the adapters from the server and from the folder."""
        self._forget(self._name)
        self._name = self._digest = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _send(self, policy: Policy, digest: str) -> None:
        name = f"envrl-{self._owner}-{digest[:12]}"
        folder = self._folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            policy.save_adapter(folder)
        except OSError as error:
            raise PolicyFault(
                f"the adapters can't be written to sampling.server.adapters={self._folder} "
                f"({error.strerror or error}); name a folder that can be written and that the server sees"
            ) from error
        self._server.load_adapter(name, folder)
        previous, self._name = self._name, name
        self._digest, self._checked = digest, False
        self._forget(previous)

    def _forget(self, name: str | None) -> None:
        if name is None:
            return
        # A server that was started anew knows them no longer, and nothing depends on it.
        with contextlib.suppress(PolicyFault):
            self._server.unload_adapter(name)
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _compare(
        self, policy: Policy, prompts: Sequence[Sequence[int]], answers: Sequence[SampledTokens]
    ) -> None:
        if self._checked:
            return
        gap = logprob_gap(policy, prompts[:_CHECKED_ROWS], answers[:_CHECKED_ROWS])
        if not gap <= self._settings.max_gap:
            raise PolicyFault(
                f"the log-probabilities of the server {self._server.url} differ from those of the trained "
                f"model by {gap:.3g} nats a token, more than sampling.server.max_gap="
                f"{self._settings.max_gap:g}: it serves other weights than '{self._server.model}' with the "
                "current adapters, computes in another --dtype than policy.dtype, or runs without "
                "--logprobs-mode raw_logprobs; repair that, or raise the limit if the precision is meant"
            )
        self._checked = True


def weights_digest(policy: Policy) -> str:
    """Hash of the trained weights, the same for the same numbers in the same order."""
    digest = hashlib.sha256()
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def logprob_gap(policy: Policy, prompts: Sequence[Sequence[int]], answers: Sequence[SampledTokens]) -> float:
    """Mean absolute difference between recorded log-probabilities and the policy's own.

    Args:
        policy: Computes them anew, in whole forward passes.
        prompts: Token ids before each answer, at least one.
        answers: As many, each of at least one token.

    Returns:
        Nats per token; not a number where the policy's scores are none.
    """
    device = next(policy.parameters()).device
    differences = []
    with evaluation_mode(policy.causal):
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([*prompt, *answer.token_ids], device=device)
            hidden = policy.hidden_states(ids[None])[0, len(prompt) - 1 : -1]
            own = torch.log_softmax(policy.logits(hidden).float(), dim=-1)
            own = own.gather(1, ids[len(prompt) :, None])[:, 0]
            differences.append((own - torch.tensor(answer.logprobs, device=device)).abs())
    return float(torch.cat(differences).mean())
