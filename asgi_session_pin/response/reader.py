"""The response on its way to the client: which model does it name?"""

import msgspec

from ..log import Opaque
from ..pin import NamedModel
from ..wire.headers import EVENTS, JSON, Headers, is_identity, media_type
from ..wire.json import Members, read_object
from .errors import Error, find_error
from .output import DONE, look_at_body
from .pieces import Framing, Pieces, open_pieces
from .rules import ModelRules

STREAM_BYTES = 65_536  # of a stream that does not name its model

_PLAIN_JSON = {b"content-type": b"application/json"}
_EVENTS = {b"content-type": b"text/event-stream"}
_KINDS = {Framing.WHOLE: JSON, Framing.EVENTS: EVENTS, Framing.LINES: EVENTS}


class Reader(Opaque):
    """Looks for the router's choice in one response, as it passes.

    `finished` tells when there is nothing more to look for; `found` is what names the model, and `members` the JSON
    object of the body that was read for it. `failed` tells that nothing can be learned here: it is an error, whatever
    its status, or no decision object where one is wanted. `unread` says why the body could not be looked at.
    """

    rules: ModelRules
    headers: dict[bytes, bytes]
    asked: str | None
    sent: Headers | None = None  # all headers of a plain JSON response, where `headers` lacks the length
    pieces: Pieces | None = None
    finished: bool = False
    failed: bool = False
    found: NamedModel | None = None
    members: Members = msgspec.field(default_factory=dict)

    @property
    def unread(self) -> str | None:
        """Why the body could not be looked at: its content type, or its coding."""
        return None if self.pieces is None else self.pieces.unread

    @property
    def kind(self) -> str | None:
        """Whether the body is JSON or events, as far as it is known."""
        if self.pieces is None and self.sent is not None:
            return JSON
        kind = None if self.pieces is None else _KINDS.get(self.pieces.framing)
        return kind or media_type(self.headers.get(b"content-type", b""))

    @property
    def framing(self) -> Framing:
        """How the body is cut, as far as it is known and can be read as it is sent."""
        if b"content-encoding" in self.headers and not is_identity(self.headers[b"content-encoding"]):
            return Framing.NONE
        if self.pieces is not None:
            return self.pieces.framing
        return Framing.EVENTS if self.kind == EVENTS else Framing.NONE

    def feed(self, chunk: bytes, more: bool) -> None:
        """Look at the next piece of the body; *more* tells whether others follow."""
        pieces = self.pieces
        if pieces is None:
            if not more and len(chunk) <= self.rules.max_bytes:  # most bodies come in one
                return self._read_body(chunk)
            assert self.sent is not None
            pieces = self.pieces = _open_pieces(self.rules, self.rules.headers.pick(self.sent), streams=False)
        for event, data in pieces.feed(chunk, more):
            if pieces.framing is Framing.WHOLE:
                return self._read_body(data)
            self.read_event(event, data)
            if self.finished:
                return None
        if not more or pieces.is_over:
            self.finish({})
        return None

    def finish(self, members: Members) -> None:
        """Decide by the headers and a JSON object, which is empty where there is none to look at."""
        self.finished = True
        self.members = members
        if not self.failed:
            self.found = self.rules.find_model(self.headers, members, self.asked, self.kind) or self.found

    def _read_body(self, content: bytes) -> None:
        members = read_object(content)
        self.failed = isinstance(look_at_body(content), Error)
        self.finish(members)

    def read_event(self, event: str | None, data: bytes) -> None:
        """Look at an event by its name, where it has one, and its data."""
        if data == DONE:
            return
        members = read_object(data)
        self.failed = event == "error" or find_error(members, event) is not None
        found = self.rules.find_model({}, members, self.asked, self.kind)
        if self.failed or (found is not None and found.model is not None):
            self.finish(members)
        else:
            self.found = self.found or found  # an unusable name, to tell the operator of; the search goes on


def open_reader(
    rules: ModelRules, headers: dict[bytes, bytes], asked: object, *, streams: bool, whole: bool = False
) -> Reader:
    """Return what looks for the choice in a response with these headers to a request for the model *asked*.

    *streams* tells whether the request asked for a stream. With *whole* the body is read even where a header has the
    answer, and has to be a JSON object.
    """
    reader = Reader(rules, headers, asked if isinstance(asked, str) else None)
    if whole:
        if media_type(headers.get(b"content-type", b"")) != JSON:
            reader.finished = reader.failed = True  # no decision object, so none is kept
            return reader
        streams = False
    elif not rules.source_headers.isdisjoint(headers):
        found = rules.find_model(headers, None, reader.asked, reader.kind)
        if found is not None and found.model is not None:
            reader.finish({})
            return reader
    if not whole and not rules.reads_bodies:
        reader.finish({})
        return reader
    reader.pieces = _open_pieces(rules, headers, streams=streams)
    if reader.pieces.framing is Framing.NONE:
        reader.finish({})
    return reader


def open_plain_reader(rules: ModelRules, headers: Headers, asked: object) -> Reader:
    """Return what reads a JSON response whose *headers* say nothing else: `rules.plain` covers them."""
    return Reader(rules, _PLAIN_JSON, asked if isinstance(asked, str) else None, headers)


def open_event_reader(rules: ModelRules, asked: object) -> Reader:
    """Return what reads the events of a response that come as messages of a websocket."""
    reader = Reader(rules, _EVENTS, asked if isinstance(asked, str) else None)
    if not rules.reads_bodies:
        reader.finish({})
    return reader


def _open_pieces(rules: ModelRules, headers: dict[bytes, bytes], *, streams: bool) -> Pieces:
    return open_pieces(headers, rules.max_bytes, STREAM_BYTES, streams=streams)
