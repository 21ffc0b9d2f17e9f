"""The gateway behind: requests go to it by aiohttp, byte for byte, and it is asked whether it is there."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

import aiohttp
from multidict import CIMultiDict
from starlette.types import Scope
from yarl import URL

from ..config import ConfigError, Gateway
from ..wire.headers import Headers
from ..wire.url import base_path
from .connections import Connector
from .end_to_end import RequestHeaders, ResponseHeaders
from .forwarding import target

_READ_BYTES = 65_536  # of an answer are held at most three times as many, where the client is slower
_MAX_HEADER_BYTES = 1_048_576
_MAX_HEADERS = 10_000
_AUTOMATIC_HEADERS = CIMultiDict[None]({"content-type": None})
_READINESS_SECONDS = 1


class _Request(aiohttp.ClientRequest):
    """A request to which nothing is added."""

    def update_auto_headers(self, skip_auto_headers: Iterable[str] | None) -> None:
        """Add no header, and look for none that is to be left out."""
        self._skip_auto_headers = _AUTOMATIC_HEADERS

    def update_body_from_data(self, body: Any, *arguments: Any, **options: Any) -> None:
        """Take the body. Without one aiohttp would add a content-length to methods that often have one."""
        if body is not None:
            super().update_body_from_data(body, *arguments, **options)


class Upstream:
    """Sends requests to the gateway at *parts*, over connections of one event loop at a time.

    Raises ConfigError for a `ca_file` that can't be used.
    """

    def __init__(self, parts: SplitResult, settings: Gateway, clock: Callable[[], float] = time.monotonic) -> None:
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._base = base_path(parts)
        self._star = URL.build(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, path="*", encoded=True)
        self._request_headers = RequestHeaders(settings.trust_forwarded)
        self._response_headers = ResponseHeaders(parts)
        self._settings = settings
        self._clock = clock
        self._tls = _trust(settings.ca_file) if parts.scheme == "https" or settings.ca_file else None
        connecting = settings.connect_timeout_seconds
        self._timeout = aiohttp.ClientTimeout(
            connect=connecting if settings.max_connections is None else None,  # for which one may have to wait
            sock_connect=connecting,
            sock_read=settings.read_timeout_seconds,
        )
        self._bound: _Bound | None = None

    async def ask(
        self, scope: Scope, body: bytes | AsyncIterable[bytes] | None
    ) -> tuple[aiohttp.ClientResponse, Headers]:
        """Forward a request. Return the answer as soon as its head is there, and the headers for the client.

        Raises ValueError for a request that can't be sent as it is, ClientError or OSError (TimeoutError is one) for an
        upstream that does not answer.
        """
        headers = self._request_headers.make(scope)
        answer = await self._request(scope["method"], target(scope, self._base), headers, body)
        try:
            if answer.status < 200:
                raise ValueError("there was no offer to switch protocols")
            return answer, self._response_headers.make(answer.raw_headers, scope.get("root_path", ""))
        except ValueError as error:
            answer.close()
            raise aiohttp.ClientError from error

    async def _request(
        self, method: str, path: str, headers: list[tuple[str, str]], body: bytes | AsyncIterable[bytes] | None
    ) -> aiohttp.ClientResponse:
        bound = await self._bind()
        url = URL(self._origin + path, encoded=True) if path != "*" else self._star
        if url.raw_path_qs != path:
            raise ValueError("the target has a fragment")
        return await bound.session.request(method, url, headers=headers, data=body, allow_redirects=False)

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
                answer = await self._request("HEAD", self._base or "/", [], None)
        except (aiohttp.ClientError, OSError):  # TimeoutError is one
            return False
        answer.close()
        return True

    async def _bind(self) -> "_Bound":
        """Return what is bound to the event loop that runs."""
        loop = asyncio.get_running_loop()
        if self._bound is None or self._bound.loop is not loop:
            if self._bound is not None and self._bound.loop.is_closed():
                await self._bound.session.close()
            self._bound = _Bound(loop, self._open_session(), asyncio.Lock(), self._clock())
        return self._bound

    def _open_session(self) -> aiohttp.ClientSession:
        settings = self._settings
        session = aiohttp.ClientSession(
            connector=Connector(
                settings.keepalive_seconds,
                limit=settings.max_connections or 0,
                ssl=self._tls or True,
                resolver=aiohttp.ThreadedResolver(),  # as the system resolves names, whatever else is installed
            ),
            request_class=_Request,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=self._timeout,
            read_bufsize=_READ_BYTES,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            max_headers=_MAX_HEADERS,
        )
        session._retry_connection = False  # what was sent once is not sent again
        return session

    async def aclose(self) -> None:
        """Close the connections, but for those of another event loop that is not closed."""
        bound = self._bound
        if bound is not None and (bound.loop is asyncio.get_running_loop() or bound.loop.is_closed()):
            self._bound = None
            await bound.session.close()


@dataclass
class _Bound:
    """What is bound to an event loop, and whether the gateway answered the last time that it was asked there."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
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
