"""Decision endpoints: services that only say which model they would use."""

import re
import secrets
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cachetools import LRUCache
from starlette.types import Message, Send

from ..pin import Pin
from ..request.scope import FRAMING_HEADERS, SIGNATURE_HEADERS
from ..wire.headers import JSON, HeaderPicker, Headers, content_length, is_identity, media_type, without
from ..wire.json import Members, decode_members, encode_json
from ..wire.messages import body_of

MAX_REMEMBERED_BYTES = 8_192  # of one decision object
MAX_MEMORY_BYTES = 16_777_216  # of all that one process remembers
_ENTRY_BYTES = 512  # of what is remembered beside the object itself, roughly

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


Edit = Callable[[Members], bytes | None]
"""Returns the text of the decision object in place of the app's; None leaves that as it is."""


class Decided(NamedTuple):
    """What the app answered for a pin, as it is repeated, and when that was, on the timer."""

    model: str
    created: float
    content: bytes
    answered: float


class RememberedDecisions:
    """The decisions of the app that this process may repeat, within bounds.

    Each one holds for *ttl_seconds* after the app's answer, however often it is repeated: then the app is asked again,
    so that it can refuse whoever asks. *timer* is monotonic, *now* the wall clock, both in seconds.
    """

    def __init__(self, ttl_seconds: float, timer: Callable[[], float], now: Callable[[], float]) -> None:
        self._ttl = ttl_seconds
        self._timer = timer
        self._now = now
        self._decided: LRUCache[bytes, Decided] = LRUCache(MAX_MEMORY_BYTES, lambda it: _ENTRY_BYTES + len(it.content))

    def find(self, key: bytes, pin: Pin) -> bytes | None:
        """Return the decision object to repeat for the pin of *key*; None: the app is to be asked."""
        try:
            decided = self._decided[key]
            if decided.created == pin.created and decided.model == pin.model:
                return decided.content if self._timer() - decided.answered < self._ttl else None
        except KeyError:
            pass
        return pin.decision if self._now() - pin.created < self._ttl else None  # another process may have asked

    def keep(self, key: bytes, pin: Pin, content: bytes | None) -> None:
        """Remember what the app has just answered for the pin of *key*; without an object, that it did."""
        content = encode_json({"model": pin.model}) if content is None else content
        self._decided[key] = Decided(pin.model, pin.created, content, self._timer())


def reply(pin: Pin, content: bytes, session_id: bytes, headers: Headers) -> bytes:
    """Return the body that answers for the app: a remembered decision."""
    try:
        members: dict[str, object] = dict(decode_members(content))
    except ValueError:  # a store gave something else than it was given
        members = {"model": pin.model}
    if "trace_id" in members:
        traced = _trace_id(_traceparent.pick(headers).get(b"traceparent", b""))
        members["trace_id"] = traced[1].decode() if traced else secrets.token_hex(16)
    return tell_pin(session_id, members)


def tell_choice(session_id: bytes, members: Mapping[str, object]) -> bytes:
    """Return a decision object that is not from a pin; members of the app's own stay."""
    return encode_json({**members, **{name: value for name, value in _ours(session_id).items() if name not in members}})


def tell_pin(session_id: bytes, members: Mapping[str, object]) -> bytes:
    """Return a decision object with the model of a pin."""
    return encode_json({**members, **_ours(session_id), "pinned": True})


def _ours(session_id: bytes) -> dict[str, object]:
    return {"session_id": session_id.decode(errors="replace"), "pinned": False}


class DecisionEditor:
    """Has the JSON object that the app answers with edited.

    The answer is held until it is whole, up to *limit* bytes; whatever can't be edited passes as it is.
    """

    _headers = HeaderPicker({b"content-type", b"content-length", b"content-encoding", *SIGNATURE_HEADERS})

    def __init__(self, send: Send, edit: Edit, limit: int) -> None:
        self._send = send
        self._edit = edit
        self._limit = limit
        self._start: Message | None = None
        self._content = bytearray()
        self.is_edited = False
        """Whether what goes out is what *edit* made of the app's answer."""

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
                self._edit_whole(self._start)
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

    def _edit_whole(self, start: Message) -> None:
        try:
            members = decode_members(bytes(self._content))
        except ValueError:
            return
        content = self._edit(members)
        if content is not None:
            self.is_edited = True
            headers = without(start["headers"], FRAMING_HEADERS)
            self._start = {**start, "headers": [*headers, (b"content-length", b"%d" % len(content))]}
            self._content = bytearray(content)
