"""What a request is to a reverse proxy, and what the proxy says itself."""

from typing import Any
from urllib.parse import quote

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..request.scope import FRAMING_HEADERS


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
    for prefix in (root.encode(), quote(root).encode()) if root else ():
        if raw.startswith(prefix + b"/"):
            raw = raw[len(prefix) :]
            break
    query: bytes = scope["query_string"]
    return base + raw + b"?" + query if query else base + raw


def has_body(scope: Scope) -> bool:
    """Tell whether a request has a body; HTTP/2 needs no header to say so."""
    for name, _ in scope["headers"]:
        if name.lower() in FRAMING_HEADERS:
            return True
    return not scope.get("http_version", "1.1").startswith("1") and scope["method"] in ("POST", "PUT", "PATCH")


def wants_websocket(scope: Scope) -> bool:
    """Tell whether a request asks for a websocket (RFC 6455, section 4.1)."""
    return any(name.lower() == b"upgrade" and value.lower() == b"websocket" for name, value in scope["headers"])


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
