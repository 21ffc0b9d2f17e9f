"""In front of a gateway that can't be changed: a reverse proxy inside of the middleware."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from ..config import Config, Gateway
from ..events import Listener
from ..middleware import SessionPinMiddleware
from ..stores import PinStore
from ..wire.url import read_upstream
from .forwarding import error_response, inner_path, upgrade_required, wants_websocket
from .relay import Relay
from .upstream import Upstream
from .websocket import WebSocketRelay


def create_gateway(
    upstream: str,
    config: Config | str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    store: PinStore | None = None,
    session_id: Callable[[Scope], str | None] | None = None,
    listeners: Iterable[Listener] = (),
) -> SessionPinMiddleware:
    """Return an ASGI app that pins sessions in front of the gateway at the URL *upstream*.

    All others are as for `SessionPinMiddleware`, and so is what is raised; ValueError for an *upstream* that is no http
    or https URL. Nothing is connected before the first request. `aclose` closes the connections to the upstream, too;
    lifespan does it, but never reaches inside a `Mount`.
    """
    settings = Config.load(config)
    proxy = ReverseProxy(upstream, settings.gateway)
    return _Gateway(proxy, config=settings, store=store, session_id=session_id, listeners=listeners)


class ReverseProxy:
    """Forwards each request to *upstream*, byte for byte, and streams both ways. So it does with websockets.

    It follows no redirect, keeps no cookie, decodes nothing, and adds no header but `X-Forwarded-For`, `-Proto` and
    `-Host`. *clock* tells seconds that only go forward. Raises ValueError for an *upstream* that is no http or https
    URL, ConfigError for a `ca_file` that can't be used.
    """

    def __init__(
        self, upstream: str, settings: Gateway | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        settings = settings or Gateway()
        self._upstream = Upstream(read_upstream(upstream), settings, clock)
        self._stall_seconds = settings.read_timeout_seconds
        self._checks = [f"{settings.health_path}/{check}" for check in ("healthz", "readyz")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request (ASGI)."""
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        if scope["type"] == "websocket":
            return await WebSocketRelay(self._upstream, self._stall_seconds, scope, receive, send).run()
        if scope["method"] == "CONNECT":
            answer = error_response(501, "Tunnels are not forwarded.", "not_implemented")
            return await answer(scope, receive, send)
        if wants_websocket(scope):
            answer = upgrade_required(
                scope, "This server has no websockets, which uvicorn has with websockets or wsproto."
            )
            return await answer(scope, receive, send)
        if scope["method"] in ("GET", "HEAD"):
            path = inner_path(scope)
            if path in self._checks:
                answer = PlainTextResponse("ok\n") if path == self._checks[0] else await self._readiness()
                return await answer(scope, receive, send)
        return await Relay(self._upstream, self._stall_seconds, scope, receive, send).run()

    async def aclose(self) -> None:
        """Close the connections to the upstream. Lifespan does it."""
        await self._upstream.aclose()

    async def _readiness(self) -> Response:
        is_ready = await self._upstream.is_ready()
        return PlainTextResponse(*(("ok\n",) if is_ready else ("the upstream does not answer\n", 503)))

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})


class _Gateway(SessionPinMiddleware):
    async def aclose(self) -> None:
        """Close the store and the connections to the upstream."""
        await super().aclose()
        assert isinstance(self.app, ReverseProxy)
        await self.app.aclose()
