"""`restore_model`: the answer names the model that the client asked for, wherever the routed one stood."""

import re
from enum import Enum

from starlette.types import Message, Send

from ..wire.headers import JSON, is_identity, media_type, without
from ..wire.json import find_string, put_string, read_object
from ..wire.messages import body_of

# Where chat completions, messages and responses name their model.
_PATHS = (("model",), ("message", "model"), ("response", "model"))
_MARK = b'"model"'
_MAX_LINE = 65_536
_BOM = b"\xef\xbb\xbf"
_line = re.compile(rb"[^\r\n]+")
_last_end = re.compile(rb"[\r\n][^\r\n]*\Z").search
_LENGTH = frozenset({b"content-length"})


class _Stage(Enum):
    WAITING = "for the answer to start"
    WHOLE = "JSON is held until all of it is there"
    LINES = "a line goes on as soon as its end is there"
    REST = "a line that is too long goes on as it comes"
    PASSING = "it goes on as it is"


class Restorer:
    """Stands between us and the server's *send*, once the model of the request, *asked*, is known.

    A JSON answer of up to *max_bytes* is held until it is whole; of a stream no more than the line that is not. What is
    compressed goes on as it is, which `X-Session-Pin-Status` then tells.
    """

    def __init__(self, send: Send, asked: str, *, streams: bool, max_bytes: int) -> None:
        self._send = send
        self._asked = asked
        self._streams = streams
        self._max_bytes = max_bytes
        self._stage = _Stage.WAITING
        self._start: Message = {}
        self._held = b""

    async def send(self, message: Message) -> None:
        """Take a message of the answer (ASGI). What the server's *send* raises passes through here."""
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body":
            await self._give_up(message)
        elif self._stage is _Stage.WHOLE:
            await self._hold(message)
        elif self._stage is _Stage.PASSING:
            await self._send(message)
        else:
            await self._pass_lines(message)

    async def _give_up(self, message: Message) -> None:
        """Pass on what is no body, such as the path of a file that the server is to send."""
        if self._stage is _Stage.WHOLE:
            self._stage = _Stage.PASSING
            await self._send(self._start)
        await self._send(message)

    async def _begin(self, message: Message) -> None:
        headers = message["headers"]
        picked = {name.lower(): value for name, value in headers}
        kind = media_type(picked.get(b"content-type", b""))
        if message["status"] // 100 != 2 or (kind is None and not self._streams):
            self._stage = _Stage.PASSING
        elif not is_identity(picked.get(b"content-encoding", b"")):
            self._stage = _Stage.PASSING
            headers = [_told(header) for header in headers]
        elif kind == JSON and not self._streams:
            self._stage = _Stage.WHOLE
            self._start = message
            return
        else:
            self._stage = _Stage.LINES
            headers = without(headers, _LENGTH)
        await self._send({**message, "headers": headers})

    async def _hold(self, message: Message) -> None:
        self._held += body_of(message)
        more = message.get("more_body", False)
        if more and len(self._held) <= self._max_bytes:
            return
        self._stage = _Stage.PASSING
        body = self._held if more else restored(self._held, self._asked)
        start, self._held, self._start = self._start, b"", {}
        if not more:
            length = (b"content-length", b"%d" % len(body))
            start = {**start, "headers": [*without(start["headers"], _LENGTH), length]}
        await self._send(start)
        await self._send({**message, "body": body})

    async def _pass_lines(self, message: Message) -> None:
        text = self._held + body_of(message)
        self._held = b""
        if not message.get("more_body", False):
            return await self._send({**message, "body": self._in_lines(text)})
        found = _last_end(text)
        end = 0 if found is None else found.start() + 1
        if len(text) - end > _MAX_LINE or (end == 0 and self._stage is _Stage.REST):
            done, self._stage = self._in_lines(text), _Stage.REST
        else:
            done, self._held, self._stage = self._in_lines(text[:end]), text[end:], _Stage.LINES
        if done:
            await self._send({**message, "body": done})
        return None

    def _in_lines(self, text: bytes) -> bytes:
        if _MARK not in text:
            return text
        rest = b""
        if self._stage is _Stage.REST:  # of a line whose beginning has gone out
            found = _line.match(text)
            rest = b"" if found is None else found[0]
        return rest + _line.sub(self._restored_line, text[len(rest) :])

    def _restored_line(self, line: re.Match[bytes]) -> bytes:
        before, brace, after = line[0].partition(b"{")
        is_data = before.rstrip().removeprefix(_BOM) in (b"data:", b"")
        return before + restored(brace + after, self._asked) if is_data else line[0]


def restored(text: bytes, model: str) -> bytes:
    """Return the JSON *text* with *model* wherever an answer names one; other values keep their bytes."""
    members = read_object(text)
    for path in _PATHS:
        named = find_string(members, path)
        if named and named != model:
            text = put_string(text, path, model)
    return text


def _told(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = header
    return (name, value + b"; restored=false") if name == b"x-session-pin-status" else header
