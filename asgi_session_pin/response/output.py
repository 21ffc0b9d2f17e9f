"""Does a 2xx answer give output? Until that is seen, nothing is a success."""

from collections.abc import Iterable
from enum import Enum
from typing import Any

import msgspec

from ..log import Opaque
from ..wire.json import Members, decode_items, decode_members, find_string
from .errors import Error, find_error, read_error
from .pieces import Framing, Piece, Pieces, open_pieces

HELD_BYTES = 65_536
MOST_LOOKS = 10_000  # at events and lines
LOOKED_AT_BYTES = 8_388_608  # of a stream; a prelude may hold the request's instructions and tools

DONE = b"[DONE]"
# What comes before any output: it may reveal the model, and proves nothing.
_PRELUDE = frozenset({"response.created", "response.in_progress", "response.queued", "message_start"})
_EMPTY = frozenset({b"null", b'""', b"[]", b"{}"})


class Seen(Enum):
    """What an answer has shown so far."""

    NOTHING = "nothing"  # no byte, or only comments, pings and [DONE]
    PRELUDE = "prelude"
    OUTPUT = "output"
    ERROR = "error"


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
        if self.pieces.framing is Framing.NONE:  # nobody here knows the shape
            self.seen = Seen.OUTPUT if chunk else self.seen
            return self.seen
        for piece in self.pieces.feed(chunk, more):
            self.seen = self._look(piece)
            self.looks += 1
            if self.seen in (Seen.OUTPUT, Seen.ERROR):
                return self.seen
            if self.looks > MOST_LOOKS:
                break
        if (
            self.looks > MOST_LOOKS
            or self.pieces.is_over
            or (self.pieces.framing is Framing.WHOLE and self.pieces.size > HELD_BYTES)
        ):
            self.seen = Seen.OUTPUT  # no error is as large
        return self.seen

    def _look(self, piece: Piece) -> Seen:
        event, data = piece
        seen: Seen | Error = look_at_body(data) if self.pieces.framing is Framing.WHOLE else look_at_event(event, data)
        if isinstance(seen, Error):
            self.error = seen
            return Seen.ERROR
        return self.seen if seen is Seen.NOTHING else seen


def open_output(headers: dict[bytes, bytes], *, streams: bool) -> Output:
    """Return what looks at the body of a 2xx response with these *headers*."""
    pieces = open_pieces(headers, LOOKED_AT_BYTES, LOOKED_AT_BYTES, streams=streams)
    if headers.get(b"content-type", b"").startswith(b"text/html"):
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
    return (
        body.error is msgspec.UNSET
        and body.base_resp is msgspec.UNSET
        and body.status in (None, "completed")
        and body.object != "error"
        and body.type != "error"
        and not (body.choices and body.choices[0].finish_reason == "error")
    )


def look_at_body(content: bytes) -> Seen | Error:
    """Return what a whole body that is no stream shows."""
    if is_plain_output(content):
        return Seen.OUTPUT
    try:
        error = find_error(decode_members(content))
        return Seen.OUTPUT if error is None else error
    except ValueError:
        pass
    begin = content.lstrip()[:1]
    if begin == b"[":  # Gemini
        try:
            error = find_error(decode_members(bytes(decode_items(content)[0])))
        except (ValueError, IndexError):
            error = None
        return Seen.OUTPUT if error is None else error
    if begin == b"<":  # a page, of a portal or a CDN
        return Error()
    return Seen.OUTPUT if begin else Seen.NOTHING


def look_at_event(event: str | None, data: bytes) -> Seen | Error:
    """Return what a server-sent event, or a line of JSON, shows."""
    if event == "error":
        return read_error(data, event)
    if data == DONE or event == "ping":
        return Seen.NOTHING
    try:
        members = decode_members(data)
    except ValueError:
        shown = look_at_body(data) if data[:1] == b"[" else Seen.OUTPUT
        return shown
    error = find_error(members, event)
    if error is not None:
        return error
    kind = find_string(members, ("type",)) if "type" in members else event
    if kind == "ping":
        return Seen.NOTHING
    if kind in _PRELUDE or ("choices" in members and _gives_nothing(members)):
        return Seen.PRELUDE
    return Seen.OUTPUT


class _Choice(msgspec.Struct):
    delta: dict[str, msgspec.Raw] | None = None
    text: str | None = None
    finish_reason: Any = None


_decode_choices = msgspec.json.Decoder(list[_Choice] | None).decode


def _gives_nothing(members: Members) -> bool:
    """Tell whether a chunk of a chat has neither content, nor a tool call, nor reasoning, nor an end."""
    try:
        choices = _decode_choices(members["choices"]) or ()
    except (ValueError, RecursionError):
        return False
    return not any(
        choice.text
        or choice.finish_reason
        or any(name != "role" and bytes(value) not in _EMPTY for name, value in (choice.delta or {}).items())
        for choice in choices
    )


def late_error(chunks: Iterable[bytes], framing: Framing) -> Error | None:
    """Return the error in the last chunks of a stream that gave output, wherever they are cut; or None."""
    text = b"".join(chunks)
    if b"error" not in text and b"failed" not in text:
        return None
    pieces = Pieces(len(text), len(text), framing).feed(text, False)
    return next((seen for piece in pieces if isinstance(seen := look_at_event(*piece), Error)), None)
