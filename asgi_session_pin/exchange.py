"""One request's way through: read what it asks for, look for its pin, call the app, learn from the response."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from ._headers import Headers, without
from ._json import Members, decode_members, put_model
from ._log import WarnOnce, logger
from .answer import Answer
from .config import Config
from .decision import DecisionEditor, ask_for_identity, remember, reply
from .pins import Pin, PinTable
from .request import CONTROL_HEADERS, PINNED, RequestBody, pinned_headers, why_unreadable
from .response import MAX_NAME, DecisionRules, ResponseReader
from .session import AskedModel, SessionReader, asked_model

SCOPE_KEY = "asgi_session_pin"
NOT_PINNED = (b"x-session-pinned", b"false")


@dataclass(frozen=True, slots=True)
class Pinning:
    """What all exchanges of one middleware share."""

    app: ASGIApp
    config: Config
    sessions: SessionReader
    rules: DecisionRules
    is_routed: Callable[[AskedModel], bool]
    table: PinTable
    warn: WarnOnce
    max_request_bytes: int
    tells: bool  # whether responses get our headers


class Exchange:
    """One request with a session, on one of our endpoints."""

    status = b"miss"
    reason: bytes | None = None
    asked: str | None = None  # the model's name in the request, where it is one
    learns = False  # whether the response is looked at for a decision
    stated: str | None = None  # the decision that the app's own router stated
    _key = b""
    _pinned = NOT_PINNED
    _model: Headers = []  # noqa: RUF012 - read only: replaced, never changed

    def __init__(
        self,
        pinning: Pinning,
        kind: str,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Headers,
        picked: dict[bytes, bytes],
        unusual: bool,
    ) -> None:
        self.pinning = pinning
        self.decides = kind == "decision"
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = without(headers, CONTROL_HEADERS) if unusual else headers
        self._picked = picked
        self._unusual = unusual

    async def run(self, session_id: bytes | None) -> None:
        """Take the request through the app, exactly once, or answer it from the pin."""
        pinning, picked = self.pinning, self._picked
        if session_id is None:
            return await self._call(self._headers, self._receive, self._send)
        control = picked[b"x-session-pin"].strip().lower() if b"x-session-pin" in picked else b""
        if control == b"off":
            return await self._pass_on(b"off", None, self._receive)
        if not session_id:
            return await self._pass_on(b"ignored", b"invalid-session-id", self._receive)
        unreadable = why_unreadable(picked, self._unusual, pinning.max_request_bytes)
        if unreadable is not None:
            return await self._pass_on(b"ignored", unreadable, self._receive)

        body = RequestBody(self._receive)
        content = await body.read(pinning.max_request_bytes)
        if content is None:
            return await self._pass_on(b"ignored", b"body-too-large", body.receive)
        try:
            members = decode_members(content)
        except ValueError:
            return await self._pass_on(b"ignored", b"body-not-json", body.receive)

        asked = asked_model(members)
        if not pinning.is_routed(asked):
            return await self._pass_on(b"ignored", b"model-not-routed", body.receive)
        self._key = pinning.sessions.key(session_id, picked, asked)
        pin = None
        try:
            if control == b"reset":
                await pinning.table.forget(self._key)
            else:
                pin = await pinning.table.look_up(self._key)
        except Exception:
            self._store_failed()
        if pin is None:
            self.asked = asked if isinstance(asked, str) and len(asked) <= MAX_NAME else None
            return await self._route(body, session_id)
        self.status = b"hit"
        self._pinned = PINNED
        self._model = [(b"x-session-model", pin.model.encode())]
        if self.decides:
            return await self._reply(pin, session_id)
        return await self._use(pin, members, body)

    def _pass_on(self, status: bytes, reason: bytes | None, receive: Receive) -> Awaitable[None]:
        self.status = status
        self.reason = reason
        return self._call(self._headers, receive, Answer(self, self._send).send)

    def _use(self, pin: Pin, members: Members, body: RequestBody) -> Awaitable[None]:
        content = put_model(members, pin.model)
        body.replace(content)
        headers = pinned_headers(self._headers, self._picked, len(content), [PINNED, *self._model])
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
        return [self._pinned, (b"x-session-pin-status", status), *self._model]

    async def record(self, reader: ResponseReader) -> None:
        """Keep the decision that the response named, if it did."""
        found = reader.decision
        if found is None:
            return self._warn_unnamed()
        if found.model is None:
            return self._warn_unusable(found.name)
        decision = remember(reader.members) if self.decides else None
        try:
            pin = await self.pinning.table.record(self._key, found.model, decision)
        except Exception:
            return self._store_failed()
        self._model = [(b"x-session-model", pin.model.encode())]
        return None

    def _store_failed(self) -> None:
        self.reason = b"store-unavailable"
        logger.warning("the pin store failed; the request goes on without a pin", exc_info=True)

    def _warn_unnamed(self) -> None:
        self.pinning.warn(
            "unnamed",
            "a response names no model where decisions.sources look for it, so nothing is pinned: %s",
            ", ".join(self.pinning.config.decisions.sources),
        )

    def _warn_unusable(self, name: str) -> None:
        self.pinning.warn(
            ("unusable", name[:MAX_NAME]),
            "a response names its model %r, which is no decision, so nothing is pinned; see decisions.sources",
            name[:MAX_NAME],
        )
