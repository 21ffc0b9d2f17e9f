"""In front of a gateway that can't be changed: a reverse proxy inside of the middleware."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from ..config import Config, Gateway
from ..events import Listener
from ..middleware import SessionPinMiddleware
from ..operate.admin import AdminApp
from ..request.scope import inner_path
from ..stores import PinStore
from ..wire.url import read_upstream
from .forwarding import error_response, upgrade_required, wants_websocket
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
    return _Gateway(proxy, settings, store=store, session_id=session_id, listeners=listeners)


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
        return await Relay(self._upstream, self._stall_seconds, scope, receive, send).run()

    async def is_ready(self) -> bool:
        """Tell whether the upstream answers."""
        return await self._upstream.is_ready()

    async def aclose(self) -> None:
        """Close the connections to the upstream. Lifespan does it."""
        await self._upstream.aclose()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})


class _Gateway(SessionPinMiddleware):
    """The middleware before the proxy, and beside them what operators get."""

    def __init__(self, proxy: ReverseProxy, config: Config, **options: Any) -> None:
        super().__init__(proxy, config=config, **options)
        self._proxy = proxy
        self._admin = AdminApp(self, proxy.is_ready)
        self._admin_path = config.admin.path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            path = _path(scope)
            if f"{path}/".startswith(f"{self._admin_path}/"):
                root = scope.get("root_path", "").rstrip("/")
                scope = {**scope, "path": root + path, "root_path": root + self._admin_path}
                return await self._admin(scope, receive, send)
        return await super().__call__(scope, receive, send)

    async def aclose(self) -> None:
        """Close the store and the connections to the upstream."""
        self._admin.close()
        await super().aclose()
        await self._proxy.aclose()


def _path(scope: Scope) -> str:
    """Return the path of a request, also of one whose target is a whole URL (RFC 9112, section 3.2.2)."""
    path = inner_path(scope)
    return path if path.startswith("/") else "/" + path.partition("://")[2].partition("/")[2]
