"""What operators get below a path of their own: is it there, is it ready, the figures, the events, the API."""

import asyncio
import hashlib
import hmac
import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..log import logger
from ..middleware import SessionPinMiddleware
from ..request.scope import inner_path
from ..runtime import Runtime
from ..stores import OperableStore
from ..wire.headers import Headers
from .answers import error
from .api import API
from .census import Census
from .event_stream import EventStream
from .page import make_page

if TYPE_CHECKING:
    from .metrics import Metrics

WORKER_HEADER = "x-session-pin-worker"  # whose events they are
MOST_READERS = 16  # of events
_PATIENCE_SECONDS = 2.0  # with a count of the pins
_READY_SECONDS = 1.0  # for which an answer of the store's is good

# Nothing of an answer is for a browser to run, to show inside of another page, or to keep.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

Handler = Callable[..., Awaitable[Response]]
Check = Callable[[], Awaitable[bool]]


class Route(NamedTuple):
    """What is at a path below `admin.path`, whose groups go to the handlers, by method.

    *is_open*: without the token.
    """

    path: re.Pattern[str]
    handlers: dict[str, Handler]
    is_open: bool = False


def create_admin(middleware: SessionPinMiddleware, *, is_upstream_ready: Check | None = None) -> ASGIApp:
    """Return an ASGI app with what operators get of *middleware*, to be mounted or served by itself.

    It has the settings of the middleware's own configuration, section `admin`, but for the path: that is where it is
    mounted. *is_upstream_ready* tells for `readyz` whether there is somebody to send requests to.
    """
    return AdminApp(middleware, is_upstream_ready)


class AdminApp:
    """Answers to operators. See `create_admin`."""

    def __init__(self, middleware: SessionPinMiddleware, is_upstream_ready: Check | None) -> None:
        settings = middleware.runtime.config.admin
        self._runtime = middleware.runtime
        self._is_upstream_ready = is_upstream_ready
        self._token = None if settings.token is None else _digest(settings.token.encode())
        self._readers = 0
        self._store_answers = True
        self._asks_store_again = 0.0
        self.metrics = _open_metrics(self._runtime) if settings.token is not None and settings.metrics else None
        no_count: int | None = None
        self._pins = Census(self._count_pins, no_count, self._runtime.timer, patience_seconds=_PATIENCE_SECONDS)
        self._api = api = API(middleware)
        self._routes = [
            Route(re.compile("/healthz"), {"GET": self._health}, is_open=True),
            Route(re.compile("/readyz"), {"GET": self._readiness}, is_open=True),
            Route(re.compile("/api/events"), {"GET": self._events}),
            _api_route(api, "pins", GET=api.list_pins),
            _api_route(api, "pins/([0-9a-f]{32})", GET=api.get_pin, PUT=api.put_pin, DELETE=api.delete_pin),
            _api_route(api, "lookup", POST=api.look_up),
            _api_route(api, "models", GET=api.list_models),
            _api_route(api, "retired", GET=api.list_retired),
            _api_route(api, "retired/(.+)", PUT=api.retire, DELETE=api.restore),
            _api_route(api, "pause", GET=api.get_pause, PUT=api.pause, DELETE=api.resume),
        ]
        if settings.token is not None:  # which the page asks for
            self._routes.append(Route(re.compile("/?"), {"GET": self._page}, is_open=True))
        if settings.metrics:
            self._routes.append(Route(re.compile("/metrics"), {"GET": self._figures}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": ""})
        if scope["type"] != "http":  # lifespan: there is nothing to begin or to end
            return None
        try:
            response = await self._answer(Request(scope, receive))
        except Exception:
            logger.exception("an operator's request failed")
            response = error(500, "It failed; the log says why.", "internal_error")
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return await response(scope, receive, send)

    def close(self) -> None:
        """Let other processes see what was counted here."""
        self._api.close()
        self._pins.close()
        if self.metrics is not None:
            self.metrics.flush()

    async def _answer(self, request: Request) -> Response:
        path = inner_path(request.scope)
        for route in self._routes:
            found = route.path.fullmatch(path)
            if found is not None and (route.is_open or self._token is not None):
                break
        else:
            return error(404, "There is nothing here.", "not_found")
        if not route.is_open and not self._is_allowed(request):
            refusal = error(401, "This needs the token of admin.token, as Authorization: Bearer.", "unauthorized")
            refusal.headers["www-authenticate"] = "Bearer"
            return refusal
        method = "GET" if request.method == "HEAD" else request.method
        if method not in route.handlers:
            refusal = error(405, "This has other methods.", "method_not_allowed")
            refusal.headers["allow"] = ", ".join(route.handlers)
            return refusal
        return await route.handlers[method](request, *found.groups())

    def _is_allowed(self, request: Request) -> bool:
        """Tell whether a request has the token, in a time that does not depend on it."""
        given = request.headers.getlist("authorization")
        kind, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        is_same = hmac.compare_digest(_digest(token.strip(" ").encode("latin-1")), self._token or b"")
        return is_same and kind.lower() == "bearer"

    async def _page(self, request: Request) -> Response:
        return make_page()

    async def _health(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readiness(self, request: Request) -> Response:
        if self._is_upstream_ready is not None and not await self._is_upstream_ready():
            return PlainTextResponse("the upstream does not answer\n", 503)
        if not await self._does_store_answer():  # no reason to send nobody here: requests go on without it
            return PlainTextResponse("ok, but the pin store does not answer\n")
        return PlainTextResponse("ok\n")

    async def _does_store_answer(self) -> bool:
        now = self._runtime.timer()
        if now >= self._asks_store_again:
            self._asks_store_again = now + _READY_SECONDS
            self._store_answers = await self._runtime.pins.does_store_answer()
        return self._store_answers

    async def _figures(self, request: Request) -> Response:
        if self.metrics is None:
            return error(501, "Metrics need asgi-session-pin[metrics] to be installed.", "not_installed")
        self.metrics.flush()
        self.metrics.pins = await self._pins.figures()
        return Response(await asyncio.to_thread(self.metrics.text), headers={"content-type": self.metrics.content_type})

    async def _count_pins(self) -> int | None:
        store = self._runtime.store
        return await store.count() if isinstance(store, OperableStore) else None

    async def _events(self, request: Request) -> Response:
        if self._readers >= MOST_READERS:
            return error(503, f"There are {MOST_READERS} readers already.", "too_many_readers")
        return _EventResponse(self._watch)

    async def _watch(self, receive: Receive, send: Send, headers: Headers) -> None:
        stream = EventStream()
        self._readers += 1
        self._runtime.listeners.append(stream.put)
        try:
            await stream.run(receive, send, headers)
        finally:
            self._runtime.listeners.remove(stream.put)
            self._readers -= 1


class _EventResponse(Response):
    media_type = "text/event-stream"

    def __init__(self, watch: Callable[[Receive, Send, Headers], Awaitable[None]]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self.headers[WORKER_HEADER] = str(os.getpid())
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            return await super().__call__(scope, receive, send)
        return await self._watch(receive, send, self.raw_headers)


def _api_route(api: API, path: str, **handlers: Handler) -> Route:
    answers: dict[str, Handler] = {method: partial(api.answer, handle) for method, handle in handlers.items()}
    return Route(re.compile(f"/api/{path}", re.DOTALL), answers)


def _open_metrics(runtime: Runtime) -> "Metrics | None":
    """Return what counts, the same for all apps of a middleware; None where `prometheus_client` is not installed."""
    try:
        from .metrics import Metrics
    except ImportError:
        return None
    metrics = next((counter for counter in runtime.counters if isinstance(counter, Metrics)), None)
    if metrics is None:
        metrics = Metrics()
        runtime.counters.append(metrics)
        runtime.change_listeners.append(metrics.count_change)
    return metrics


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
