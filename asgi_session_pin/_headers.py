"""Header lists as ASGI has them: pairs of bytes, where names may repeat and may, against the spec, hold capitals."""

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

# Names that are not wanted are remembered too, so that one dict look-up settles a header. Clients choose names: the
# memory of them is bounded in entries and in bytes.
_MAX_REMEMBERED = 1024
_MAX_NAME = 64
_NOT_SEEN = b""


class HeaderPicker:
    """Picks the headers of interest out of a header list."""

    def __init__(self, names: Iterable[bytes]) -> None:
        self._names: dict[bytes, bytes | None] = {name.lower(): name.lower() for name in names}

    def pick(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        """Return the wanted headers by lower-case name.

        A header that came twice with different values has both, joined by a newline, which no single value can contain:
        nobody takes it for either of them.
        """
        picked: dict[bytes, bytes] = {}
        known = self._names.get
        for name, value in headers:
            wanted = known(name, _NOT_SEEN)
            if wanted is None:
                continue
            if wanted is _NOT_SEEN:
                wanted = self._remember(name)
                if wanted is None:
                    continue
            if wanted in picked and picked[wanted] != value:
                value = picked[wanted] + b"\n" + value
            picked[wanted] = value
        return picked

    def _remember(self, name: bytes) -> bytes | None:
        wanted = self._names.get(name.lower())
        if len(self._names) < _MAX_REMEMBERED and len(name) <= _MAX_NAME:
            self._names[name] = wanted
        return wanted


def without(headers: Headers, names: Iterable[bytes]) -> Headers:
    """Return a copy of *headers* that lacks *names* (lower case)."""
    return [header for header in headers if header[0].lower() not in names]


def header_list(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return *headers* as the list that ASGI asks for, the same object if it is one: servers also give iterators."""
    return headers if type(headers) is list else list(headers)


def content_length(headers: dict[bytes, bytes]) -> int | None:
    """Return the body's length in bytes, or None if no header tells it."""
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() and len(value) < 20 else None


def is_identity(content_encoding: bytes) -> bool:
    """Tell whether a body with this `content-encoding` is as it is (RFC 9110, section 8.4)."""
    return content_encoding.strip().lower() in (b"", b"identity")
