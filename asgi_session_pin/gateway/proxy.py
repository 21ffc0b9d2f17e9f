"""In front of a gateway that can't be changed: a reverse proxy over httpx, inside of the middleware."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import httpx
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from ..config import Config, Gateway
from ..log import names_of
from ..middleware import SessionPinMiddleware
from ..wire.url import base_path, read_upstream
from .forwarding import (
    end_to_end,
    error_response,
    has_body,
    inner_path,
    refuse_websocket,
    request_headers,
    target,
    wants_websocket,
)

logger = logging.getLogger("asgi_session_pin.gateway")

# httpcore's pool takes a time that grows with the square of its connections.
CONNECTIONS_IN_A_POOL = 32


def create_gateway(
    upstream: str, config: Config | str | os.PathLike[str] | Mapping[str, Any] | None = None
) -> SessionPinMiddleware:
    """Return an ASGI app that pins sessions in front of the gateway at the URL *upstream*.

    *config* is as for `SessionPinMiddleware`. Raises ConfigError for a configuration that can't be used and ValueError
    for an *upstream* that is no http or https URL. Nothing is connected before the first request.
    """
    settings = Config.load(config)
    return SessionPinMiddleware(ReverseProxy(upstream, settings.gateway), config=settings)


class UpstreamBroke(Exception):
    """The upstream's response broke off: the connection to the client has to be cut, since its status is out."""


class ReverseProxy:
    """Forwards each request to *upstream*, byte for byte, and streams both ways.

    It follows no redirect, keeps no cookie, decodes nothing, and adds no header but `X-Forwarded-For`, `-Proto` and
    `-Host`. Raises ValueError for an *upstream* that is no http or https URL.
    """

    def __init__(self, upstream: str, settings: Gateway | None = None) -> None:
        settings = settings or Gateway()
        parts = read_upstream(upstream)
        self._url = httpx.URL(f"{parts.scheme}://{parts.netloc}")
        self._base = base_path(parts).encode()
        self._timeout = {
            "connect": settings.connect_timeout_seconds,
            "read": settings.read_timeout_seconds,
            "write": settings.read_timeout_seconds,
            "pool": None,
        }
        self._checks = [f"{settings.health_path}/{check}" for check in ("healthz", "readyz")]
        self._pools = _Pools(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request (ASGI)."""
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["type"] == "websocket":
            return await refuse_websocket(scope, receive, send)
        if scope["method"] == "CONNECT" or wants_websocket(scope):
            answer = error_response(501, "Tunnels and websockets are not forwarded.", "not_implemented")
            return await answer(scope, receive, send)
        path = inner_path(scope)
        if scope["method"] in ("GET", "HEAD") and path in self._checks:
            answer = PlainTextResponse("ok\n") if path == self._checks[0] else await self._readiness()
            return await answer(scope, receive, send)
        await _Forwarding(self, scope, receive, send).run()

    def take_pool(self) -> "_Pool":
        """Return the connections to use for one request."""
        return self._pools.take()

    def build_request(self, scope: Scope, content: AsyncIterator[bytes] | None) -> httpx.Request:
        """Return the request for the upstream: the same target, byte for byte, and all headers that go end to end."""
        extensions = {"timeout": self._timeout, "target": target(scope, self._base)}
        headers = request_headers(scope)
        return httpx.Request(scope["method"], self._url, headers=headers, content=content, extensions=extensions)

    async def aclose(self) -> None:
        """Close the connections to the upstream. Lifespan does it."""
        await self._pools.aclose()

    async def _readiness(self) -> Response:
        port = self._url.port or {"http": 80, "https": 443}[self._url.scheme]
        try:
            async with asyncio.timeout(self._timeout["connect"]):
                _, writer = await asyncio.open_connection(self._url.host, port)
        except (OSError, TimeoutError):
            return PlainTextResponse("the upstream does not accept connections\n", 503)
        writer.close()
        return PlainTextResponse("ok\n")

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})


class _Pool:
    """Connections of one event loop, and how many requests use them."""

    def __init__(self, settings: Gateway) -> None:
        self.requests = 0
        # Not a client: that would merge in headers and cookies of its own. Only a connect is tried once more.
        self.transport = httpx.AsyncHTTPTransport(
            trust_env=False,
            retries=1,
            limits=httpx.Limits(max_connections=settings.max_connections, keepalive_expiry=settings.keepalive_seconds),
        )


class _Pools:
    """As many pools as there are requests for, the first ones first, unless the settings limit the connections."""

    def __init__(self, settings: Gateway) -> None:
        self._settings = settings
        self._by_loop: dict[asyncio.AbstractEventLoop, list[_Pool]] = {}

    def take(self) -> _Pool:
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            self._by_loop = {other: pools for other, pools in self._by_loop.items() if not other.is_closed()}
            self._by_loop[loop] = []
        pools = self._by_loop[loop]
        for pool in pools:
            if pool.requests < CONNECTIONS_IN_A_POOL or self._settings.max_connections is not None:
                return pool
        pools.append(_Pool(self._settings))
        return pools[-1]

    async def aclose(self) -> None:
        for pool in self._by_loop.pop(asyncio.get_running_loop(), []):
            await pool.transport.aclose()


class _ClientLeft(Exception):
    """While it sent its body."""


class _Forwarding:
    """One request on its way to the upstream, and its response on the way back."""

    def __init__(self, proxy: ReverseProxy, scope: Scope, receive: Receive, send: Send) -> None:
        self._proxy = proxy
        self._scope = scope
        self._receive = receive
        self._send = send
        self._watching: asyncio.Task[None] | None = None
        self._cancel_scope = anyio.CancelScope()

    async def run(self) -> None:
        """Forward, until the client leaves."""
        pool = self._proxy.take_pool()
        pool.requests += 1
        try:
            with self._cancel_scope:
                await self._forward(pool.transport)
        except _ClientLeft:
            pass
        finally:
            pool.requests -= 1
            self._stop_watching()

    async def _forward(self, transport: httpx.AsyncHTTPTransport) -> None:
        content = self._content() if has_body(self._scope) else None
        request = self._proxy.build_request(self._scope, content)
        if content is None:
            self._watch()
        try:
            response = await transport.handle_async_request(request)
        except httpx.TransportError as error:
            self._stop_watching()
            return await _failure(error)(self._scope, self._receive, self._send)
        try:
            self._watch()
            headers = end_to_end(response.headers.raw)
            await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            async for chunk in response.aiter_raw():
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx.TransportError as error:
            raise UpstreamBroke(names_of(error)) from None  # the server logs it, with all that is chained to it
        finally:
            await response.aclose()
        self._stop_watching()  # servers tell the end of a response like a client that leaves
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _content(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise _ClientLeft
            more = message.get("more_body", False)
            if not more:
                self._watch()
            if message.get("body"):
                yield message["body"]

    def _watch(self) -> None:
        """Close the request to the upstream as soon as the client leaves."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._wait_for_disconnect())

    def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # the rest of a body that the upstream did not wait for
        self._cancel_scope.cancel()


def _failure(error: httpx.TransportError) -> Response:
    """Return the answer for an upstream that did not answer. Its URL is the operator's affair."""
    logger.warning("the upstream did not answer: %s", names_of(error))
    if isinstance(error, httpx.TimeoutException):
        return error_response(504, "The upstream gateway did not answer in time.", "upstream_timeout")
    if isinstance(error, httpx.LocalProtocolError):
        return error_response(400, "The request can't be forwarded as it is.", "invalid_request")
    return error_response(502, "The upstream gateway can't be reached or did not answer.", "upstream_unavailable")
