"""SessionPinMiddleware: which requests are ours, and the life of what they share."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from time import monotonic
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .arguments import check_session_id, check_store, read_listeners
from .config import Config, Endpoint, source_name
from .config.patterns import Patterns
from .events import Listener
from .exchange import Exchange
from .handling import handle, handle_observed
from .pinning import Pinning
from .pins.health import LOOK_EVERY, Health
from .pins.table import PinTable
from .pins.turns import Turns
from .request.body import CONTROL_HEADERS, HEADER_NAMES, SCOPE_KEY, SIGV4, UNUSUAL_HEADERS
from .request.session import AskedModel, SessionReader
from .response.reader import DecisionRules
from .stores import MemoryStore, PinStore, make_resilient, open_store
from .ticker import Ticker
from .warnings import Warnings
from .wire.headers import HeaderPicker, NameMemory, header_name, without

LONGEST_LEASE_SECONDS = 30  # a process that dies while it decides holds the others up for no longer


class SessionPinMiddleware:
    """Keeps each session of an LLM proxy on the model that its first request was routed to.

    - *app*: the ASGI app.
    - *config*: a `Config`, the path of a YAML file, or a mapping of that file's shape; None: the defaults.
    - *store*: a `PinStore` to use instead of the one that the configuration names.
    - *session_id*: returns the session's id for a scope (from a cookie, a token's claim) or None, instead of
      `sessions.sources`. If it raises, that is logged and the request has no session.
    - *listeners*: each is called with a `PinEvent` when the app is done with a request that had a session. What they
      raise is logged and goes no further.

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
    ) -> None:
        settings = Config.load(config)
        routing = settings.routing
        listeners = read_listeners(listeners)
        if session_id is not None:
            check_session_id(session_id)
        if store is not None:
            check_store(store)
        self.app = app
        sources = settings.sessions.sources if session_id is None else ()
        self._sessions = SessionReader(settings.sessions, sources)
        self._call_session_id = session_id
        self._headers = HeaderPicker(HEADER_NAMES | self._sessions.header_names)
        self._by_headers = session_id is None and not self._sessions.reads_bodies  # which alone tell the session
        self._without_session = NameMemory()
        self._had_session = False
        self._endpoints = [(Patterns([endpoint.path]), endpoint) for endpoint in settings.endpoints]
        self._endpoint = lru_cache(maxsize=256)(self._find_endpoint)
        opened = open_store(settings, source_name(config)) if store is None else store
        watches = bool(listeners) or routing.session_max_age_seconds is not None
        table = PinTable(
            opened,
            make_resilient(opened, settings, monotonic),
            ttl_seconds=routing.session_ttl_seconds,
            max_age_seconds=routing.session_max_age_seconds,
            lease_seconds=min(routing.decision_wait_seconds, LONGEST_LEASE_SECONDS),
        )
        self._pinning = Pinning(
            app=app,
            config=settings,
            sessions=self._sessions,
            rules=DecisionRules(settings),
            is_routed=_routed_models(routing.router_models),
            table=table,
            find=opened.find if type(opened) is MemoryStore and not watches else None,
            turns=Turns(
                wait_seconds=routing.decision_wait_seconds,
                max_bytes=settings.limits.max_waiting_bytes,
                on_end=table.release,
            ),
            health=Health(settings, monotonic, look_every=1 if listeners else LOOK_EVERY),
            ticker=Ticker(),
            timer=monotonic,
            renew_after=routing.session_ttl_seconds / 10 if routing.session_ttl_sliding else math.inf,
            warn=Warnings(settings),
            listeners=listeners,
            max_request_bytes=settings.limits.max_request_bytes,
            tells=settings.response_headers,
            foreign=NameMemory(),
        )
        if type(opened) is not MemoryStore:
            self._pinning.warn.guessable()
        elif store is None:
            self._pinning.warn.workers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["method"] == "POST":
                endpoint = self._endpoint(scope["path"])
                if endpoint is not None and SCOPE_KEY not in scope:  # where it is, an outer instance is at work
                    exchange = self._open(endpoint, scope, receive, send)
                    if exchange is not None:
                        return await (handle_observed(exchange) if self._pinning.listeners else handle(exchange))
                    scope[SCOPE_KEY] = None
                    try:
                        return await self.app(scope, receive, send)
                    finally:
                        scope.pop(SCOPE_KEY, None)
        elif scope["type"] == "lifespan":
            send = self._closing(send)
        await self.app(scope, receive, send)
        return None

    def _open(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> Exchange | None:
        """Return the exchange that a request needs; None if it has no session, and nothing that is forged."""
        headers = scope.get("headers", ())
        if type(headers) is not list:  # servers also give iterators
            headers = scope["headers"] = list(headers)
        # One set operation settles requests without a session. It is wasted on those with one, which come in runs.
        if self._by_headers and not self._had_session and self._without_session.covers(map(header_name, headers)):
            return None
        picked = self._headers.pick(headers)
        session_id = self._sessions.find_id(picked) if self._call_session_id is None else self._ask_for_id(scope)
        self._had_session = session_id is not None
        if session_id is None and not self._sessions.reads_bodies and CONTROL_HEADERS.isdisjoint(picked):
            if self._by_headers:
                self._without_session.learn(headers)
            return None
        unusual = (
            not UNUSUAL_HEADERS.isdisjoint(picked)
            or len(picked.get(b"content-length", b"")) > 6  # a smaller body is read in no time
            or picked.get(b"authorization", b"").startswith(SIGV4)
        )
        if unusual:
            headers = without(headers, CONTROL_HEADERS)
        decides = endpoint.kind == "decision"
        return Exchange(self._pinning, endpoint, scope, receive, send, headers, picked, unusual, session_id, decides)

    def _ask_for_id(self, scope: Scope) -> bytes | None:
        assert self._call_session_id is not None
        try:
            session_id = self._call_session_id(scope)
            return None if session_id is None else self._sessions.use(session_id)
        except Exception:
            self._pinning.warn.failed("the session_id callable failed; requests go on without a session")
            return None

    async def aclose(self) -> None:
        """Close the store, also one that was given as *store*. Lifespan does it, but never reaches inside a `Mount`."""
        await self._pinning.table.aclose()

    async def forget(
        self, session_id: str, *, headers: Mapping[str, str] | None = None, model: str | None = None
    ) -> bool:
        """Give the pin of a session up, so that its next request is routed; tell whether there was one.

        *headers* are those of the session's requests that `sessions.partition_by` names (the client's credential), and
        *model* is the model that they ask for. Raises what the store raises.
        """
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
        return await self._pinning.table.forget(
            self._sessions.key(self._sessions.use(session_id), self._headers.pick(pairs), model)
        )

    def _find_endpoint(self, path: str) -> Endpoint | None:
        for pattern, endpoint in self._endpoints:
            if pattern.match(path) or (path.endswith("/") and pattern.match(path[:-1])):
                return None if endpoint.kind == "ignore" else endpoint
        return None

    def _closing(self, send: Send) -> Send:
        async def send_and_close(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.aclose()
            await send(message)

        return send_and_close


def _routed_models(patterns: tuple[str, ...]) -> Callable[[AskedModel], bool] | None:
    """Return what tells whether the router decides for a model; a request that names none leaves it to the router."""
    if not patterns:
        return None
    routed = Patterns(patterns)
    return lambda asked: asked is None or (isinstance(asked, str) and routed.match(asked))
