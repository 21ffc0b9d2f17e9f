"""Incremental decoder of server-sent events, over bytes.

The rules are those of the WHATWG HTML standard, section "Interpreting an event stream". Only an event's data is of
interest here, so `event`, `id` and `retry` are read over.
"""

_BOM = b"\xef\xbb\xbf"


class EventDecoder:
    """Turns the chunks of a stream, cut anywhere, into the data of its events."""

    __slots__ = ("_after_cr", "_data", "_first_line", "_unfinished")

    def __init__(self) -> None:
        self._unfinished = bytearray()  # a line whose end has not come
        self._data: list[bytes] = []
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
        lines = bytes(self._unfinished + chunk).splitlines() if self._unfinished else chunk.splitlines()
        self._unfinished = bytearray() if chunk.endswith((b"\n", b"\r")) else bytearray(lines.pop())
        events: list[bytes] = []
        for line in lines:
            self._read_line(line, events)
        return events

    def _read_line(self, line: bytes, events: list[bytes]) -> None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            data = b"\n".join(self._data)
            self._data = []
            if data:
                events.append(data)
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
