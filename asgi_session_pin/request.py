"""The request on its way to the app: read the body within its limit, put a model in, replay it."""

from starlette.types import Message, Receive

from ._headers import Headers, content_length, is_identity, without
from ._json import Members, encode_json

# Over one of these, a changed body would no longer be the one that was signed (RFC 9530, RFC 3230, RFC 1864).
SIGNATURE_HEADERS = frozenset({b"content-digest", b"repr-digest", b"digest", b"content-md5", b"x-amz-content-sha256"})
FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
CONTROL_HEADERS = frozenset({b"x-session-pin", b"x-session-pinned", b"x-session-model"})
HEADER_NAMES = SIGNATURE_HEADERS | FRAMING_HEADERS | CONTROL_HEADERS | {b"content-encoding", b"authorization"}


def why_unreadable(headers: dict[bytes, bytes], limit: int) -> bytes | None:
    """Return why the body must pass as it is, as far as the headers tell, or None."""
    if not is_identity(headers.get(b"content-encoding", b"")):
        return b"body-encoded"
    if not SIGNATURE_HEADERS.isdisjoint(headers) or headers.get(b"authorization", b"").startswith(b"AWS4-"):
        return b"body-signed"
    if (content_length(headers) or 0) > limit:
        return b"body-too-large"
    return None


class RequestBody:
    """Reads the body ahead of the app, and is the app's `receive` afterwards.

    What was read is replayed, then the server's own `receive` is asked again: it alone knows when the client leaves
    (answering `http.disconnect` for it would cut streams short, answering nothing new would make apps spin).
    """

    __slots__ = ("_messages", "_receive")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []

    async def read(self, limit: int) -> bytes | None:
        """Return the whole body, or None if it is over *limit* bytes or the client left before it was whole."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            self._messages.append(message)
            if message["type"] != "http.request":
                return None
            chunk = bytes(message.get("body", b""))
            size += len(chunk)
            if size > limit:
                return None
            if not message.get("more_body"):
                break
            chunks.append(chunk)
        if chunks:
            chunk = b"".join((*chunks, chunk))
            self.replace(chunk)
        return chunk

    @property
    def cut_off(self) -> bool:
        """Whether the client left before the body was whole."""
        return bool(self._messages[-1]["type"] == "http.disconnect")

    def replace(self, content: bytes) -> None:
        """Let the app receive *content* instead."""
        self._messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive(self) -> Message:
        """Return the next message of the body, then whatever the server has."""
        if self._messages:
            return self._messages.pop(0)
        return await self._receive()


def put_model(members: Members, model: str) -> bytes:
    """Return the body with *model* as its model; a body that names none gets one."""
    return encode_json({**members, "model": model})


def pinned_headers(headers: Headers, picked: dict[bytes, bytes], length: int, model: str) -> Headers:
    """Return a copy of *headers* for a body of *length* bytes on a pinned *model*."""
    framing = (b"content-length", b"%d" % length)
    ours = ((b"x-session-pinned", b"true"), (b"x-session-model", model.encode()))
    old = (b"content-length", picked.get(b"content-length", b""))
    if b"transfer-encoding" in picked or not CONTROL_HEADERS.isdisjoint(picked) or headers.count(old) != 1:
        return [*without(headers, FRAMING_HEADERS | CONTROL_HEADERS), framing, *ours]
    new = [*headers, *ours]
    new[headers.index(old)] = framing
    return new
