"""The body of a response as it passes: cut into the pieces that can be looked at, whatever its label says."""

import math
import re
from collections.abc import Iterable
from enum import Enum

import msgspec

from ..log import Opaque
from ..wire.compression import Decoder, open_decoder
from ..wire.headers import EVENTS, JSON, LINES, content_length, is_identity, media_type
from ..wire.sse import EventDecoder

Piece = tuple[str | None, bytes]
"""The name of an event, if it is one that has a name, and its data; or None and a JSON text."""

MOST_LINES = 20_000  # of a stream; each event and each comment has some

_SPACE = b" \t\r\n\xef\xbb\xbf"
_FIELDS = (b"data", b"event", b"error", b"id", b"retry")
_begins_events = re.compile(rb"(?:%s)?[:\r\n]" % b"|".join(_FIELDS)).match


class Framing(Enum):
    """How a body is cut into pieces."""

    UNKNOWN = "unknown"  # its first byte tells
    WHOLE = "whole"
    EVENTS = "events"
    LINES = "lines"
    NONE = "none"


STREAMED = frozenset({Framing.EVENTS, Framing.LINES})


class Pieces(Opaque):
    """Cuts one body, at most *limit* decoded bytes of a whole one and *stream_limit* of a stream.

    `is_over` tells that nothing more is looked at: a limit is reached, or it is not of its coding. `unread` says why
    a body can't be looked at: its content type, or its coding. `otherwise` is what it is taken for where its first
    bytes are those of nothing that is known.
    """

    limit: int
    stream_limit: int
    framing: Framing
    decoder: Decoder | None = None
    unread: str | None = None
    content_type: bytes = b""
    otherwise: Framing = Framing.EVENTS
    size: int = 0  # bytes looked at, decoded
    lines: int = 0  # of a stream
    is_over: bool = False
    to_come: float = math.inf  # bytes of the body as they are sent
    content: bytearray = msgspec.field(default_factory=bytearray)
    events: EventDecoder = msgspec.field(default_factory=EventDecoder)

    def feed(self, chunk: bytes, more: bool) -> Iterable[Piece]:
        """Return the pieces that *chunk* completes; *more* tells whether others follow."""
        data = chunk
        if self.decoder is not None:
            try:
                data = self.decoder.decode(chunk, self.limit - self.size + 1)
            except Exception:  # a look must never raise into the app, whatever a decoder does
                self.is_over = True
                return []
        self.size += len(data)
        self.to_come -= len(chunk)
        if self.size > self.limit:
            self.is_over = True
            return []
        if self.framing is Framing.UNKNOWN:
            data = self._sniff(data, more)
        if self.framing in STREAMED:
            data = self._bounded(data)
        more = more or self.is_over  # what is cut at a limit has no end
        if self.framing is Framing.EVENTS:
            return self.events.feed(data if more else data + b"\n\n")
        return self._lines(data, more) if self.framing is Framing.LINES else self._whole(data, more)

    def _sniff(self, data: bytes, more: bool) -> bytes:
        """Tell by its first bytes what the body is; return those that are to be read."""
        data = bytes(self.content + data).lstrip(_SPACE)
        self.content = bytearray()
        if data[:1] in (b"{", b"[", b"<"):
            self.framing = Framing.WHOLE
        elif _begins_events(data):
            self.framing = Framing.EVENTS
        elif more and any(field.startswith(data) for field in _FIELDS):  # cut within, or before
            self.content += data
            return b""
        elif data:
            self.framing = self.otherwise
            self.unread = _shown(self.content_type) if self.otherwise is Framing.NONE else None
        return data

    def _bounded(self, data: bytes) -> bytes:
        """Return what there is room for of a stream."""
        room = self.stream_limit - self.size + len(data)
        self.is_over = room <= len(data)
        data = data[: max(0, room)]
        lines = data.count(b"\n") + data.count(b"\r")
        if self.lines + lines > MOST_LINES:
            self.is_over = True
            *kept, _ = data.replace(b"\r", b"\n").split(b"\n", max(0, MOST_LINES - self.lines))
            data = b"\n".join(kept)
        self.lines += lines
        return data

    def _lines(self, data: bytes, more: bool) -> Iterable[Piece]:
        self.content += data
        if more and b"\n" not in data:
            return []
        *lines, rest = bytes(self.content).split(b"\n")
        self.content = bytearray(rest)
        return [(None, line) for line in (lines if more else [*lines, rest]) if line.strip()]

    def _whole(self, data: bytes, more: bool) -> Iterable[Piece]:
        more = more and self.to_come > 0
        if self.framing is not Framing.WHOLE:
            return []
        if self.content or more:
            self.content += data
            data = b"" if more else bytes(self.content)
        return [] if more else [(None, data)]


def open_pieces(headers: dict[bytes, bytes], limit: int, stream_limit: int, *, streams: bool) -> Pieces:
    """Return what cuts the body of a response with these *headers*, to a request that asked for a stream or not."""
    content_type = headers.get(b"content-type", b"")
    coding = headers.get(b"content-encoding", b"")
    kind = media_type(content_type)
    framing = Framing.NONE if kind is None else _FRAMINGS[kind]
    if streams and kind != LINES and (kind is not None or tells_nothing(headers)):
        framing = Framing.UNKNOWN
    otherwise = Framing.EVENTS if kind == EVENTS else Framing.NONE
    pieces = Pieces(limit, stream_limit, framing, content_type=content_type, otherwise=otherwise)
    if framing in (Framing.NONE, Framing.LINES):
        pieces.unread = _shown(content_type)
    if kind == JSON:
        pieces.to_come = content_length(headers) or math.inf
    if coding and not is_identity(coding):
        pieces.decoder = open_decoder(coding)
        if pieces.decoder is None:
            pieces.framing = Framing.NONE
            pieces.unread = f"content encoding {coding[:256].decode('latin-1')!r}"
    return pieces


def _shown(content_type: bytes) -> str:
    return f"content type {content_type[:256].decode('latin-1')!r}"


def tells_nothing(headers: dict[bytes, bytes]) -> bool:
    """Tell whether a response has no type, or the one that home-made gateways give to anything."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower() in (b"", b"text/plain")


_FRAMINGS = {JSON: Framing.WHOLE, EVENTS: Framing.UNKNOWN, LINES: Framing.LINES}
