"""The request's head on its way to the app: the scope that it gets, and the headers of a pinned request."""

from typing import Any

from starlette.types import Scope

from ..wire.compression import open_decoder
from ..wire.headers import Headers, content_length, without

# Over one of these, a changed body would no longer be the one that was signed (RFC 9530, RFC 3230, RFC 1864).
SIGNATURE_HEADERS = frozenset({b"content-digest", b"repr-digest", b"digest", b"content-md5", b"x-amz-content-sha256"})
SIGV4 = b"AWS4-"  # such an authorization signs the body's digest
FRAMING_HEADERS = frozenset({b"content-length", b"transfer-encoding"})
CONTROL_HEADERS = frozenset({b"x-session-pin", b"x-session-pinned", b"x-session-model"})
PINNED = (b"x-session-pinned", b"true")

SCOPE_KEY = "asgi_session_pin"
_INSIDE = frozenset({"headers", SCOPE_KEY})

# Those of which a usual request has none.
UNUSUAL_HEADERS = SIGNATURE_HEADERS | CONTROL_HEADERS | {b"content-encoding", b"transfer-encoding"}
HEADER_NAMES = SIGNATURE_HEADERS | FRAMING_HEADERS | CONTROL_HEADERS | {b"content-encoding", b"authorization"}


def inner_path(scope: Scope) -> str:
    """Return the path below where the app is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path


def why_unreadable(headers: dict[bytes, bytes], limit: int) -> bytes | None:
    """Return why the body of an unusual request must pass as it is, as far as the headers tell, or None."""
    if not SIGNATURE_HEADERS.isdisjoint(headers) or headers.get(b"authorization", b"").startswith(SIGV4):
        return b"body-signed"
    if open_decoder(headers.get(b"content-encoding", b"")) is None:
        return b"body-encoded"
    return b"body-too-large" if (content_length(headers) or 0) > limit else None


def show(inner: Scope, outer: Scope, shown: Scope) -> None:
    """Show in the server's scope what the app has put into its own since *shown*: `route`, `path_params`, `user`."""
    try:
        is_shown = inner == shown  # at C speed; it mostly is, at the end of a call
    except Exception:  # which values of others may raise that are compared
        is_shown = False
    if is_shown:
        return
    for key, value in inner.items():
        if key not in _INSIDE and (key not in shown or shown[key] is not value):
            outer[key] = value
    shown.update(inner)


def copy_of_state(scope: Scope) -> dict[str, Any]:
    """Return what a scope's `state` has."""
    state = scope.get("state")
    return state.copy() if type(state) is dict else {}


def put_state(scope: Scope, content: dict[str, Any]) -> None:
    """Have a scope's `state`, of which outer middleware holds the very object, have *content* alone."""
    state = scope.get("state")
    if type(state) is dict:
        state.clear()
        state.update(content)


def decoded_headers(headers: Headers, length: int) -> Headers:
    """Return a copy of *headers* for a body that was decoded to *length* bytes."""
    return [*without(headers, FRAMING_HEADERS | {b"content-encoding"}), (b"content-length", b"%d" % length)]


def pinned_headers(headers: Headers, picked: dict[bytes, bytes], length: int, model: bytes) -> Headers:
    """Return a copy of *headers* for a body of *length* bytes that is pinned to *model*."""
    framing = (b"content-length", b"%d" % length)
    named = (b"x-session-model", model)
    if b"transfer-encoding" not in picked:
        try:
            at = headers.index((b"content-length", picked[b"content-length"]))
        except (KeyError, ValueError):
            pass  # there is none, or there are two, or it is written in capitals
        else:
            pinned = [*headers, PINNED, named]
            pinned[at] = framing
            return pinned
    return [*without(headers, FRAMING_HEADERS), framing, PINNED, named]
