"""Who asks: what a request tells of its way to here, as an edge says it, or added to what trusted proxies said."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address, ip_network

from starlette.types import Scope

from ..wire.headers import Headers

_SCHEMES = {"ws": b"http", "wss": b"https"}
UNIX = "unix"

_ADDED_TO = {b"x-forwarded-for", b"forwarded"}


def is_forwarded(name: bytes) -> bool:
    """Tell whether a header (lower case, with `-` for `_`) tells of a request's way."""
    return name.startswith(b"x-forwarded-") or name in (b"forwarded", b"x-real-ip")


class Forwarded:
    """Makes the `X-Forwarded-*` headers of a request for the upstream.

    *trusted*: addresses and networks of proxies whose own such headers are believed; anybody else's are replaced.
    `unix` is who comes by a socket file, and has no address.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        trusted = set(trusted)
        self._trusts_unix = UNIX in trusted
        self._networks = [ip_network(each) for each in trusted - {UNIX}]
        self._is_trusted = lru_cache(maxsize=1024)(self._find)

    def headers(self, scope: Scope, host: bytes | None, told: Headers) -> Headers:
        """Return the headers for the upstream. *told* are the client's own, and *host* is the one that it asked."""
        client = scope["client"][0].encode() if scope.get("client") else None
        if not (self._is_trusted(client.decode()) if client is not None else self._trusts_unix):
            told = []
        headers = [(name, value) for name, value in told if name not in _ADDED_TO]
        hops = [value for name, value in told if name == b"x-forwarded-for"]
        if client is not None:
            hops.append(client)
        if hops:
            headers.append((b"x-forwarded-for", b", ".join(hops)))
        names = {name for name, _ in told}
        if b"x-forwarded-proto" not in names:
            scheme = scope.get("scheme", "http")
            headers.append((b"x-forwarded-proto", _SCHEMES.get(scheme) or scheme.encode()))
        if b"x-forwarded-host" not in names and host is not None:
            headers.append((b"x-forwarded-host", host))
        if b"forwarded" in names:  # RFC 7239, sections 4 and 6
            ways = [value for name, value in told if name == b"forwarded"]
            node = b"unknown" if client is None else b'"[%s]"' % client if b":" in client else client
            headers.append((b"forwarded", b", ".join([*ways, b"for=" + node])))
        return headers

    def _find(self, client: str) -> bool:
        if not self._networks:
            return False
        try:
            address = ip_address(client)
        except ValueError:  # a name, such as a test's client has
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self._networks)
