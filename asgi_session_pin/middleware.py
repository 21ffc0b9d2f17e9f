"""SessionPinMiddleware: which requests are ours, and the life of what they share."""

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .arguments import check_session_id, check_store, read_listeners
from .config import Config, Endpoint, source_name
from .config.patterns import Patterns
from .events import Listener, Tracing
from .exchange import Exchange
from .handle import handle, handle_observed
from .hold_timer import HoldTimer
from .log import Warnings, logger
from .notices import Notices
from .pins.health import Health
from .pins.steering import Steering
from .pins.table import PinTable
from .request.buffers import Buffers
from .request.scope import CONTROL_HEADERS, HEADER_NAMES, SCOPE_KEY, SIGV4, UNUSUAL_HEADERS
from .request.session import AskedModel, SessionReader
from .response.decision import RememberedDecisions
from .response.rules import ModelRules
from .runtime import Runtime
from .stores import MemoryStore, PinStore, make_resilient, open_store
from .websocket import PinnedSocket
from .wire.headers import HeaderPicker, NameMemory, without

SERVERS = {"uvicorn", "gunicorn", "hypercorn", "granian", "fastapi"}
_MAX_LAYERS = 100  # of a stack that could go round in a circle
_STORE_FAILED = "the pin store failed; requests go on with the pins that this process knows"


class SessionPinMiddleware:
    """Keeps each session of an LLM proxy on the model that its first request was routed to.

    - *app*: the ASGI app.
    - *config*: a `Config`, the path of a YAML file, or a mapping of that file's shape; None: the defaults.
    - *store*: a `PinStore` to use instead of the one that the configuration names.
    - *session_id*: returns the session's id for a scope (from a cookie, a token's claim) or None, instead of
      `sessions.sources`. If it raises, that is logged and the request has no session.
    - *listeners*: each is called with a `PinEvent` when the app is done with a request that had a session. What they
      raise is logged and goes no further.
    - *clock*: tells seconds that only go forward, so that tests need not sleep; None: `time.monotonic`.

    Raises ConfigError for a configuration that can't be used, TypeError for another argument that can't work: a *store*
    without the methods of one, *listeners* that are no list, an async function. Nothing is connected here and no event
    loop is needed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: Config | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        store: PinStore | None = None,
        session_id: Callable[[Scope], str | None] | None = None,
        listeners: Iterable[Listener] = (),
        clock: Callable[[], float] | None = None,
    ) -> None:
        settings = Config.load(config)
        clock = clock or monotonic
        listeners = read_listeners(listeners)
        if session_id is not None:
            check_session_id(session_id)
        if store is not None:
            check_store(store)
        self.app = app
        self._sessions = SessionReader(
            settings.sessions,
            settings.sessions.sources if session_id is None else (),
            tells_tenants=settings.limits.max_pins_per_credential is not None,
        )
        self._call_session_id = session_id
        self._headers = HeaderPicker(HEADER_NAMES | self._sessions.header_names)
        self._signs = HeaderPicker(CONTROL_HEADERS | self._sessions.id_headers)  # without any there is nothing to do
        self._by_headers = session_id is None and not self._sessions.reads_bodies  # which alone tell the session
        self._endpoints = [(Patterns([endpoint.path]), endpoint) for endpoint in settings.endpoints]
        self._endpoint = lru_cache(maxsize=256)(self._find_endpoint)
        opened = open_store(settings, source_name(config), clock) if store is None else store
        self.runtime = make_runtime(app, settings, self._sessions, opened, listeners, clock)
        sources = settings.sessions.sources if session_id is None else ("session_id=",)
        self._notices = Notices(sources, self._sessions.id_headers, self.runtime.warn)
        self._heed_log_level()
        if type(opened) is not MemoryStore:
            _warn_of_guessable_ids(settings, self.runtime.warn)
        elif store is None:
            _warn_of_workers(self.runtime.warn)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if (kind == "http" and scope["method"] == "POST") or kind == "websocket":
            endpoint = self._endpoint(scope["path"])
            if endpoint is not None and SCOPE_KEY not in scope:  # where it is, an outer instance is at work
                exchange = self._open(endpoint, scope, receive, send)
                if exchange is not None and kind == "websocket":
                    return await PinnedSocket(exchange).run()
                if exchange is not None:
                    return await (handle_observed(exchange) if self._is_observed() else handle(exchange))
                if self._notices.debugs:
                    self._notices.sessionless(scope)
                scope[SCOPE_KEY] = None
                try:
                    return await self.app(scope, receive, send)
                finally:
                    scope.pop(SCOPE_KEY, None)
            if endpoint is None and self._notices.watches:
                self._notices.stray(scope, is_ignored=self._match(scope["path"]) is not None)
        elif kind == "lifespan":
            self._heed_log_level()
            send = self._with_lifespan(send)
        await self.app(scope, receive, send)
        return None

    def _is_observed(self) -> bool:
        runtime = self.runtime
        return bool(runtime.listeners or runtime.counters) or (
            runtime.tracing is not None and runtime.tracing.is_traced()
        )

    def _open(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> Exchange | None:
        """Return the exchange that a request needs; None if it has no session, and nothing that is forged."""
        headers = scope.get("headers", ())
        if type(headers) is not list:  # servers also give iterators
            headers = scope["headers"] = list(headers)
        if self._by_headers and self._signs.has_none(headers):
            return None
        picked = self._headers.pick(headers)
        session_id = self._sessions.find_id(picked) if self._call_session_id is None else self._ask_for_id(scope)
        if session_id is None and not self._sessions.reads_bodies and CONTROL_HEADERS.isdisjoint(picked):
            self._notices.mistyped(headers)
            self._signs.pick(headers)  # learns their names
            return None
        unusual = (
            not UNUSUAL_HEADERS.isdisjoint(picked)
            or len(picked.get(b"content-length", b"")) > 6  # a smaller body is read in no time
            or picked.get(b"authorization", b"").startswith(SIGV4)
        )
        if unusual:
            headers = without(headers, CONTROL_HEADERS)
        decides = endpoint.kind == "decision"
        return Exchange(self.runtime, endpoint, scope, receive, send, headers, picked, unusual, session_id, decides)

    def _ask_for_id(self, scope: Scope) -> bytes | None:
        assert self._call_session_id is not None
        try:
            session_id = self._call_session_id(scope)
            return None if session_id is None else self._sessions.use(session_id)
        except Exception:
            self.runtime.warn.failed("the session_id callable failed; requests go on without a session")
            return None

    async def aclose(self) -> None:
        """Close the store, also one that was given as *store*. Lifespan does it, but never reaches inside a `Mount`."""
        self.runtime.steering.close()
        await self.runtime.pins.aclose()

    async def forget(
        self, session_id: str, *, headers: Mapping[str, str] | None = None, model: str | None = None
    ) -> bool:
        """Give the pin of a session up, so that its next request is routed; tell whether there was one.

        *headers* are those of the session's requests that `sessions.partition_by` names (the client's credential), and
        *model* is the model that they ask for. Raises what the store raises.
        """
        is_gone = await self.runtime.pins.forget(self.key_of(session_id, headers, model))
        if is_gone:
            self.runtime.tell_change("forgotten")
        return is_gone

    def key_of(self, session_id: str, headers: Mapping[str, str] | None, model: str | None) -> bytes:
        """Return the key under which a session's pin is kept; the arguments are those of `forget`.

        Raises ValueError for what no request could have.
        """
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
        return self._sessions.key(self._sessions.use(session_id), self._headers.pick(pairs), model)

    def _heed_log_level(self) -> None:
        """Tell of each request from now on, if the log is at DEBUG."""
        if logger.isEnabledFor(logging.DEBUG) and not self._notices.debugs:
            self._notices.debugs = True
            self.runtime.listeners.append(self._notices.listen)

    def _find_endpoint(self, path: str) -> Endpoint | None:
        endpoint = self._match(path)
        return None if endpoint is None or endpoint.kind == "ignore" else endpoint

    def _match(self, path: str) -> Endpoint | None:
        for pattern, endpoint in self._endpoints:
            if pattern.match(path) or (path.endswith("/") and pattern.match(path[:-1])):
                return endpoint
        return None

    def _with_lifespan(self, send: Send) -> Send:
        async def start_or_close_and_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await self.runtime.steering.start()
            elif message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.aclose()
            await send(message)

        return start_or_close_and_send


def get_pinning(app: Any) -> SessionPinMiddleware:
    """Return the middleware in the stack of *app*, outermost first, to forget pins, or to close it.

    *app* is any ASGI app; what it wraps is looked for where Starlette has it (`middleware_stack`, then `app`). Raises
    LookupError if there is none: an app makes its stack when it starts.
    """
    layer = app
    for _ in range(_MAX_LAYERS):
        if isinstance(layer, SessionPinMiddleware):
            return layer
        layer = getattr(layer, "middleware_stack", None) or getattr(layer, "app", None)
    raise LookupError(
        "found no SessionPinMiddleware in this app; one that add_middleware adds is there once it started"
    )


def make_runtime(
    app: ASGIApp,
    config: Config,
    sessions: SessionReader,
    store: PinStore,
    listeners: Iterable[Listener],
    clock: Callable[[], float],
) -> Runtime:
    """Return what all requests of a middleware share."""
    routing = config.routing
    warn = Warnings(clock)
    pins = PinTable(
        store,
        make_resilient(store, config, clock),
        config,
        on_failure=partial(warn.failed, _STORE_FAILED),
        timer=clock,
    )
    listening = list(listeners)
    # What may end a pin before it lapses has its own way in `handle`.
    ends_early = routing.release != "never" or routing.retired_models or routing.session_max_age_seconds is not None
    runtime = Runtime(
        app=app,
        config=config,
        sessions=sessions,
        rules=ModelRules(config),
        is_routed=_routed_models(routing.router_models),
        pins=pins,
        find=store.find if type(store) is MemoryStore and not ends_early else None,
        health=Health(config, clock, compares_all=bool(listening)),
        buffers=Buffers(config.limits.max_buffered_bytes),
        remembered=RememberedDecisions(routing.session_ttl_seconds, clock, pins.now),
        hold_timer=HoldTimer(),
        warn=warn,
        steering=Steering(store, warn, clock),
        store=store,
        listeners=listening,
        counters=[],
        tracing=_find_tracing(),
        timer=clock,
        max_age=math.inf if routing.session_max_age_seconds is None else routing.session_max_age_seconds,
        renew_after=routing.session_ttl_seconds / 10 if routing.session_ttl_sliding else math.inf,
        max_request_bytes=config.limits.max_request_bytes,
        nothing_to_heed=NameMemory(),
    )
    if type(store) is MemoryStore:
        store.on_evict = partial(runtime.tell_change, "evicted")
    return runtime


def _find_tracing() -> Tracing | None:
    """Return what puts events onto spans, where OpenTelemetry is installed."""
    try:
        from .operate import tracing
    except ImportError:
        return None
    return tracing


def _routed_models(patterns: tuple[str, ...]) -> Callable[[AskedModel], bool] | None:
    """Return what tells whether the router decides for a model; a request that names none leaves it to the router."""
    if not patterns:
        return None
    routed = Patterns(patterns)
    return lambda asked: asked is None or (isinstance(asked, str) and routed.match(asked))


def _warn_of_guessable_ids(config: Config, warn: Warnings) -> None:
    sessions = config.sessions
    if sessions.secret is None and not sessions.partition_by:
        warn.once(
            "guessable",
            "sessions.partition_by has no credential: whoever can read the pins' shared store can find out which "
            "session ids it holds, if these can be guessed; set sessions.secret, the same in all processes",
        )


def _warn_of_workers(warn: Warnings) -> None:
    if count_workers(sys.argv, os.environ.get("WEB_CONCURRENCY", "")) > 1:
        warn.once(
            "workers",
            "store.url is memory:// and the server runs several workers: each one has its own pins, so a session "
            "can get a model for each of them",
        )


def count_workers(command: list[str], environment: str, servers: Set[str] = SERVERS) -> int:
    """Return how many workers a server's command line or the variable WEB_CONCURRENCY asks for."""
    counts = [environment]
    program = Path(command[0]) if command else Path()
    if program.name in servers or (program.name == "__main__.py" and program.parent.name in servers):
        words = re.sub(r"(?:^|(?<= ))-w(?=\d)|=", " -w ", " ".join(command[1:])).split()
        counts += [value for option, value in pairwise(words) if option in ("--workers", "-w")]
    return max([1, *(int(count) for count in counts if count.isdecimal())])
