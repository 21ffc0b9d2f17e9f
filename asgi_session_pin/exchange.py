"""One request's way through: read what it asks for, look for its pin, call the app, learn from the response."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from ._headers import Headers, without
from ._json import Members, decode_members, put_model
from ._log import logger
from ._warnings import Warnings
from .answer import Answer
from .config import Config, Endpoint
from .decision import DecisionEditor, ask_for_identity, remember, remember_route, reply
from .events import Listener, PinEvent
from .pins import Pin, PinTable
from .request import CONTROL_HEADERS, PINNED, RequestBody, pinned_headers, why_unreadable
from .response import MAX_NAME, DecisionRules, ResponseReader
from .session import AskedModel, SessionReader, asked_model

SCOPE_KEY = "asgi_session_pin"
NOT_PINNED = (b"x-session-pinned", b"false")


class Stated(NamedTuple):
    """A decision that the app's own router stated."""

    model: str
    route: str | None


@dataclass(frozen=True, slots=True)
class Pinning:
    """What all exchanges of one middleware share."""

    app: ASGIApp
    config: Config
    sessions: SessionReader
    rules: DecisionRules
    is_routed: Callable[[AskedModel], bool]
    table: PinTable
    warn: Warnings
    listeners: tuple[Listener, ...]
    max_request_bytes: int
    tells: bool  # whether responses get our headers


class Exchange:
    """One request on one of our endpoints, with a session as far as its headers tell."""

    status = b"miss"
    reason: bytes | None = None
    key = b""  # empty until the request is known to be one that is pinned
    asked: str | None = None  # the model's name in the request, where it is one
    learns = False  # whether the response is looked at for a decision
    stated: Stated | None = None
    model: str | None = None  # the pinned one
    _pinned = NOT_PINNED
    _model_header: Headers = []  # noqa: RUF012 - read only: replaced, never changed
    _store_seconds = 0.0

    def __init__(
        self,
        pinning: Pinning,
        endpoint: Endpoint,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Headers,
        picked: dict[bytes, bytes],
        unusual: bool,
        session_id: bytes | None,
    ) -> None:
        self.pinning = pinning
        self.decides = endpoint.kind == "decision"
        self.session_id = session_id
        self._endpoint = endpoint
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = without(headers, CONTROL_HEADERS) if unusual else headers
        self._picked = picked
        self._unusual = unusual

    async def run_observed(self) -> None:
        """Do as `run`, and tell the listeners."""
        try:
            await self.run()
        finally:
            if self.session_id is not None:
                self._tell_listeners()

    async def run(self) -> None:
        """Take the request through the app, exactly once, or answer it from the pin."""
        pinning, picked, session_id = self.pinning, self._picked, self.session_id
        if session_id is None and not pinning.sessions.reads_bodies:
            return await self._call(self._headers, self._receive, self._send)
        control = picked[b"x-session-pin"].strip().lower() if b"x-session-pin" in picked else b""
        if control == b"off":
            return await self._pass_on(b"off", None, self._receive)
        if session_id == b"":
            return await self._pass_on(b"ignored", b"invalid-session-id", self._receive)
        unreadable = why_unreadable(picked, self._unusual, pinning.max_request_bytes)
        if unreadable is not None:
            return await self._pass_on(b"ignored", unreadable, self._receive)

        body = RequestBody(self._receive)
        content = await body.read(pinning.max_request_bytes)
        if content is None:
            reason = b"client-disconnected" if body.cut_off else b"body-too-large"
            return await self._pass_on(b"ignored", reason, body.receive)
        try:
            members = decode_members(content)
        except ValueError:
            return await self._pass_on(b"ignored", b"body-not-json", body.receive)

        if session_id is None:
            session_id = self.session_id = pinning.sessions.find_id(picked, members)
            if not session_id:
                return await self._pass_on(b"ignored", b"invalid-session-id", body.receive)
        asked = asked_model(members)
        if not pinning.is_routed(asked):
            return await self._pass_on(b"ignored", b"model-not-routed", body.receive)
        self.key = pinning.sessions.key(session_id, picked, asked)
        pin = await self._ask_store(pinning.table.forget if control == b"reset" else pinning.table.look_up, self.key)
        if pin is None:
            self.asked = asked if isinstance(asked, str) and len(asked) <= MAX_NAME else None
            return await self._route(body, session_id)
        self.status = b"hit"
        self._pinned = PINNED
        self._set_model(pin)
        if self.decides:
            return await self._reply(pin, session_id)
        if not pinning.sessions.by_model and asked != pin.model:
            pinning.warn.overridden(asked, pin.model)
        return await self._use(pin, members, body)

    def _pass_on(self, status: bytes, reason: bytes | None, receive: Receive) -> Awaitable[None]:
        if self.session_id is None:
            return self._call(self._headers, receive, self._send)
        self.status = status
        self.reason = reason
        return self._call(self._headers, receive, Answer(self, self._send).send)

    def _use(self, pin: Pin, members: Members, body: RequestBody) -> Awaitable[None]:
        content = put_model(members, pin.model)
        body.replace(content)
        headers = pinned_headers(self._headers, self._picked, len(content), [PINNED, *self._model_header])
        return self._call(headers, body.receive, Answer(self, self._send).send)

    def _route(self, body: RequestBody, session_id: bytes) -> Awaitable[None]:
        self.learns = True
        send = Answer(self, self._send).send
        if not self.decides:
            return self._call(self._headers, body.receive, send)
        limit = self.pinning.config.limits.max_inspected_response_bytes
        editor = DecisionEditor(send, session_id, limit)
        return self._call(ask_for_identity(self._headers), body.receive, editor.send)

    async def _reply(self, pin: Pin, session_id: bytes) -> None:
        content = reply(pin, session_id, self._headers)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        answer = Answer(self, self._send)
        await answer.send({"type": "http.response.start", "status": 200, "headers": headers})
        await answer.send({"type": "http.response.body", "body": content, "more_body": False})

    async def _call(self, headers: Headers, receive: Receive, send: Send) -> None:
        """Call the app with other headers; what it adds to its scope is in the server's own afterwards."""
        scope = self._scope
        inner = {**scope, "headers": headers, SCOPE_KEY: self}
        try:
            await self.pinning.app(inner, receive, send)
        finally:
            inner["headers"] = scope["headers"]
            del inner[SCOPE_KEY]
            scope.update(inner)

    def response_headers(self) -> Headers:
        """Return what the client is told of its pin."""
        status = self.status if self.reason is None else self.status + b"; reason=" + self.reason
        return [self._pinned, (b"x-session-pin-status", status), *self._model_header]

    def state(self, model: str, route: str | None) -> None:
        """Take the decision from the app's own router, unless the response has settled it."""
        if not self.pinning.rules.is_usable(model):
            self.pinning.warn.unusable(str(model))
        elif self.learns:
            self.stated = Stated(model, route)

    @property
    def is_stated(self) -> bool:
        """Whether the response has nothing to add to what was stated."""
        return self.stated is not None and not self.decides

    async def record(self, reader: ResponseReader) -> None:
        """Keep the decision that was stated, or that the response names."""
        found = reader.decision
        if self.stated is not None:
            model, route = self.stated
        elif found is None:
            return self.pinning.warn.unnamed()
        elif found.model is None:
            return self.pinning.warn.unusable(found.name)
        else:
            model, route = found.model, None
            if model == self.asked:
                self.pinning.rules.check_echo(reader.headers, self.pinning.warn)
        decision = remember(reader.members) if self.decides else remember_route(model, route)
        pin = await self._ask_store(self.pinning.table.record, self.key, model, decision)
        if pin is not None:
            self._set_model(pin)
        return None

    def _set_model(self, pin: Pin) -> None:
        self.model = pin.model
        self._model_header = [(b"x-session-model", pin.model.encode())]

    async def _ask_store(self, ask: Callable[..., Awaitable[Pin | None]], *arguments: Any) -> Pin | None:
        """Return what the store says; None too if it fails, which must not fail the request."""
        started = perf_counter()
        try:
            return await ask(*arguments)
        except Exception:
            self.reason = b"store-unavailable"
            logger.warning("the pin store failed; the request goes on without a pin", exc_info=True)
            return None
        finally:
            self._store_seconds += perf_counter() - started

    def _tell_listeners(self) -> None:
        event = PinEvent(
            status=self.status.decode(),
            reason=None if self.reason is None else self.reason.decode(),
            endpoint=self._endpoint.path,
            model=self.model,
            key=self.key.hex() if self.key else None,
            store_seconds=self._store_seconds,
        )
        for listener in self.pinning.listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("a listener failed")
