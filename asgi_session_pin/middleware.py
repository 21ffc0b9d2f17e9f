"""SessionPinMiddleware: which requests are ours, and the life of what they share."""

import os
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._headers import HeaderPicker, header_list
from ._log import WarnOnce
from ._patterns import Patterns
from .config import Config
from .exchange import SCOPE_KEY, Exchange, Pinning
from .pins import PinTable
from .request import HEADER_NAMES, UNUSUAL_HEADERS
from .response import DecisionRules
from .session import AskedModel, SessionReader
from .stores import PinStore, open_store


class SessionPinMiddleware:
    """Keeps each session of an LLM proxy on the model that its first request was routed to.

    - *app*: the ASGI app.
    - *config*: a `Config`, the path of a YAML file, or a mapping of that file's shape; None: the defaults.
    - *store*: a `PinStore` to use instead of the one that the configuration names.

    Raises ConfigError for a configuration that can't be used. Nothing is connected here and no event loop is needed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: Config | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        store: PinStore | None = None,
    ) -> None:
        settings = Config.load(config)
        sessions = SessionReader(settings.sessions)
        self.app = app
        self._sessions = sessions
        self._headers = HeaderPicker(HEADER_NAMES | sessions.header_names)
        self._endpoints = [(Patterns([endpoint.path]), endpoint.kind) for endpoint in settings.endpoints]
        self._endpoint = lru_cache(maxsize=256)(self._find_endpoint)
        self._pinning = Pinning(
            app=app,
            config=settings,
            sessions=sessions,
            rules=DecisionRules(settings),
            is_routed=_routed_models(settings.routing.router_models),
            table=PinTable(store or open_store(settings), max_age_seconds=settings.routing.session_max_age_seconds),
            warn=WarnOnce(),
            max_request_bytes=settings.limits.max_request_bytes,
            tells=settings.response_headers,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["method"] == "POST":
                kind = self._endpoint(scope["path"])
                if kind is not None and SCOPE_KEY not in scope:  # where it stands there, an outer instance is at work
                    return await self._handle(kind, scope, receive, send)
        elif scope["type"] == "lifespan":
            send = self._closing(send)
        await self.app(scope, receive, send)
        return None

    def _handle(self, kind: str, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        headers = scope["headers"] = header_list(scope.get("headers", ()))
        picked = self._headers.pick(headers)
        session_id = self._sessions.find_id(picked)
        unusual = not UNUSUAL_HEADERS.isdisjoint(picked)
        if session_id is None and not unusual:
            return self._pass_by(scope, receive, send)
        return Exchange(self._pinning, kind, scope, receive, send, headers, picked, unusual).run(session_id)

    async def _pass_by(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY] = None
        try:
            await self.app(scope, receive, send)
        finally:
            scope.pop(SCOPE_KEY, None)

    async def aclose(self) -> None:
        """Close the store, also one that was given as *store*. Lifespan does it, but never reaches inside a `Mount`."""
        await self._pinning.table.aclose()

    def _find_endpoint(self, path: str) -> str | None:
        for pattern, kind in self._endpoints:
            if pattern.match(path) or (path.endswith("/") and pattern.match(path[:-1])):
                return None if kind == "ignore" else kind
        return None

    def _closing(self, send: Send) -> Send:
        async def send_and_close(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.aclose()
            await send(message)

        return send_and_close


def _routed_models(patterns: tuple[str, ...]) -> Callable[[AskedModel], bool]:
    """Return what tells whether the router decides for a model; a request that names none leaves it to the router."""
    if not patterns:
        return lambda asked: True
    routed = Patterns(patterns)
    return lambda asked: asked is None or (isinstance(asked, str) and routed.match(asked))
