"""Decision endpoints: services that only say which model they would use."""

import contextlib
import re
import secrets

from starlette.types import Message, Send

from ..pin import Pin
from ..request.scope import FRAMING_HEADERS, SIGNATURE_HEADERS
from ..wire.headers import JSON, HeaderPicker, Headers, content_length, is_identity, media_type, without
from ..wire.json import Members, decode_members, encode_json
from ..wire.messages import body_of

MAX_REMEMBERED_BYTES = 8_192

_traceparent = HeaderPicker([b"traceparent"])
# W3C Trace Context, section 3.2: version, trace id, parent id, flags; an id of zeros is none.
_trace_id = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?").fullmatch


def ask_for_identity(headers: Headers) -> Headers:
    """Return a copy of a request's headers that asks for an answer as it is, so that it can be edited."""
    return [*without(headers, {b"accept-encoding"}), (b"accept-encoding", b"identity")]


def remember(members: Members) -> bytes | None:
    """Return the decision object as it is kept with the pin: without the session's id, which is a secret."""
    kept = {name: value for name, value in members.items() if name not in ("session_id", "pinned")}
    text = encode_json(kept)
    return text if kept and len(text) <= MAX_REMEMBERED_BYTES else None


def remember_route(model: str, route: str | None) -> bytes | None:
    """Return the decision object of a decision that was stated with its route, if that is text that can be written."""
    try:
        return remember(decode_members(encode_json({"model": model, "route": route}))) if type(route) is str else None
    except ValueError:  # a lone surrogate
        return None


def reply(pin: Pin, session_id: bytes, headers: Headers) -> bytes:
    """Return the body that answers for the app: the remembered decision, or the model alone."""
    members: dict[str, object] = {"model": pin.model}
    if pin.decision is not None:
        with contextlib.suppress(ValueError):  # a store gave something else than it was given
            members = dict(decode_members(pin.decision))
    if "trace_id" in members:
        traced = _trace_id(_traceparent.pick(headers).get(b"traceparent", b""))
        members["trace_id"] = traced[1].decode() if traced else secrets.token_hex(16)
    return encode_json(members | {"session_id": session_id.decode(errors="replace"), "pinned": True})


class DecisionEditor:
    """Adds `session_id` and `pinned` to the JSON object that the app answers with.

    The answer is held until it is whole, up to *limit* bytes; whatever can't be edited passes as it is.
    """

    _headers = HeaderPicker({b"content-type", b"content-length", b"content-encoding", *SIGNATURE_HEADERS})

    def __init__(self, send: Send, session_id: bytes, limit: int) -> None:
        self._send = send
        self._session_id = session_id
        self._limit = limit
        self._start: Message | None = None
        self._content = bytearray()

    async def send(self, message: Message) -> None:
        """The app's `send`."""
        if message["type"] == "http.response.start":
            message = {**message, "headers": list(message.get("headers", ()))}  # apps also give iterators
        if message["type"] == "http.response.start" and self._is_editable(message):
            self._start = message
        elif self._start is None or message["type"] != "http.response.body":
            await self.flush()
            await self._send(message)
        else:
            self._content += body_of(message)
            more = message.get("more_body", False)
            if not more and len(self._content) <= self._limit:
                self._edit(self._start)
            if not more or len(self._content) > self._limit:
                await self.flush(more)

    async def flush(self, more: bool = True) -> None:
        """Send what is held: it is edited, or can't be, or the app returned before its answer was whole."""
        if self._start is not None:
            start, self._start = self._start, None
            await self._send(start)
            if self._content or not more:
                await self._send({"type": "http.response.body", "body": bytes(self._content), "more_body": more})

    def _is_editable(self, start: Message) -> bool:
        headers = self._headers.pick(start["headers"])
        return (
            200 <= start["status"] < 300
            and media_type(headers.get(b"content-type", b"")) == JSON
            and is_identity(headers.get(b"content-encoding", b""))
            and SIGNATURE_HEADERS.isdisjoint(headers)
            and (content_length(headers) or 0) <= self._limit
        )

    def _edit(self, start: Message) -> None:
        try:
            members = decode_members(bytes(self._content))
        except ValueError:
            return
        ours = {"session_id": self._session_id.decode(errors="replace"), "pinned": False}
        content = encode_json({**members, **{name: value for name, value in ours.items() if name not in members}})
        headers = without(start["headers"], FRAMING_HEADERS)
        self._start = {**start, "headers": [*headers, (b"content-length", b"%d" % len(content))]}
        self._content = bytearray(content)
