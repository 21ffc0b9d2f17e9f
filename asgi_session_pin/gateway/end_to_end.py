"""The headers that go on to the other side of a reverse proxy."""

import re
from collections.abc import Iterable
from urllib.parse import SplitResult, quote

from starlette.types import Scope

from ..request.scope import CONTROL_HEADERS, SCOPE_KEY
from ..wire.headers import NAME, Headers, NameMemory, header_name, without
from ..wire.url import base_path
from .forwarded import Forwarded, is_forwarded

# RFC 9110, section 7.6.1: of the connection, not of the message. `expect` is answered by the server that we run on.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate te trailer transfer-encoding upgrade expect".split()
)
# RFC 6455, section 4: of a websocket's handshake with one side, which has no body.
HANDSHAKE_HEADERS = frozenset(
    b"sec-websocket-key sec-websocket-version sec-websocket-extensions sec-websocket-accept content-length".split()
)
_HANDLED = HOP_BY_HOP | {b"host"}
_USUAL = frozenset({b"close", b"keep-alive", b"upgrade"})  # what `connection` says, but for names of headers
_MAX_KNOWN = 1024
_MAX_NAME = 64

_is_name = re.compile(NAME.encode()).fullmatch
_find_control_character = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_absolute = re.compile(rb"(?:(https?):)?//([^/?#\\]*)(.*)", re.IGNORECASE | re.DOTALL).fullmatch
_default_port = re.compile(rb":(?:80|443)?\Z")


class RequestHeaders:
    """Makes the headers for the upstream.

    All that go end to end, in their order, then our own: the marks of a pinned request, which nobody else can set, and
    `X-Forwarded-*`. *trusted* is as for `Forwarded`.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        self._forwarded = Forwarded(trusted)
        self._known: dict[bytes, bytes | None] = {}  # names as they came and are sent; None: not simply

    def make(self, scope: Scope) -> Headers:
        """Return the headers of a request. Raises ValueError for names that can't be sent."""
        known = self._known
        headers: Headers = []
        others: Headers = []
        for name, value in scope["headers"]:
            try:
                sent = known[name]
            except KeyError:
                sent = self._learn(name)
            if sent is not None:
                headers.append((sent, value))
            else:
                others.append((name.lower(), value))
        dropped = {item for name, value in others if name == b"connection" for item in _items(value)} - _USUAL
        if any(name == b"transfer-encoding" for name, _ in others):
            dropped.add(b"content-length")  # RFC 9112, section 6.3: it does not count
        if dropped:
            headers = [header for header in headers if header[0] not in dropped]
        if not scope.get("http_version", "1.1").startswith("1"):
            headers = _with_one_cookie(headers)
        own = [(name, value) for name, value in others if name in CONTROL_HEADERS] if scope.get(SCOPE_KEY) else []
        host = next((value for name, value in others if name == b"host"), None)
        told = [header for header in others if is_forwarded(header[0])]
        return [*headers, *own, *self._forwarded.headers(scope, host, told)]

    def _learn(self, name: bytes) -> bytes | None:
        """Return what a name is sent as."""
        if not _is_name(name):
            raise ValueError("the name of a header is no token")
        lower = name.lower()
        plain = lower.replace(b"_", b"-")  # some gateways take one for the other
        sent = None if lower in _HANDLED or plain in CONTROL_HEADERS or is_forwarded(plain) else lower
        if len(self._known) < _MAX_KNOWN and len(name) <= _MAX_NAME:
            self._known[name] = sent
        return sent


def _items(connection: bytes) -> list[bytes]:
    return [item.strip().lower() for item in connection.split(b",")]


def _with_one_cookie(headers: Headers) -> Headers:
    """Join the cookies, which HTTP/2 and HTTP/3 may split (RFC 9113, section 8.2.3)."""
    cookies = [value for name, value in headers if name == b"cookie"]
    if len(cookies) < 2:
        return headers
    at = headers.index((b"cookie", cookies[0]))
    others = [header for header in headers if header[0] != b"cookie"]
    return [*others[:at], (b"cookie", b"; ".join(cookies)), *others[at:]]


class ResponseHeaders:
    """Makes the headers for the client. A `Location` that names the upstream at *parts* leads through the proxy."""

    def __init__(self, parts: SplitResult) -> None:
        self._is_tls = parts.scheme == "https"
        self._address = _default_port.sub(b"", parts.netloc.lower().encode())
        self._base = base_path(parts).encode()
        self._ordinary = NameMemory()

    def make(self, raw: Iterable[tuple[bytes, bytes]], root_path: str) -> Headers:
        """Return the headers of a response to a request below *root_path*. Raises ValueError for what can't be sent."""
        headers = list(raw)
        if _find_control_character(b"".join([value for _, value in headers])):
            raise ValueError("a header has a control character")
        if self._ordinary.covers(map(header_name, headers)):
            return headers
        self._ordinary.learn(without(headers, HOP_BY_HOP | {b"location"}))
        return [
            (name, self._through(value, root_path)) if name.lower() == b"location" else (name, value)
            for name, value in _end_to_end(headers)
        ]

    def _through(self, location: bytes, root_path: str) -> bytes:
        parts = _absolute(location)
        if parts is None or _default_port.sub(b"", parts[2].lower()) != self._address:
            return location
        if parts[1] and parts[1].lower() == b"https" and not self._is_tls:  # it wants to be asked there, and says why
            return location
        path: bytes = parts[3]
        if not path.startswith(b"/"):
            path = b"/" + path
        if not (path + b"/").startswith(self._base + b"/"):
            return location
        path = path[len(self._base) :] or b"/"
        if not path.startswith(b"/") or path[1:2] in (b"/", b"\\"):  # which would name another host
            return location
        return quote(root_path.rstrip("/")).encode() + path


def _end_to_end(headers: Headers) -> Headers:
    dropped = set(HOP_BY_HOP)
    for name, value in headers:
        if name.lower() == b"connection":
            dropped.update(_items(value))
        elif name.lower() == b"transfer-encoding":
            dropped.add(b"content-length")  # RFC 9112, section 6.3: it does not count
    return without(headers, dropped)
