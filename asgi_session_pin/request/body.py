"""The request on its way to the app: read the body within its limit, put a model in, replay it."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from msgspec import field
from starlette.types import Message, Receive, Scope

from ..log import Opaque
from ..wire.headers import Headers, content_length, is_identity, without
from ..wire.messages import body_of

# Over one of these, a changed body would no longer be the one that was signed (RFC 9530, RFC 3230, RFC 1864).
SIGNATURE_HEADERS = frozenset({b"content-digest", b"repr-digest", b"digest", b"content-md5", b"x-amz-content-sha256"})
SIGV4 = b"AWS4-"  # such an authorization signs the body's digest
FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
CONTROL_HEADERS = frozenset({b"x-session-pin", b"x-session-pinned", b"x-session-model"})
PINNED = (b"x-session-pinned", b"true")

SCOPE_KEY = "asgi_session_pin"
_INSIDE = frozenset({"headers", SCOPE_KEY})

# Those of which a usual request has none.
UNUSUAL_HEADERS = SIGNATURE_HEADERS | CONTROL_HEADERS | {b"content-encoding", b"transfer-encoding"}
HEADER_NAMES = SIGNATURE_HEADERS | FRAMING_HEADERS | CONTROL_HEADERS | {b"content-encoding", b"authorization"}


def why_unreadable(headers: dict[bytes, bytes], limit: int) -> bytes | None:
    """Return why the body of an unusual request must pass as it is, as far as the headers tell, or None."""
    if not is_identity(headers.get(b"content-encoding", b"")):
        return b"body-encoded"
    if not SIGNATURE_HEADERS.isdisjoint(headers) or headers.get(b"authorization", b"").startswith(SIGV4):
        return b"body-signed"
    return b"body-too-large" if (content_length(headers) or 0) > limit else None


class InnerScope(dict[str, Any]):
    """A copy of the server's scope with headers of ours, and a mark.

    What the app sets in it or takes out of it (`route`, `path_params`, `user`) is so in the server's at once: outer
    middleware sees it whenever it looks, as without us. `headers` and the mark stay inside; copies are plain dicts.
    """

    __slots__ = ("outer",)

    outer: Scope

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key not in _INSIDE:
            self.outer[key] = value

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        if key not in _INSIDE:
            self.outer.pop(key, None)

    # dict's own would go past the two above.
    update = MutableMapping.update
    setdefault = MutableMapping.setdefault
    popitem = MutableMapping.popitem
    clear = MutableMapping.clear

    def pop(self, key: str, *default: Any) -> Any:
        """As for any dict."""
        if default and key not in self:
            return default[0]
        value = self[key]
        del self[key]
        return value

    def __ior__(self, other: Any) -> "InnerScope":  # type: ignore[override,misc]
        self.update(other)
        return self

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __reduce__(self) -> Any:  # for pickle and deepcopy: the mark is of use in this process and request only
        return dict, ({**self, SCOPE_KEY: None},)


def inner_scope(outer: Scope, headers: Headers, mark: object) -> InnerScope:
    """Return the scope for the app; under `SCOPE_KEY` it has *mark*."""
    scope = InnerScope(outer, headers=headers, asgi_session_pin=mark)
    scope.outer = outer
    return scope


def swap(scope: Scope, values: Scope) -> Scope:
    """Make *scope* hold *values* but for its `state`, which others may be at work on; return what it held."""
    held = dict(scope)
    scope.clear()
    scope.update(values)
    if "state" in held:
        scope["state"] = held["state"]
    return held


def show_state(scope: Scope, values: Scope) -> None:
    """Let a scope's `state`, of which outer middleware may hold the very object, have what *values* has."""
    state = scope.get("state")
    if type(state) is dict and state is not values.get("state"):
        state.clear()
        state.update(values["state"])


class RequestBody(Opaque):
    """Reads the body ahead of the app, and is the app's `receive` afterwards.

    What was read is replayed, then the server's own `receive` is asked again: it alone knows when the client leaves
    (answering `http.disconnect` for it would cut streams short, answering nothing new would make apps spin).
    """

    server_receive: Receive
    messages: list[Message] = field(default_factory=list)
    cut_off: bool = False  # whether the client left before the body was whole
    gone: bool = False  # whether the app was told that the client left
    replaced: asyncio.Event | None = None  # set when another answer, that is given instead, has ended

    async def read(self, limit: int) -> bytes | None:
        """Return the whole body, or None if it is over *limit* bytes or the client left before it was whole."""
        message = await self.server_receive()
        if message["type"] != "http.request":
            self.messages.append(message)
            self.cut_off = True
            return None
        content = body_of(message)
        self.messages.append(message if message.get("body") is content else {**message, "body": content})
        if not message.get("more_body"):
            return content if len(content) <= limit else None
        return await self._read_on(bytearray(content), limit)

    async def _read_on(self, content: bytearray, limit: int) -> bytes | None:
        # One buffer, not a list of messages: a client could send its bytes one by one, and empty messages without end.
        more = True
        while more and len(content) <= limit:
            message = await self.server_receive()
            if message["type"] != "http.request":
                self.cut_off = True
                self.messages = [{"type": "http.request", "body": bytes(content), "more_body": True}, message]
                return None
            content += body_of(message)
            more = message.get("more_body", False)
        whole = bytes(content)
        self.messages = [{"type": "http.request", "body": whole, "more_body": more}]
        return whole if len(whole) <= limit else None

    async def receive(self) -> Message:
        """Return the next message of the body, then whatever the server has."""
        if self.messages:
            return self.messages.pop(0)
        message = await self.server_receive()
        if self.replaced is not None:  # to this call's answer; it is the second one's end, or its affair
            await self.replaced.wait()
        self.gone = message["type"] == "http.disconnect"
        return message


def pinned_headers(headers: Headers, picked: dict[bytes, bytes], length: int, model: bytes) -> Headers:
    """Return a copy of *headers* for a body of *length* bytes that is pinned to *model*."""
    framing = (b"content-length", b"%d" % length)
    named = (b"x-session-model", model)
    if b"transfer-encoding" not in picked:
        try:
            at = headers.index((b"content-length", picked[b"content-length"]))
        except (KeyError, ValueError):
            pass  # there is none, or there are two, or it is written in capitals
        else:
            pinned = [*headers, PINNED, named]
            pinned[at] = framing
            return pinned
    return [*without(headers, FRAMING_HEADERS), framing, PINNED, named]
