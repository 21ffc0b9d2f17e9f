"""One request's way through: read what it asks for, look for its pin, call the app, learn from the response."""

from collections.abc import Awaitable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._headers import Headers, header_list, without
from ._json import Members, decode_members, decode_string
from ._log import WarnOnce, logger
from ._patterns import Patterns
from .config import Config
from .decision import DecisionEditor, ask_for_identity, remember, reply
from .pins import Pin, PinTable
from .request import CONTROL_HEADERS, RequestBody, pinned_headers, put_model, why_unreadable
from .response import MAX_NAME, RESPONSE_HEADERS, DecisionRules, ResponseReader
from .session import AskedModel, SessionReader

PINNED = (b"x-session-pinned", b"true")
NOT_PINNED = (b"x-session-pinned", b"false")


@dataclass(frozen=True, slots=True)
class Pinning:
    """What all exchanges of one middleware share."""

    app: ASGIApp
    config: Config
    sessions: SessionReader
    rules: DecisionRules
    router_models: Patterns
    table: PinTable
    warn: WarnOnce


async def call_with(app: ASGIApp, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
    """Call *app* with other headers; what it adds to its scope (route, path_params) is in *scope* afterwards."""
    inner = {**scope, "headers": headers}
    try:
        await app(inner, receive, send)
    finally:
        inner["headers"] = scope["headers"]
        scope.update(inner)


class Exchange:
    """One request with a session, on one of our endpoints."""

    __slots__ = (
        "_asked",
        "_decides",
        "_headers",
        "_key",
        "_model",
        "_picked",
        "_pinning",
        "_reader",
        "_receive",
        "_scope",
        "_send",
        "_session_id",
        "_settled",
        "_status",
        "_unavailable",
    )

    def __init__(
        self,
        pinning: Pinning,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Headers,
        picked: dict[bytes, bytes],
        session_id: bytes,
        decides: bool,
    ) -> None:
        self._pinning = pinning
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = headers
        self._picked = picked
        self._session_id = session_id
        self._decides = decides
        self._status = b""
        self._asked: str | None = None
        self._key: bytes | None = None  # None: nothing is learned from the response
        self._model: str | None = None
        self._reader: ResponseReader | None = None
        self._settled = False
        self._unavailable = False

    async def run(self) -> None:
        """Take the request through the app, exactly once, or answer it from the pin."""
        pinning, picked = self._pinning, self._picked
        control = picked.get(b"x-session-pin", b"").strip().lower()
        if control == b"off":
            return await self._pass_on(b"off", self._receive)
        if not pinning.sessions.is_valid(self._session_id):
            return await self._pass_on(b"ignored; reason=invalid-session-id", self._receive)
        limit = pinning.config.limits.max_request_bytes
        if reason := why_unreadable(picked, limit):
            return await self._pass_on(b"ignored; reason=" + reason, self._receive)

        body = RequestBody(self._receive)
        content = await body.read(limit)
        if content is None:
            if body.cut_off:
                return await self._call(self._cleared_headers(), body.receive, self._send)
            return await self._pass_on(b"ignored; reason=body-too-large", body.receive)
        try:
            members = decode_members(content)
        except ValueError:
            return await self._pass_on(b"ignored; reason=body-not-json", body.receive)

        asked = _asked_model(members)
        if not self._is_routed(asked):
            return await self._pass_on(b"ignored; reason=model-not-routed", body.receive)
        key = pinning.sessions.key(self._session_id, picked, asked)
        pin = await self._look_up(key, reset=control == b"reset")
        if pin is None:
            self._key = key
            self._asked = asked if isinstance(asked, str) and len(asked) <= MAX_NAME else None
            await self._route(body)
        elif self._decides:
            await self._reply(pin)
        else:
            await self._use(pin, members, body)
        return None

    def _is_routed(self, asked: AskedModel) -> bool:
        if asked is None or not self._pinning.config.routing.router_models:
            return True
        return isinstance(asked, str) and self._pinning.router_models.match(asked)

    async def _look_up(self, key: bytes, reset: bool) -> Pin | None:
        table = self._pinning.table
        try:
            if not reset:
                return await table.look_up(key)
            await table.forget(key)
        except Exception:
            self._store_failed()
        return None

    async def _pass_on(self, status: bytes, receive: Receive) -> None:
        self._status = status
        await self._call(self._cleared_headers(), receive, self.send)

    async def _use(self, pin: Pin, members: Members, body: RequestBody) -> None:
        content = put_model(members, pin.model)
        body.replace(content)
        self._status = b"hit"
        self._model = pin.model
        headers = pinned_headers(self._headers, self._picked, len(content), pin.model)
        await self._call(headers, body.receive, self.send)

    async def _route(self, body: RequestBody) -> None:
        self._status = b"miss"
        headers = self._cleared_headers()
        if not self._decides:
            return await self._call(headers, body.receive, self.send)
        limit = self._pinning.config.limits.max_inspected_response_bytes
        editor = DecisionEditor(self.send, self._session_id, limit)
        await self._call(ask_for_identity(headers), body.receive, editor.send)
        return None

    async def _reply(self, pin: Pin) -> None:
        self._status = b"hit"
        self._model = pin.model
        content = reply(pin, self._session_id, self._headers)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send({"type": "http.response.body", "body": content, "more_body": False})

    async def _call(self, headers: Headers, receive: Receive, send: Send) -> None:
        if headers is self._headers:
            await self._pinning.app(self._scope, receive, send)
        else:
            await call_with(self._pinning.app, self._scope, headers, receive, send)

    def _cleared_headers(self) -> Headers:
        """Return the request's headers without those that are between the client and us."""
        if CONTROL_HEADERS.isdisjoint(self._picked):
            return self._headers
        return without(self._headers, CONTROL_HEADERS)

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`. A plain function: once there is nothing more to do, a message costs one flag check."""
        if self._settled:
            return self._send(message)
        return self._observe(message)

    async def _observe(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = await self._start(message)
        elif self._reader is not None and message["type"] == "http.response.body":
            self._reader.feed(message.get("body", b""), message.get("more_body", False))
            await self._settle(self._reader)
        await self._send(message)

    async def _start(self, message: Message) -> Message:
        pinning = self._pinning
        headers = header_list(message.get("headers", ()))
        picked = pinning.rules.headers.pick(headers)
        if self._key is None or not 200 <= message["status"] < 300:
            self._settled = True
        else:
            self._reader = ResponseReader(pinning.rules, picked, self._asked, whole=self._decides)
            await self._settle(self._reader)
        if not pinning.config.response_headers:
            return {**message, "headers": headers}
        if not RESPONSE_HEADERS.isdisjoint(picked):
            headers = without(headers, RESPONSE_HEADERS)
        return {**message, "headers": [*headers, *self._response_headers()]}

    def _response_headers(self) -> Headers:
        status = self._status
        if self._unavailable:
            status += b"; reason=store-unavailable"
        headers = [PINNED if self._status == b"hit" else NOT_PINNED, (b"x-session-pin-status", status)]
        if self._model is not None:
            headers.append((b"x-session-model", self._model.encode()))
        return headers

    async def _settle(self, reader: ResponseReader) -> None:
        """Record what the reader found, once it has finished, before the message that told it goes on."""
        if not reader.finished:
            return
        self._settled = True
        self._reader = None
        if reader.decision is None:
            self._warn_unnamed()
        elif reader.decision.model is None:
            self._warn_unusable(reader.decision.name)
        elif self._key is not None:
            decision = remember(reader.members) if self._decides else None
            try:
                pin = await self._pinning.table.record(self._key, reader.decision.model, decision)
                self._model = pin.model
            except Exception:
                self._store_failed()

    def _store_failed(self) -> None:
        self._unavailable = True
        logger.warning("the pin store failed; the request goes on without a pin", exc_info=True)

    def _warn_unnamed(self) -> None:
        self._pinning.warn(
            "unnamed",
            "a response names no model where decisions.sources look for it, so nothing is pinned: %s",
            ", ".join(self._pinning.config.decisions.sources),
        )

    def _warn_unusable(self, name: str) -> None:
        self._pinning.warn(
            ("unusable", name[:MAX_NAME]),
            "a response names its model %r, which is no decision, so nothing is pinned; see decisions.sources",
            name[:MAX_NAME],
        )


def _asked_model(members: Members) -> AskedModel:
    value = members.get("model")
    if value is None:
        return None
    name = decode_string(value)
    if name is not None:
        return name
    text = bytes(value)
    return None if text == b"null" else text
