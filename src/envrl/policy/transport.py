"""Requests to one server over HTTP with the standard library alone: key, time-out, retries, plain errors."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import IO, Any
from urllib.parse import urlsplit

from envrl.errors import PolicyFault
from envrl.policy.settings import ServerSettings
from envrl.untrusted import parse_json

KEY_VARIABLES = ("ENVRL_SERVER_API_KEY", "VLLM_API_KEY")
"""Environment variables that may hold the server's key; the first that is set counts."""
HOSTS_VARIABLE = "ENVRL_SERVER_HOSTS"
"""Environment variable with the names of other machines' servers that may be sent the key, by commas."""
_TRANSIENT = frozenset({408, 429})
_LARGEST_ANSWER = 64 << 20


class Refusal(PolicyFault):
    """The server answered, and would answer the same again."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to an address nobody named."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


class Transport:
    """Requests to a server; may be used from several threads at once.

    Proxies are passed by: the server is one's own, and its key is nobody else's business.

    Args:
        settings: Address, time-out and retries; ``url`` is set.
        backoff_s: Seconds before the first repetition; each further pause is twice as long.

    Raises:
        PolicyFault: There is a key, and nobody said that it may go to this address.
    """

    def __init__(self, settings: ServerSettings, backoff_s: float) -> None:
        assert settings.url is not None
        self.url = settings.url.rstrip("/").removesuffix("/v1")
        self._settings = settings
        self._backoff_s = backoff_s
        self._key = _api_key()
        if self._key is not None:
            _check_host(self.url)
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)

    def json(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """Like :meth:`call`, with the answer read as JSON."""
        text = self.call(path, body)
        try:
            return parse_json(text)
        except ValueError as error:
            raise self.unexpected(path, "JSON") from error

    def call(self, path: str, body: Mapping[str, Any] | None, *, once: bool = False) -> str:
        """Posts ``body``, or gets where there is none; repeats what may work the next time.

        Args:
            path: Behind the address.
            body: Sent as JSON.
            once: Don't repeat it.

        Raises:
            Refusal: The server said no.
            PolicyFault: It said nothing, or failed each time.
        """
        pause, reason = self._backoff_s, ""
        attempts = 1 if once else self._settings.retries + 1
        for attempt in range(attempts):
            if attempt > 0:
                time.sleep(pause)
                pause *= 2
            try:
                return self._once(path, body)
            except urllib.error.HTTPError as error:
                said = f"{path}: HTTP {error.code} {_said(error)}".rstrip()
                if error.code < 500 and error.code not in _TRANSIENT:
                    raise self._refused(said, error.code) from error
                reason = said
            except (OSError, http.client.HTTPException) as error:
                reason = f"{path}: {getattr(error, 'reason', None) or error or type(error).__name__}"
        raise PolicyFault(
            f"sampling.server.url {self.url} gives no answer after {attempts} attempts of "
            f"{self._settings.timeout_s:g} s ({reason}); see that the server runs and has finished loading, "
            "or raise sampling.server.timeout_s or sampling.server.retries"
        )

    def _once(self, path: str, body: Mapping[str, Any] | None) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        with self._opener.open(request, timeout=self._settings.timeout_s) as response:
            content = response.read(_LARGEST_ANSWER + 1)
        if len(content) > _LARGEST_ANSWER:
            raise self.unexpected(path, f"at most {_LARGEST_ANSWER} bytes")
        return str(content.decode("utf-8", errors="replace"))

    def _refused(self, said: str, code: int) -> Refusal:
        if code in (401, 403):
            return Refusal(
                f"the server {self.url} refuses the key ({said}); set the environment variable "
                f"{KEY_VARIABLES[0]}"
            )
        return Refusal(
            f"the server {self.url} refuses a request ({said}); docs/serving.md says how it must be started. "
            "If it was started anew meanwhile, run the same command again"
        )

    def unexpected(self, path: str, wanted: str) -> PolicyFault:
        """The fault of an answer that a vLLM server would not give."""
        return PolicyFault(
            f"{self.url}{path} does not answer with {wanted}; see that sampling.server.url is the address of "
            "a vLLM server"
        )


def _api_key() -> str | None:
    for variable in KEY_VARIABLES:
        key = os.environ.get(variable, "").strip()
        if key:
            # The HTTP library would name a key that can't stand in a header in its error.
            if not (key.isascii() and key.isprintable()):
                raise PolicyFault(
                    f"the environment variable {variable} holds characters that no key has; set it anew"
                )
            return key
    return None


def _check_host(url: str) -> None:
    """Refuses to send the key where only a configuration says so, which may be a stranger's."""
    host = (urlsplit(url).hostname or "").lower()
    allowed = {name.strip().lower() for name in os.environ.get(HOSTS_VARIABLE, "").split(",")}
    if host not in allowed and not _is_this_machine(host):
        raise PolicyFault(
            f"the server's key would be sent to {host}, which the configuration names (sampling.server.url); "
            f"if that is your server, set the environment variable {HOSTS_VARIABLE}={host}"
        )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _said(error: urllib.error.HTTPError) -> str:
    """The server's own words, in one line."""
    try:
        text = error.read(_LARGEST_ANSWER).decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        content = parse_json(text)
        inner = content.get("error", content)
        text = str(inner.get("message") or inner.get("detail") or inner)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300]
