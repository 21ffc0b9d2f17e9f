"""One request's way through: read what it asks for, look for its pin, call the app, learn from the response."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

from ._headers import Headers, NameMemory
from ._json import Members, decode_members, put_model
from ._log import Opaque
from ._warnings import Warnings
from .answer import Answer
from .config import Config, Endpoint
from .decision import DecisionEditor, ask_for_identity, remember, remember_route, reply
from .events import Listener, PinEvent
from .pins import Pin, PinTable
from .request import RequestBody, inner_scope, pinned_headers, why_unreadable
from .response import MAX_NAME, DecisionRules, ResponseReader
from .session import AskedModel, SessionReader, asked_model

AnswerT = TypeVar("AnswerT")


class Stated(NamedTuple):
    """A decision that the app's own router stated, with the object to keep of it."""

    model: str
    decision: bytes | None


@dataclass(frozen=True, slots=True)
class Pinning:
    """What all exchanges of one middleware share."""

    app: ASGIApp
    config: Config
    sessions: SessionReader
    rules: DecisionRules
    is_routed: Callable[[AskedModel], bool] | None  # None: the router decides for any model
    table: PinTable
    warn: Warnings
    listeners: tuple[Listener, ...]
    max_request_bytes: int
    tells: bool  # whether responses get our headers
    foreign: NameMemory  # headers of responses that are none of ours


class Exchange(Opaque):
    """One request on one of our endpoints, with a session as far as its headers tell."""

    pinning: Pinning
    endpoint: Endpoint
    scope: Scope
    server_receive: Receive
    server_send: Send
    headers: Headers  # for the app
    picked: dict[bytes, bytes]
    unusual: bool
    session_id: bytes | None
    decides: bool
    status: bytes = b"miss"
    reason: bytes | None = None
    key: bytes = b""  # empty until the request is known to be one that is pinned
    asked: str | None = None  # the model's name in the request, where it is one
    learns: bool = False  # whether the response is looked at for a decision
    stated: Stated | None = None
    is_stated: bool = False  # and the response has nothing to add to it
    model: str | None = None  # the pinned one
    store_seconds: float = 0.0

    async def run_observed(self) -> None:
        """Do as `run`, and tell the listeners."""
        try:
            await self.run()
        finally:
            if self.session_id is not None:
                self._tell_listeners()

    async def run(self) -> None:
        """Take the request through the app, exactly once, or answer it from the pin."""
        pinning, picked, session_id = self.pinning, self.picked, self.session_id
        if session_id is None and not pinning.sessions.reads_bodies:
            return await self._call(self.headers, self.server_receive, self.server_send)
        control = picked.get(b"x-session-pin", b"").strip().lower() if self.unusual else b""
        if control == b"off":
            return await self._pass_on(b"off", None, self.server_receive)
        if session_id == b"":
            return await self._pass_on(b"ignored", b"invalid-session-id", self.server_receive)
        unreadable = why_unreadable(picked, pinning.max_request_bytes) if self.unusual else None
        if unreadable is not None:
            return await self._pass_on(b"ignored", unreadable, self.server_receive)

        body = RequestBody(self.server_receive)
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
        if pinning.is_routed is not None and not pinning.is_routed(asked):
            return await self._pass_on(b"ignored", b"model-not-routed", body.receive)
        self.key = pinning.sessions.key(session_id, picked, asked)
        pin = None
        try:
            asking = pinning.table.look_up(self.key)
            pin = await (self.timed(asking) if pinning.listeners else asking)
            if control == b"reset" and pin is not None:
                await self.timed(pinning.table.give_up(self.key, pin))
                pin = None
        except Exception:
            self.store_failed()
            pin = None
        if pin is None:
            self.asked = asked if isinstance(asked, str) and len(asked) <= MAX_NAME else None
            return await self._route(body, session_id)
        self.status = b"hit"
        self.model = pin.model
        if self.decides:
            return await self._reply(pin, session_id)
        if not pinning.sessions.by_model and asked != pin.model:
            pinning.warn.overridden(asked, pin.model)
        return await self._use(pin, members, body)

    def _pass_on(self, status: bytes, reason: bytes | None, receive: Receive) -> Awaitable[None]:
        if self.session_id is None:  # a source in the body comes first, and the body tells nothing
            self.session_id = self.pinning.sessions.find_id(self.picked, {})
            if self.session_id is None:
                return self._call(self.headers, receive, self.server_send)
        self.status = status
        self.reason = reason
        return self._call(self.headers, receive, Answer(self, self.server_send).send)

    def _use(self, pin: Pin, members: Members, body: RequestBody) -> Awaitable[None]:
        content = put_model(members, pin.model)
        body.replace(content)
        headers = pinned_headers(self.headers, self.picked, len(content), pin.model.encode())
        scope = inner_scope(self.scope, headers, self)
        return self.pinning.app(scope, body.receive, Answer(self, self.server_send).send)

    def _route(self, body: RequestBody, session_id: bytes) -> Awaitable[None]:
        self.learns = True
        send = Answer(self, self.server_send).send
        if not self.decides:
            return self._call(self.headers, body.receive, send)
        return self._route_decision(body, session_id, send)

    async def _route_decision(self, body: RequestBody, session_id: bytes, send: Send) -> None:
        editor = DecisionEditor(send, session_id, self.pinning.config.limits.max_inspected_response_bytes)
        await self._call(ask_for_identity(self.headers), body.receive, editor.send)
        await editor.release()

    async def _reply(self, pin: Pin, session_id: bytes) -> None:
        content = reply(pin, session_id, self.headers)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        answer = Answer(self, self.server_send)
        await answer.send({"type": "http.response.start", "status": 200, "headers": headers})
        await answer.send({"type": "http.response.body", "body": content, "more_body": False})

    def _call(self, headers: Headers, receive: Receive, send: Send) -> Awaitable[None]:
        return self.pinning.app(inner_scope(self.scope, headers, self), receive, send)

    def state(self, model: str, route: str | None) -> None:
        """Take the decision from the app's own router, unless the response has settled it."""
        if not self.pinning.rules.is_usable(model):
            self.pinning.warn.unusable(str(model))
        elif self.learns:
            self.stated = Stated(model, remember_route(model, route))
            self.is_stated = not self.decides

    def decide(self, reader: ResponseReader) -> tuple[str, bytes | None] | None:
        """Return the model that was stated, or that the response names, and the decision object to keep with it."""
        found = reader.decision
        if self.stated is not None and not (reader.failed and self.decides):
            return self.stated.model, remember(reader.members) if self.decides else self.stated.decision
        if found is None:
            if not reader.failed:
                self.pinning.warn.unnamed()
            return None
        if found.model is None:
            self.pinning.warn.unusable(found.name)
            return None
        if found.model == self.asked:
            self.pinning.rules.check_echo(reader.headers, self.pinning.warn)
        return found.model, remember(reader.members) if self.decides else None

    def store_failed(self) -> None:
        """Go on without the store."""
        self.reason = b"store-unavailable"
        self.pinning.warn.failed("the pin store failed; requests go on without a pin")

    async def timed(self, asking: Awaitable[AnswerT]) -> AnswerT:
        """Count the time that the store takes, for the listeners."""
        started = perf_counter()
        try:
            return await asking
        finally:
            self.store_seconds += perf_counter() - started

    def _tell_listeners(self) -> None:
        event = PinEvent(
            status=self.status.decode(),
            reason=None if self.reason is None else self.reason.decode(),
            endpoint=self.endpoint.path,
            model=self.model,
            key=self.key.hex() if self.key else None,
            store_seconds=self.store_seconds,
        )
        for listener in self.pinning.listeners:
            try:
                listener(event)
            except Exception:
                self.pinning.warn.failed("a listener failed")
