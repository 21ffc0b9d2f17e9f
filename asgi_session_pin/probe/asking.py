"""The probe's requests: each within a limit of time and of bytes, and never more of them than was announced."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from .. import __version__
from .evidence import BodyReader, Reply

MAX_TOKENS = 16
MAX_LIST_BYTES = 8_388_608  # of a list of models or deployments
_HIDDEN = "(hidden)"
_MIN_HIDDEN = 8  # characters of a secret that is hidden inside of a longer text too

EASY = "Hello! What is the capital of France?"
HARD = (
    "Analyze step by step the trade-offs between consensus algorithms for a distributed database, explain why one of "
    "them fits a payment system, then design and implement its replication protocol as a Python class with async "
    "functions, and review it for security."
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is probed, and with what.

    - `base`: the URL that all paths are below; `path`: of the completion endpoint.
    - `others`: paths to try where that one is not there.
    - `key`: the gateway's, if any; `own`: the operator's headers, by lower-case name.
    - `secrets`: texts that must not be shown, whatever the gateway does with them.
    - `timeout`: of each request, in seconds.
    """

    base: str
    path: str
    others: tuple[str, ...]
    key: str | None
    own: dict[str, str]
    secrets: frozenset[str]
    timeout: float

    @property
    def url(self) -> str:
        """The URL of the completion endpoint."""
        return self.base + self.path

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of each request."""
        sent = {
            "accept": "application/json, text/event-stream",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": f"asgi-session-pin/{__version__}",
        }
        if self.path.endswith("/v1/messages"):
            sent["anthropic-version"] = "2023-06-01"
        if self.key is not None:
            sent["authorization"] = f"Bearer {self.key}"
            if self.path.endswith("/v1/messages"):
                sent["x-api-key"] = self.key
        return [(name.encode(), value.encode("latin-1")) for name, value in (sent | self.own).items()]

    def hide(self, text: str) -> str:
        """Return *text* as it may be shown: a short secret, which is a part of many words, may be a part of it."""
        if text in self.secrets:
            return _HIDDEN
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, _HIDDEN) if len(secret) >= _MIN_HIDDEN else text
        return text

    def is_secret(self, text: str) -> bool:
        """Tell whether *text* is not to be shown."""
        return self.hide(text) != text

    @property
    def limits(self) -> tuple[str, ...]:
        """The members that bound an answer's tokens: the usual one, then what may be wanted in its place."""
        if self.path.endswith("/responses"):
            return ("max_output_tokens",)
        # OpenAI's reasoning models want the second.
        return ("max_tokens", "max_completion_tokens") if self.path.endswith("/chat/completions") else ("max_tokens",)

    def body(self, model: str, prompt: str, stream: bool, limit: str) -> bytes:
        """Return the body of a tiny request. No two are the same, so that no cache answers."""
        prompt = f"{prompt} ({secrets.token_hex(6)})"
        body: dict[str, Any] = {"model": model, "stream": stream, limit: MAX_TOKENS}
        if self.path.endswith("/responses"):
            body["input"] = prompt
        else:
            body["messages"] = [{"role": "user", "content": prompt}]
        return json.dumps(body).encode()


class NoAnswer(Exception):
    """The gateway gave no answer, or broke it off; the message never holds anything that it sent."""


class Prober:
    """Sends requests to a gateway, at most *limit* of them, each over a connection of its own."""

    def __init__(self, target: Target, limit: int) -> None:
        self.target = target
        self.sent = 0
        self.limit = limit
        self._wants_other_limit = False  # of tokens, by name
        self._tls = ssl.create_default_context()  # the system's authorities, or those of SSL_CERT_FILE

    async def ask(self, model: str, *, hard: bool, stream: bool) -> Reply:
        """Ask for *model* and return what the reply tells."""
        reply = await self._ask(model, hard, stream)
        if reply.remark == "unsupported_parameter" and not self._wants_other_limit and len(self.target.limits) > 1:
            self._wants_other_limit = True
            reply = await self._ask(model, hard, stream)
        return reply

    async def _ask(self, model: str, hard: bool, stream: bool) -> Reply:
        limit = self.target.limits[-1 if self._wants_other_limit else 0]
        body = self.target.body(model, HARD if hard else EASY, stream, limit)
        async with self._request("POST", self.target.path, body) as response:
            headers = self._read_headers(response)
            reader = BodyReader(headers, self.target.is_secret)
            async for data in response.aiter_raw():
                reader.feed(data)
                if reader.finished:
                    break
            reader.end()
        return Reply(
            model=model,
            hard=hard,
            stream=stream,
            status=response.status_code,
            headers=headers,
            members=reader.members,
            unusable=reader.unusable,
            failed=reader.failed,
            remark=reader.remark,
        )

    async def get(self, path: str) -> bytes:
        """Return the body at *path*; nothing if there is none."""
        content = bytearray()
        with contextlib.suppress(NoAnswer):
            async with self._request("GET", path, None) as response:
                async for data in response.aiter_raw():
                    content += data
                    if len(content) > MAX_LIST_BYTES:
                        return b""
            return bytes(content) if response.status_code == 200 else b""
        return b""

    def _read_headers(self, response: httpx.Response) -> dict[bytes, bytes]:
        """Return the headers that came once and hold no secret."""
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        counts = Counter(name for name, _ in headers)
        return {
            name: value
            for name, value in headers
            if counts[name] == 1 and not any(self.target.is_secret(text.decode("latin-1")) for text in (name, value))
        }

    @asynccontextmanager
    async def _request(self, method: str, path: str, body: bytes | None) -> AsyncIterator[httpx.Response]:
        if self.sent >= self.limit:
            raise RuntimeError(f"{self.limit} requests were announced, and all of them are sent")
        self.sent += 1
        try:
            async with (
                asyncio.timeout(self.target.timeout),  # of all that follows; httpx would bound each step alone
                httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=self.target.timeout) as client,
                client.stream(method, self.target.base + path, headers=self.target.headers, content=body) as response,
            ):
                yield response
        except (TimeoutError, httpx.TimeoutException):
            raise NoAnswer(f"no whole answer within {self.target.timeout:g} s") from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise NoAnswer(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Return in words what happened, without anything that the gateway sent."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            told = cause.verify_message.rstrip(".")
            return f"its certificate is not trusted ({told}); SSL_CERT_FILE can name a file of authorities to trust"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed ({str(cause.reason).replace('_', ' ').lower()}); is it an http:// URL?"
        if isinstance(cause, OSError) and cause.errno:
            return str(cause.strerror) if isinstance(cause, socket.gaierror) else os.strerror(cause.errno)
    if isinstance(error, httpx.InvalidURL):
        return "it is no address"
    if isinstance(error, httpx.RemoteProtocolError) and not str(error).startswith("Server disconnected"):
        return "the answer broke off" if str(error).startswith("peer closed") else "the answer is no HTTP"
    return "the connection was closed without an answer"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        if isinstance(error, BaseExceptionGroup):  # one for each address of a host
            error = error.exceptions[0]
        yield error
        error = error.__cause__ or error.__context__
