"""What a request is to a reverse proxy, and what the proxy says itself."""

from urllib.parse import quote

import aiohttp
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from ..request.scope import FRAMING_HEADERS

FAILURES = (aiohttp.ClientError, OSError)  # of an upstream; TimeoutError is an OSError


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
    return scope["method"] == "GET" and any(
        name.lower() == b"upgrade" and value.lower() == b"websocket" for name, value in scope["headers"]
    )


def error_response(status: int, message: str, code: str) -> Response:
    """Return an error in OpenAI's shape."""
    details = {"message": message, "type": "upstream_error", "param": None, "code": code}
    return JSONResponse({"error": details}, status)


def upgrade_required(scope: Scope, message: str) -> Response:
    """Return what makes clients of a websocket ask by HTTP instead, at once (RFC 9110, section 15.5.22)."""
    response = error_response(426, message, "websocket_not_supported")
    if scope.get("http_version", "1.1").startswith("1"):
        response.headers["upgrade"] = "HTTP/1.1"
        response.headers["connection"] = "upgrade"
    return response


def no_answer(error: Exception) -> Response:
    """Return the answer for an upstream that did not answer. Its URL is the operator's affair."""
    if isinstance(error, TimeoutError):
        return error_response(504, "The upstream gateway did not answer in time.", "upstream_timeout")
    return error_response(502, "The upstream gateway can't be reached or did not answer.", "upstream_unavailable")


def not_sent() -> Response:
    """Return the answer to a request that can't be sent to the upstream."""
    return error_response(400, "The request can't be forwarded as it is.", "invalid_request")
