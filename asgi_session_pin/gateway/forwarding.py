"""What of a message goes on to the other side of a reverse proxy, and what the proxy says itself."""

from typing import Any
from urllib.parse import quote

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..wire.headers import Headers, without

# RFC 9110, section 7.6.1: of the connection, not of the message. `expect` is answered by the server that we run on.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate te trailer transfer-encoding upgrade expect".split()
)


def inner_path(scope: Scope) -> str:
    """Return the path below where the app is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def target(scope: Scope, base: bytes) -> bytes:
    """Return the request target below *base*, byte for byte as it came (RFC 9112, section 3.2)."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    if raw == b"*":
        return raw
    if not raw.startswith(b"/"):  # the absolute form
        raw = b"/" + raw.partition(b"://")[2].partition(b"/")[2]
    root = scope.get("root_path", "").rstrip("/")
    for prefix in (root.encode(), quote(root).encode()):
        if prefix and raw.startswith(prefix + b"/"):
            raw = raw[len(prefix) :]
            break
    return base + raw + (b"?" + scope["query_string"] if scope["query_string"] else b"")


def has_body(scope: Scope) -> bool:
    """Tell whether a request has a body; HTTP/2 needs no header to say so."""
    if any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]):
        return True
    return not scope.get("http_version", "1.1").startswith("1") and scope["method"] in ("POST", "PUT", "PATCH")


def wants_websocket(scope: Scope) -> bool:
    """Tell whether a request asks for a websocket (RFC 6455, section 4.1)."""
    return any(name.lower() == b"upgrade" and value.lower() == b"websocket" for name, value in scope["headers"])


def request_headers(scope: Scope) -> Headers:
    """Return the headers for the upstream."""
    headers = without(end_to_end(scope["headers"]), {b"host", b"x-forwarded-for"})
    names = {name.lower() for name, _ in headers}
    hops = [value for name, value in scope["headers"] if name.lower() == b"x-forwarded-for"]
    if scope.get("client"):
        hops.append(scope["client"][0].encode())
    if hops:
        headers.append((b"x-forwarded-for", b", ".join(hops)))
    if b"x-forwarded-proto" not in names:
        headers.append((b"x-forwarded-proto", scope.get("scheme", "http").encode()))
    host = next((value for name, value in scope["headers"] if name.lower() == b"host"), None)
    if host is not None and b"x-forwarded-host" not in names:
        headers.append((b"x-forwarded-host", host))
    return headers


def end_to_end(headers: Headers) -> Headers:
    """Return a copy of *headers* without those that are of the connection, or that `connection` names."""
    dropped = set(HOP_BY_HOP)
    for name, value in headers:
        if name.lower() == b"connection":
            dropped.update(item.strip().lower() for item in value.split(b","))
        elif name.lower() == b"transfer-encoding":
            dropped.add(b"content-length")  # RFC 9112, section 6.3: it does not count
    return without(headers, dropped)


def error_response(status: int, message: str, code: str) -> Response:
    """Return an error in OpenAI's shape."""
    details = {"message": message, "type": "upstream_error", "param": None, "code": code}
    return JSONResponse({"error": details}, status)


async def refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a websocket."""
    if "websocket.http.response" in scope.get("extensions", {}):
        response: Any = error_response(501, "Websockets are not forwarded.", "not_implemented")
        await response(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1003, "reason": "websockets are not forwarded"})
