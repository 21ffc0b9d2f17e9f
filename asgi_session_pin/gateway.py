"""In front of a gateway that can't be changed: a reverse proxy over one httpx transport, inside of the middleware."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import httpx
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from ._headers import Headers, without
from .config import Config, Gateway
from .middleware import SessionPinMiddleware

logger = logging.getLogger("asgi_session_pin.gateway")

# RFC 9110, section 7.6.1: of the connection, not of the message. `expect` is answered by the server that we run on.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate te trailer transfer-encoding upgrade expect".split()
)


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
        parts = urlsplit(upstream)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("upstream: expected a URL such as http://localhost:4000")
        if parts.username is not None or parts.password is not None:
            raise ValueError("upstream: expected a URL without credentials; clients send theirs")
        self._url = httpx.URL(f"{parts.scheme}://{parts.netloc}")
        self._base = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~").encode()
        self._timeout = {
            "connect": settings.connect_timeout_seconds,
            "read": settings.read_timeout_seconds,
            "write": settings.read_timeout_seconds,
            "pool": None,
        }
        self._health = settings.health_path.rstrip("/")
        # Not a client: that would merge in headers and cookies of its own. Only a connect is tried once more.
        self._transport = httpx.AsyncHTTPTransport(
            trust_env=False,
            retries=1,
            limits=httpx.Limits(max_connections=settings.max_connections, keepalive_expiry=settings.keepalive_seconds),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request (ASGI)."""
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["type"] == "websocket":
            return await _refuse(scope, receive, send)
        if scope["path"].startswith(self._health):
            check = scope["path"].removeprefix(self._health)
            if check in ("/healthz", "/readyz") and scope["method"] in ("GET", "HEAD"):
                answer = PlainTextResponse("ok\n") if check == "/healthz" else await self._readiness()
                return await answer(scope, receive, send)
        await _Forwarding(self, scope, receive, send).run()

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send *request* to the upstream and return the response, whose body is still to come."""
        return await self._transport.handle_async_request(request)

    def build_request(self, scope: Scope, content: AsyncIterator[bytes]) -> httpx.Request:
        """Return the request for the upstream: the same target, byte for byte, and all headers that go end to end."""
        path = scope.get("raw_path") or quote(scope["path"]).encode()
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        has_body = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        return httpx.Request(
            scope["method"],
            self._url,
            headers=_forwarded(scope),
            content=content if has_body else None,
            extensions={"timeout": self._timeout, "target": self._base + path + query},
        )

    async def aclose(self) -> None:
        """Close the connections to the upstream. Lifespan does it."""
        await self._transport.aclose()

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
        try:
            with self._cancel_scope:
                await self._forward()
        except _ClientLeft:
            pass
        finally:
            if self._watching is not None:
                self._watching.cancel()

    async def _forward(self) -> None:
        request = self._proxy.build_request(self._scope, self._content())
        try:
            response = await self._proxy.send(request)
        except httpx.TransportError as error:
            return await _failure(error)(self._scope, self._receive, self._send)
        try:
            self._watch()
            headers = _end_to_end(response.headers.raw)
            await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            async for chunk in response.aiter_raw():
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx.TransportError as error:
            raise UpstreamBroke(type(error).__name__) from error
        finally:
            await response.aclose()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _content(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise _ClientLeft
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]
        self._watch()

    def _watch(self) -> None:
        """Close the request to the upstream as soon as the client leaves."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._wait_for_disconnect())

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # the rest of a body that the upstream did not wait for
        self._cancel_scope.cancel()


def _forwarded(scope: Scope) -> Headers:
    """Return the headers for the upstream."""
    headers = without(_end_to_end(scope["headers"]), {b"host", b"x-forwarded-for"})
    names = {name.lower() for name, _ in headers}
    hops = [value for name, value in scope["headers"] if name.lower() == b"x-forwarded-for"]
    if scope.get("client"):
        hops.append(scope["client"][0].encode())
    if hops:
        headers.append((b"x-forwarded-for", b", ".join(hops)))
    if b"x-forwarded-proto" not in names:
        headers.append((b"x-forwarded-proto", scope.get("scheme", "http").encode()))
    host = next((value for name, value in scope["headers"] if name.lower() == b"host"), None)
    if host is not None and b"x-forwarded-host" not in names:
        headers.append((b"x-forwarded-host", host))
    return headers


def _end_to_end(headers: Headers) -> Headers:
    """Return a copy of *headers* without those that are of the connection, or that `connection` names."""
    dropped = set(HOP_BY_HOP)
    for name, value in headers:
        if name.lower() == b"connection":
            dropped.update(item.strip().lower() for item in value.split(b","))
    return without(headers, dropped)


def _failure(error: httpx.TransportError) -> Response:
    """Return the answer for an upstream that did not answer, in OpenAI's shape. Its URL is the operator's affair."""
    logger.warning("the upstream did not answer: %s", type(error).__name__)
    status, code, message = 502, "upstream_unavailable", "The upstream gateway can't be reached or did not answer."
    if isinstance(error, httpx.TimeoutException):
        status, code, message = 504, "upstream_timeout", "The upstream gateway did not answer in time."
    elif isinstance(error, httpx.LocalProtocolError):
        status, code, message = 400, "invalid_request", "The request can't be forwarded as it is."
    details = {"message": message, "type": "upstream_error", "param": None, "code": code}
    return JSONResponse({"error": details}, status)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a websocket."""
    if "websocket.http.response" in scope.get("extensions", {}):
        details = {"message": "Websockets are not forwarded.", "type": "upstream_error", "param": None, "code": None}
        response: Any = JSONResponse({"error": details}, 501)
        await response(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1003, "reason": "websockets are not forwarded"})
