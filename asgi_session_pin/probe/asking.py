"""The probe's requests: one connection each, a limit of time and of bytes, and never more than was announced."""

import contextlib
import http.client
import json
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult

import msgspec

from .._decompress import open_decoder
from .._headers import is_identity, media_type
from .._upstream import base_path
from .evidence import BodyReader, Reply

MAX_TOKENS = 16
MAX_LIST_BYTES = 8_388_608  # of a list of models or deployments

EASY = "Hello! What is the capital of France?"
HARD = (
    "Analyze step by step the trade-offs between consensus algorithms for a distributed database, explain why one of "
    "them fits a payment system, then design and implement its replication protocol as a Python class with async "
    "functions, and review it for security."
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is probed, and with what.

    - `path`: of the completion endpoint, below the base path of `upstream`.
    - `headers`: of each request, by lower-case name.
    - `secrets`: texts that must not be shown, whatever the gateway does with them; `alone`: others that may only be
      parts of what is shown, as short ones are of many words.
    """

    upstream: SplitResult
    path: str
    headers: dict[str, str]
    secrets: frozenset[str]
    alone: frozenset[str]
    timeout: float

    @property
    def url(self) -> str:
        """The URL of the completion endpoint."""
        return f"{self.upstream.scheme}://{self.upstream.netloc}{base_path(self.upstream)}{self.path}"

    def is_secret(self, text: str) -> bool:
        """Tell whether *text* is not to be shown."""
        return text in self.alone or any(secret in text for secret in self.secrets)

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
    """Sends requests to a gateway, at most *limit* of them."""

    def __init__(self, target: Target, limit: int) -> None:
        self.sent = 0
        self.limit = limit
        self._target = target
        self._limits = list(target.limits)
        self._late = f"no whole answer within {target.timeout:g} s"

    def ask(self, model: str, *, hard: bool, stream: bool) -> Reply:
        """Ask for *model* and return what the reply tells."""
        reply = self._ask(model, hard, stream)
        if reply.remark == "unsupported_parameter" and len(self._limits) > 1:
            del self._limits[0]
            reply = self._ask(model, hard, stream)
        return reply

    def _ask(self, model: str, hard: bool, stream: bool) -> Reply:
        body = self._target.body(model, HARD if hard else EASY, stream, self._limits[0])
        with self._request("POST", self._target.path, body) as response:
            headers = self._headers(response)
            reader = self._open_reader(headers)
            for data in _pieces(response):
                reader.feed(data)
                if reader.finished:
                    break
            reader.end()
            return Reply(
                model=model,
                hard=hard,
                stream=stream,
                status=response.status,
                headers=headers,
                members=reader.members,
                unusable=reader.unusable,
                failed=reader.failed,
                remark=reader.remark,
            )

    def get(self, path: str) -> bytes:
        """Return the body at *path*; nothing if there is none."""
        with contextlib.suppress(NoAnswer), self._request("GET", path, None) as response:
            content = bytearray()
            for data in _pieces(response):
                content += data
                if len(content) > MAX_LIST_BYTES:
                    return b""
            return bytes(content) if response.status == 200 else b""
        return b""

    def _headers(self, response: http.client.HTTPResponse) -> dict[bytes, bytes]:
        """Return the headers that came once and hold no secret."""
        pairs = [(name.lower(), value) for name, value in response.getheaders()]
        names = [name for name, _ in pairs]
        return {
            name.encode("latin-1"): value.encode("latin-1")
            for name, value in pairs
            if names.count(name) == 1 and not self._target.is_secret(value) and not self._target.is_secret(name)
        }

    def _open_reader(self, headers: dict[bytes, bytes]) -> BodyReader:
        coding = headers.get(b"content-encoding", b"")
        kind = media_type(headers.get(b"content-type", b""))
        decoder = None if is_identity(coding) else open_decoder(coding)
        known = decoder is not None or is_identity(coding)
        return BodyReader(kind if known else None, decoder, self._target.is_secret)

    @contextmanager
    def _request(self, method: str, path: str, body: bytes | None) -> Iterator[http.client.HTTPResponse]:
        if self.sent >= self.limit:
            raise RuntimeError(f"{self.limit} requests were announced, and all of them are sent")
        self.sent += 1
        connection = self._connect()
        late = threading.Event()
        try:
            connection.connect()
            stop = threading.Timer(self._target.timeout, _cut, (connection.sock, late))
            stop.start()
            try:
                connection.request(method, base_path(self._target.upstream) + path, body, self._target.headers)
                with connection.getresponse() as response:
                    yield response
            finally:
                stop.cancel()
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(self._late if late.is_set() or isinstance(error, TimeoutError) else _reason(error)) from None
        finally:
            connection.close()
        if late.is_set():
            raise NoAnswer(self._late)

    def _connect(self) -> http.client.HTTPConnection:
        host, port, timeout = self._target.upstream.hostname, self._target.upstream.port, self._target.timeout
        if self._target.upstream.scheme == "https":
            return http.client.HTTPSConnection(str(host), port, timeout=timeout, context=ssl.create_default_context())
        return http.client.HTTPConnection(str(host), port, timeout=timeout)


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while data := response.read1(65_536):
        yield data
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)


def _cut(connection: socket.socket, late: threading.Event) -> None:
    """End a request that takes too long, wherever it is. A TLS connection is cut below its TLS, which nobody awaits."""
    late.set()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _reason(error: OSError | http.client.HTTPException) -> str:
    """Return in words what happened, without anything that the gateway sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        told = error.verify_message.rstrip(".")
        return f"its certificate is not trusted ({told}); SSL_CERT_FILE can name a file of authorities to trust"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({str(error.reason).replace('_', ' ').lower()}); is it an http:// URL?"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    return "the answer broke off" if isinstance(error, http.client.IncompleteRead) else "the answer is no HTTP"
