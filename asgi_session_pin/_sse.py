"""Incremental decoder of server-sent events, over bytes.

The rules are those of the WHATWG HTML standard, section "Interpreting an event stream". Only an event's data is of
interest here, so `event`, `id` and `retry` are read over.
"""

import re

_BOM = b"\xef\xbb\xbf"
_lines = re.compile(rb"([^\r\n]*)(?:\r\n|\n|\r)").finditer


class EventDecoder:
    """Turns the chunks of a stream, cut anywhere, into the data of its events."""

    __slots__ = ("_after_cr", "_data", "_first_line", "_has_data", "_unfinished")

    def __init__(self) -> None:
        self._unfinished = bytearray()  # a line whose end has not come
        self._data = bytearray()
        self._has_data = False
        self._first_line = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of each event that *chunk* completes; an event without data is none."""
        if not chunk:
            return []
        if self._after_cr:
            self._after_cr = False
            if chunk.startswith(b"\n"):  # the other half of a CRLF that was cut in two
                chunk = chunk[1:]
        if b"\n" not in chunk and b"\r" not in chunk:
            self._unfinished += chunk
            return []
        self._after_cr = chunk.endswith(b"\r")
        text = bytes(self._unfinished + chunk) if self._unfinished else chunk
        events: list[bytes] = []
        end = 0
        for line in _lines(text):
            end = line.end()
            self._read_line(line[1], events)
        self._unfinished = bytearray(text[end:])
        return events

    def _read_line(self, line: bytes, events: list[bytes]) -> None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(bytes(self._data))
            self._data = bytearray()
            self._has_data = False
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            if self._has_data:
                self._data += b"\n"
            self._data += value.removeprefix(b" ")
            self._has_data = True
