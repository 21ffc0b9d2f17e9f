"""Header lists as ASGI has them: pairs of bytes, where names may repeat and may, against the spec, hold capitals."""

from collections.abc import Iterable, Set
from functools import lru_cache
from operator import itemgetter

JSON = "json"
EVENTS = "events"
LINES = "lines"
Headers = list[tuple[bytes, bytes]]
NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # of a header, as a pattern: a token of RFC 9110, section 5.6.2

# Clients choose names: the memory of them is bounded in entries and in bytes.
_MAX_REMEMBERED = 1024
_MAX_NAME = 64

header_name = itemgetter(0)


class NameMemory:
    """Remembers names of headers, as they came, of which something is known.

    `covers(map(header_name, headers))` tells at C speed, without a frame, whether all names are remembered.
    """

    def __init__(self) -> None:
        self.names: set[bytes] = set()
        self.covers = self.names.issuperset

    def learn(self, headers: Headers) -> None:
        """Remember the names of *headers*, as far as there is room."""
        for name, _ in headers:
            if len(self.names) < _MAX_REMEMBERED and len(name) <= _MAX_NAME:
                self.names.add(name)


class HeaderPicker:
    """Picks the headers of interest out of a header list."""

    def __init__(self, names: Iterable[bytes]) -> None:
        # Names as they came, so that one look-up settles a header: the wanted ones with their lower case.
        self._wanted = {name.lower(): name.lower() for name in names}
        self._unwanted: set[bytes] = set()
        self._is_unwanted = self._unwanted.issuperset

    def has_none(self, headers: Headers) -> bool:
        """Tell at C speed, without a frame, that none is of interest; False where that is not known yet."""
        return self._is_unwanted(map(header_name, headers))

    def pick(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        """Return the wanted headers by lower-case name.

        A header that came several times has all its values, joined by a newline, which no single value can contain:
        nobody takes it for one of them.
        """
        picked: dict[bytes, bytes] = {}
        unwanted, wanted = self._unwanted, self._wanted
        for name, value in headers:
            if name in unwanted:
                continue
            if name in wanted:
                lower = wanted[name]
            elif self._learn(name):
                lower = name.lower()
            else:
                continue
            picked[lower] = picked[lower] + b"\n" + value if lower in picked else value
        return picked

    def _learn(self, name: bytes) -> bool:
        """Tell whether *name*, which was not seen before, is wanted."""
        lower = name.lower()
        wanted = lower in self._wanted
        if len(self._wanted) + len(self._unwanted) < _MAX_REMEMBERED and len(name) <= _MAX_NAME:
            if wanted:
                self._wanted[name] = lower
            else:
                self._unwanted.add(name)
        return wanted


def without(headers: Iterable[tuple[bytes, bytes]], names: Set[bytes]) -> Headers:
    """Return a copy of *headers* that lacks *names* (lower case)."""
    return [header for header in headers if header[0].lower() not in names]


def content_length(headers: dict[bytes, bytes]) -> int | None:
    """Return the body's length in bytes, or None if no header tells it."""
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() and len(value) < 20 else None


def is_identity(content_encoding: bytes) -> bool:
    """Tell whether a body with this `content-encoding` is as it is (RFC 9110, section 8.4)."""
    return content_encoding.strip().lower() in (b"", b"identity")


@lru_cache(maxsize=256)
def media_type(content_type: bytes) -> str | None:
    """Return what a body of this type is: `JSON`, `EVENTS`, `LINES` of JSON or None (RFC 9110 8.3.1, RFC 6839)."""
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"application/json" or kind.endswith(b"+json"):
        return JSON
    if kind in (b"application/x-ndjson", b"application/ndjson", b"application/jsonl"):
        return LINES
    return EVENTS if kind == b"text/event-stream" else None
