"""`restore_model`: the answer names the model that the client asked for, wherever the routed one stood."""

import re
from collections.abc import Awaitable
from enum import Enum

import msgspec
from starlette.types import Message, Send

from ..log import Opaque
from ..request.scope import SIGNATURE_HEADERS
from ..wire.headers import JSON, HeaderPicker, is_identity, media_type, without
from ..wire.json import encode_json, find_string, put_string, read_object
from ..wire.messages import body_of

# Where chat completions, messages and responses name their model.
_PATHS = (("model",), ("message", "model"), ("response", "model"))
_MARK = b'"model"'
_MAX_LINE = 65_536
_BOM = b"\xef\xbb\xbf"
_line = re.compile(rb"[^\r\n]+")
# How a line begins that may name a model, as far as it has come.
_may_be_data = re.compile(rb"(?:\xef\xbb\xbf)?(?:(?:data:)?\s*(?:\{|\Z)|(?:data|dat|da|d)\Z)|\xef\xbb?\Z").match
_LONGEST_START = 256
_LENGTH = frozenset({b"content-length"})
_heeded = HeaderPicker({b"content-type", b"content-encoding", *SIGNATURE_HEADERS})


class _Stage(Enum):
    WAITING = "for the answer to start"
    WHOLE = "JSON is held until all of it is there"
    LINES = "a line goes on as soon as its end is there"
    REST = "a line that is too long goes on as it comes"
    PASSING = "it goes on as it is"


_WHOLE, _LINES, _PASSING = _Stage.WHOLE, _Stage.LINES, _Stage.PASSING  # looked up for each message


class Restorer(Opaque):
    """Stands between us and the server's `send`, *onward*, once the model of the request, *asked*, is known.

    A JSON answer of up to *max_bytes* is held until it is whole; of a stream no more than the line that is not. What is
    compressed, or has a digest of its body, goes on as it is, which `X-Session-Pin-Status` then tells.
    """

    onward: Send
    asked: str
    streams: bool  # whether the request asks for a stream
    max_bytes: int
    stage: _Stage = _Stage.WAITING
    start: Message | None = None  # held with the JSON
    pieces: list[bytes] = msgspec.field(default_factory=list)  # of that
    size: int = 0  # of these, in bytes
    held: bytes = b""  # of a line
    head: bytes = b""  # how the last event began, up to the end of its model: in a stream most do so
    restored_head: bytes = b""  # and what has become of it

    def send(self, message: Message) -> Awaitable[None]:
        """Take a message of the answer (ASGI). What the server's *send* raises passes through."""
        head = self.head
        if head and not self.held:  # most messages of a stream are one event that begins as the last one did
            body = message.get("body")
            if (
                type(body) is bytes
                and body.startswith(head)
                and body.endswith(b"\n")
                and body.find(_MARK, len(head)) < 0
            ):
                return self.onward({**message, "body": self.restored_head + body[len(head) :]})
        stage = self.stage
        if stage is _PASSING:
            return self.onward(message)
        if message["type"] != "http.response.body":
            return self._begin(message) if message["type"] == "http.response.start" else self._give_up(message)
        if stage is _WHOLE:
            return self._hold(message)
        if stage is _LINES and not self.held:
            body = body_of(message)
            if body.endswith(b"\n"):
                return self.onward({**message, "body": self._in_lines(body)} if _MARK in body else message)
        return self._pass_lines(message)

    async def _give_up(self, message: Message) -> None:
        """Pass on what is no body, such as the path of a file that the server is to send."""
        if self.start is not None:
            self.stage = _PASSING
            await self.onward(self.start)
        await self.onward(message)

    async def _begin(self, message: Message) -> None:
        headers = message["headers"]
        picked = _heeded.pick(headers)
        kind = media_type(picked.get(b"content-type", b""))
        if message["status"] // 100 != 2 or (kind is None and not self.streams):
            self.stage = _PASSING
        elif not (is_identity(picked.get(b"content-encoding", b"")) and SIGNATURE_HEADERS.isdisjoint(picked)):
            self.stage = _PASSING
            headers = [_told(header) for header in headers]
        elif kind == JSON and not self.streams:
            self.stage = _WHOLE
            self.start = message
            return
        else:
            self.stage = _LINES
            headers = without(headers, _LENGTH)
        await self.onward({**message, "headers": headers})

    async def _hold(self, message: Message) -> None:
        piece, more = body_of(message), message.get("more_body", False)
        self.pieces.append(piece)
        self.size += len(piece)
        if more and self.size <= self.max_bytes:
            return
        self.stage = _PASSING
        body, start = b"".join(self.pieces), self.start
        self.pieces, self.start = [], None
        body = body if more else restored(body, self.asked)
        assert start is not None
        if not more:
            length = (b"content-length", b"%d" % len(body))
            start = {**start, "headers": [*without(start["headers"], _LENGTH), length]}
        await self.onward(start)
        await self.onward({**message, "body": body})

    async def _pass_lines(self, message: Message) -> None:
        text = self.held + body_of(message)
        self.held = b""
        if not message.get("more_body", False):
            return await self.onward({**message, "body": self._in_lines(text)})
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        is_rest = end == 0 and self.stage is _Stage.REST
        if is_rest or len(text) - end > _MAX_LINE or not _may_be_data(text[end : end + _LONGEST_START]):
            done, self.stage = self._in_lines(text), _Stage.REST
        else:
            done, self.held, self.stage = self._in_lines(text[:end]), text[end:], _LINES
        if done:
            await self.onward({**message, "body": done})
        return None

    def _in_lines(self, text: bytes) -> bytes:
        if _MARK not in text:
            return text
        rest = b""
        if self.stage is _Stage.REST:  # of a line whose beginning has gone out
            found = _line.match(text)
            rest = b"" if found is None else found[0]
        return rest + _line.sub(self._restored_line, text[len(rest) :])

    def _restored_line(self, found: re.Match[bytes]) -> bytes:
        line = found[0]
        before, brace, after = line.partition(b"{")
        if before.rstrip().removeprefix(_BOM) not in (b"data:", b""):
            return line
        value = _only_model(brace + after)
        if value is None:
            return before + restored(brace + after, self.asked)
        start, end = len(before) + value.start(1), len(before) + value.end(1)
        self.head, self.restored_head = line[:end], line[:start] + encode_json(self.asked)
        return self.restored_head + line[end:]


def restored(text: bytes, model: str) -> bytes:
    """Return the JSON *text* with *model* wherever an answer names one; other values keep their bytes."""
    if _MARK not in text:  # as in most events
        return text
    value = _only_model(text)
    if value is not None:
        return text[: value.start(1)] + encode_json(model) + text[value.end(1) :]
    members = read_object(text)
    for path in _PATHS:
        named = find_string(members, path)
        if named and named != model:
            text = put_string(text, path, model)
    return text


class _Named(msgspec.Struct):
    model: str


_decode_named = msgspec.json.Decoder(_Named).decode
_value = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")').match


def _only_model(text: bytes) -> re.Match[bytes] | None:
    """Return where the JSON *text* names its model, as a match's first group, if nothing else in it has that name.

    Then, as in most answers, the text need not be taken apart.
    """
    position = text.find(_MARK)
    if position < 0 or text.find(_MARK, position + 1) >= 0:
        return None
    try:
        return _value(text, position) if _decode_named(text).model else None
    except (ValueError, RecursionError):  # it is somewhere else, or nowhere
        return None


def _told(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = header
    return (name, value + b"; restored=false") if name == b"x-session-pin-status" else header
