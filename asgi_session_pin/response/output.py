"""Does a 2xx answer give output? Until that is seen, nothing is a success."""

from collections.abc import Iterable
from enum import Enum
from typing import Any

import msgspec

from ..log import Opaque
from ..wire.json import find_string, read_object
from .errors import MAX_VALUE, Error, find_error, read_error, read_members
from .pieces import Framing, Piece, Pieces, open_pieces, tells_nothing

HELD_BYTES = 65_536
LATE_BYTES = 16_384  # at the end of a stream
MOST_LOOKS = 4_000  # at events and lines
LOOKED_AT_BYTES = 1_048_576  # of a stream; a prelude may hold the request's instructions and tools

DONE = b"[DONE]"
# What comes before any output: it may reveal the model, and proves nothing.
_PRELUDE = frozenset({"response.created", "response.in_progress", "response.queued", "message_start"})
FAILED_EVENTS = frozenset({"error", "response.failed"})
_EMPTY = frozenset({b"null", b'""', b"[]", b"{}"})


class Seen(Enum):
    """What an answer has shown so far."""

    NOTHING = "nothing"  # no byte, or only comments, pings and [DONE]
    PRELUDE = "prelude"
    OUTPUT = "output"
    ERROR = "error"


OUTPUT = Seen.OUTPUT  # most often asked for, and in CPython 3.11 found ten times as fast by a name of its own


class Output(Opaque):
    """Looks at the body of a 2xx answer until it shows output or an error; `error` has the error's facts."""

    pieces: Pieces
    seen: Seen = Seen.NOTHING
    error: Error | None = None
    looks: int = 0

    @property
    def framing(self) -> Framing:
        """How the body is cut, as far as it is known and can be read as it is sent."""
        return Framing.NONE if self.pieces.decoder is not None else self.pieces.framing

    def feed(self, chunk: bytes, more: bool) -> Seen:
        """Look at the next piece of the body, and return what was seen up to now; *more*: others follow."""
        for piece in self.pieces.feed(chunk, more):
            self.seen = self._look(piece)
            self.looks += 1
            if self.seen in (OUTPUT, Seen.ERROR):
                return self.seen
            if self.looks > MOST_LOOKS:
                break
        if (
            self.looks > MOST_LOOKS
            or self.pieces.is_over
            or (self.pieces.framing is Framing.WHOLE and self.pieces.size > HELD_BYTES)  # no error is as large
            or (self.pieces.framing is Framing.NONE and self.pieces.size)  # nobody here knows the shape
        ):
            self.seen = OUTPUT
        return self.seen

    def _look(self, piece: Piece) -> Seen:
        event, data = piece
        seen: Seen | Error = look_at_body(data) if self.pieces.framing is Framing.WHOLE else look_at_event(event, data)
        if isinstance(seen, Error):
            self.error = seen
            return Seen.ERROR
        return self.seen if seen is Seen.NOTHING else seen


def open_output(headers: dict[bytes, bytes], *, streams: bool) -> Output:
    """Return what looks at the body of a 2xx response with these *headers*; where they tell no type, its bytes do."""
    streams = streams or tells_nothing(headers)
    pieces = open_pieces(headers, LOOKED_AT_BYTES, LOOKED_AT_BYTES, streams=streams)
    if headers.get(b"content-type", b"").strip().lower().startswith(b"text/html"):
        pieces.framing = Framing.WHOLE  # a page, where an answer was asked for
    return Output(pieces)


class _End(msgspec.Struct):
    finish_reason: str | None = None


class _Body(msgspec.Struct):
    """The members of an answer by which it may be an error; all else of it is read over at C speed."""

    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    base_resp: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    type: str | None = None
    object: str | None = None
    status: str | None = None
    choices: list[_End] | None = None


_decode_body = msgspec.json.Decoder(_Body).decode


def is_plain_output(content: bytes) -> bool:
    """Tell at a glance whether a whole body is output, as most are; where this does not tell, `find_error` does."""
    try:
        body = _decode_body(content)
    except (ValueError, RecursionError):
        return False
    for choice in body.choices or ():
        if choice.finish_reason == "error":
            return False
    return (
        body.error is msgspec.UNSET
        and body.base_resp is msgspec.UNSET
        and body.status in (None, "completed")
        and body.object != "error"
        and body.type not in FAILED_EVENTS
    )


def look_at_body(content: bytes) -> Seen | Error:
    """Return what a whole body that is no stream shows."""
    if is_plain_output(content):
        return OUTPUT
    begin = content.lstrip()[:1]
    if not begin:
        return Seen.NOTHING
    if begin == b"<":  # a page, of a portal or a CDN
        return Error()
    try:
        return (len(content) <= HELD_BYTES and find_error(read_members(content))) or OUTPUT
    except ValueError:
        return OUTPUT


def look_at_event(event: str | None, data: bytes) -> Seen | Error:
    """Return what a server-sent event, or a line of JSON, shows."""
    if event == "error":
        return read_error(data, event)
    if data == DONE or event == "ping":
        return Seen.NOTHING
    members = read_object(data)
    error = find_error(members, event)
    if error is not None:
        return error
    kind = find_string(members, ("type",)) if "type" in members else event
    if kind == "ping":
        return Seen.NOTHING
    if kind in _PRELUDE or ("choices" in members and _gives_nothing(members["choices"])):
        return Seen.PRELUDE
    return look_at_body(data) if data[:1] == b"[" else OUTPUT


class _Choice(msgspec.Struct):
    delta: dict[str, msgspec.Raw] | None = None
    message: dict[str, msgspec.Raw] | None = None  # a whole answer as one event
    text: str | None = None
    finish_reason: Any = None

    @property
    def given(self) -> Iterable[tuple[str, msgspec.Raw]]:
        return (self.delta or self.message or {}).items()


_decode_choices = msgspec.json.Decoder(list[_Choice] | None).decode


def _gives_nothing(value: msgspec.Raw) -> bool:
    """Tell whether a chunk of a chat has neither content, nor a tool call, nor reasoning, nor an end."""
    if len(memoryview(value)) > MAX_VALUE:
        return False
    try:
        choices = _decode_choices(value) or ()
    except (ValueError, RecursionError):
        return False
    return not any(
        choice.text
        or choice.finish_reason
        or any(name != "role" and bytes(given) not in _EMPTY for name, given in choice.given)
        for choice in choices
    )


def late_error(chunks: Iterable[bytes], framing: Framing) -> Error | None:
    """Return the error in the last chunks of a stream that gave output, wherever they are cut; or None."""
    text = b"".join(chunks)[-LATE_BYTES:]
    if not _may_fail(text):
        return None
    pieces = Pieces(len(text), len(text) + 1, framing).feed(text, False)
    shown = (look_at_event(event, data) for event, data in pieces if event in FAILED_EVENTS or _may_fail(data))
    return next((seen for seen in shown if isinstance(seen, Error)), None)


def _may_fail(text: bytes) -> bool:
    return b"error" in text or b"failed" in text
