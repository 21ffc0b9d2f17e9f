"""The gateway behind: requests go to it by aiohttp, byte for byte, and it is asked whether it is there."""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult

import aiohttp
from starlette.types import Scope
from yarl import URL

from ..config import ConfigError, Gateway
from ..wire.headers import Headers, without
from ..wire.url import base_path
from .connections import Connector
from .end_to_end import HANDSHAKE_HEADERS, RequestHeaders, ResponseHeaders
from .forwarding import target
from .sending import Answer, Body, Request, send_request

_READ_BYTES = 65_536  # of an answer are held at most three times as many, where the client is slower
_MAX_HEADER_BYTES = 1_048_576
_MAX_HEADERS = 10_000
_READINESS_SECONDS = 1


class Upstream:
    """Sends requests to the gateway at *parts*, over connections of one event loop at a time.

    Raises ConfigError for a `ca_file` that can't be used.
    """

    def __init__(self, parts: SplitResult, settings: Gateway, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = URL(f"{parts.scheme}://{parts.netloc}")
        self._host = self._url.host_port_subcomponent.encode()  # type: ignore[union-attr] # it has one
        self._base = base_path(parts).encode()
        self._request_headers = RequestHeaders(settings.trust_forwarded)
        self._response_headers = ResponseHeaders(parts)
        self._settings = settings
        self._clock = clock
        self._tls = _trust(settings.ca_file) if parts.scheme == "https" or settings.ca_file else None
        connecting = settings.connect_timeout_seconds
        self._timeout = aiohttp.ClientTimeout(
            connect=connecting if settings.max_connections is None else None,  # for which one may have to wait
            sock_connect=connecting,
        )
        self._reading = {
            "read_timeout": settings.read_timeout_seconds,
            "read_bufsize": _READ_BYTES,
            "max_line_size": _MAX_HEADER_BYTES,
            "max_field_size": _MAX_HEADER_BYTES,
            "max_headers": _MAX_HEADERS,
        }
        self._bound: _Bound | None = None

    async def ask(self, scope: Scope, body: Body, upgrade: Headers | None = None) -> tuple[Answer, Headers]:
        """Forward a request. Return the answer as soon as its head is there, and the headers for the client.

        *upgrade*: the headers of a websocket's handshake, in place of the client's. Raises ValueError for a request
        that can't be sent as it is, ClientError or OSError (TimeoutError is one) for an upstream that does not answer.
        """
        headers = [(b"host", self._host), *self._request_headers.make(scope)]
        if upgrade is not None:
            headers = [*without(headers, HANDSHAKE_HEADERS), *upgrade]
        method = scope.get("method", "GET").encode()  # a websocket has none
        answer = await self._send(
            Request(method, target(scope, self._base), headers, body, upgrades=upgrade is not None)
        )
        try:
            return answer, self._response_headers.make(answer.headers, scope.get("root_path", ""))
        except ValueError as error:
            answer.close()
            raise aiohttp.ClientError from error

    async def _send(self, request: Request) -> Answer:
        bound = await self._bind()
        connection = await bound.connector.connect(bound.destination, [], self._timeout)
        return await send_request(connection, request, **self._reading)

    async def is_ready(self) -> bool:
        """Tell whether the gateway answers, whatever it says. It is asked at most once a second."""
        bound = await self._bind()
        async with bound.asking:
            if self._clock() >= bound.asks_again:
                bound.answers = await self._does_answer()
                bound.asks_again = self._clock() + _READINESS_SECONDS
            return bound.answers

    async def _does_answer(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.connect_timeout_seconds):
                answer = await self._send(Request(b"HEAD", self._base or b"/", [(b"host", self._host)], None))
        except (aiohttp.ClientError, OSError):  # TimeoutError is one
            return False
        answer.close()
        return True

    async def _bind(self) -> "_Bound":
        """Return what is bound to the event loop that runs."""
        loop = asyncio.get_running_loop()
        bound = self._bound
        if bound is None or bound.loop is not loop:
            connector = Connector(
                self._settings.keepalive_seconds,
                limit=self._settings.max_connections or 0,
                resolver=aiohttp.ThreadedResolver(),  # as the system resolves names, whatever else is installed
            )
            destination = aiohttp.ClientRequest("GET", self._url, loop=loop, ssl=self._tls or True)
            old, bound = bound, _Bound(loop, connector, destination, asyncio.Lock(), self._clock())
            self._bound = bound  # before others come
            if old is not None and old.loop.is_closed():
                await old.connector.close()
        return bound

    async def aclose(self) -> None:
        """Close the connections, but for those of another event loop that is not closed."""
        bound = self._bound
        if bound is not None and (bound.loop is asyncio.get_running_loop() or bound.loop.is_closed()):
            self._bound = None
            await bound.connector.close()


@dataclass
class _Bound:
    """What is bound to an event loop, and whether the gateway answered the last time that it was asked there."""

    loop: asyncio.AbstractEventLoop
    connector: Connector
    destination: aiohttp.ClientRequest  # all that a connector knows of a request
    asking: asyncio.Lock
    asks_again: float
    answers: bool = False


def _trust(ca_file: str | None) -> ssl.SSLContext:
    """Return what trusts the system's authorities, or those of SSL_CERT_FILE, and those of *ca_file*."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # ssl.SSLError is one
            fault = f"gateway.ca_file: found {ca_file!r}, which can't be read, expected a file of certificates (PEM)"
            raise ConfigError("configuration", [fault]) from error
    return context
