"""Incremental decoder of server-sent events, over bytes.

The rules are those of the WHATWG HTML standard, section "Interpreting an event stream". An event's name and data are of
interest here; `id` and `retry` are read over. A field named `error`, which the standard does not know but servers send,
is the data of an event of that name.
"""

import re
from collections.abc import Iterable, Iterator

_BOM = b"\xef\xbb\xbf"
_blank_lines = re.compile(rb"\n\n+").finditer
_fields = re.compile(rb"^(data|event|error)(?:: ?([^\n]*))?$", re.MULTILINE).findall

Event = tuple[str | None, bytes]
"""An event's name, None for the usual one, and its data."""


class EventDecoder:
    """Turns the chunks of a stream, cut anywhere, into its events."""

    __slots__ = ("_after_cr", "_at_start", "_unfinished")

    def __init__(self) -> None:
        self._unfinished = bytearray()  # what follows the last blank line
        self._at_start = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> Iterable[Event]:
        """Return each event that *chunk* completes, read as it is asked for; one without data is none."""
        if not chunk:
            return ()
        if self._after_cr and chunk.startswith(b"\n"):  # the other half of a CRLF that was cut in two
            chunk = chunk[1:]
        self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        known = max(0, len(self._unfinished) - 1)  # before here there is no blank line
        self._unfinished += chunk
        end = self._unfinished.rfind(b"\n\n", known) + 2
        if end < 2:
            return ()
        text = bytes(self._unfinished[:end])
        del self._unfinished[:end]
        if self._at_start:
            self._at_start = False
            text = text.removeprefix(_BOM)
        return _read_events(text)


def _read_events(text: bytes) -> Iterator[Event]:
    start = 0
    for blank in _blank_lines(text):
        fields = _fields(text, start, blank.start())
        start = blank.end()
        if len(fields) == 1 and fields[0][0] == b"data":  # as most are
            name, data = None, fields[0][1]
        else:
            names = [value.decode(errors="replace") for field, value in fields if field == b"event"]
            name = names[-1] if names else None
            data = b"\n".join(value for field, value in fields if field == b"data")
            if not data:
                data = b"\n".join(value for field, value in fields if field == b"error")
                name = "error"
        if data:
            yield name or None, data
