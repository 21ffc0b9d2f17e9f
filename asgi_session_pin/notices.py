"""What the operator is told of requests that are not pinned: once what looks like a mistake, at DEBUG of each one."""

from collections.abc import Iterable

from starlette.types import Scope

from .events import PinEvent
from .log import Warnings, logger
from .wire.headers import Headers

MAX_STRAYS = 1_000  # requests to other paths that are looked at

_UNPINNED = {
    "status": "the answer is no 2xx",
    "error": "the answer is an error",
    "fallback": "the gateway's own fallback answered",
    "unless": "decisions.unless has a rule for the answer",
    "unread": "the answer can't be looked at, because of its content type or coding",
    "no-model": "the answer names no model where decisions.sources look",
    "unusable-model": "what the answer names can't be sent as a model, or is a router's or a retired one",
    "refused-model": "the gateway has refused the name that the answer gives",
    None: "there was no answer",
}


class Notices:
    """Tells of requests that have no session, or that no endpoint is for. Names come from outside: by %r, and cut.

    - `watches`: whether requests that no endpoint is for are looked at.
    - `debugs`: whether each request has its line.
    """

    def __init__(self, sources: Iterable[str], id_headers: Iterable[bytes], warn: Warnings) -> None:
        self.watches = True
        self.debugs = False
        self._sources = ", ".join(sources)
        self._id_headers = frozenset(id_headers)
        self._letters = frozenset(map(_letters, self._id_headers))
        self._warn = warn
        self._strays = 0

    def mistyped(self, headers: Headers) -> None:
        """Tell of a header that only hyphens or underscores keep from being one of a session id."""
        for name, _ in headers:
            if name.lower() not in self._id_headers and _letters(name) in self._letters:
                message = "a request has the header %r, which is no source of session ids (%s); is it mistyped?"
                self._warn.notice(("mistyped", name[:64]), message, name.decode("latin-1"), self._sources)

    def stray(self, scope: Scope, *, is_ignored: bool) -> None:
        """Tell of a request that no endpoint is for, if it has a session id."""
        path = scope["path"][:256]
        if self.debugs:
            why = "its endpoint has kind: ignore" if is_ignored else "its path is none of the endpoints"
            logger.debug("%s %r: not pinned: %s", _kind(scope), path, why)
        self._strays += 1
        if not is_ignored and not self._id_headers.isdisjoint(name.lower() for name, _ in scope.get("headers", ())):
            message = "a request with a session id is not pinned: its path %r is none of the endpoints; "
            self._warn.notice("stray", f"{message}right for what asks no model to answer", path)
            self._strays = MAX_STRAYS
        self.watches = self.debugs or self._strays < MAX_STRAYS

    def sessionless(self, scope: Scope) -> None:
        """Tell at DEBUG of a request that has no session."""
        message = "%s %r: not pinned: it has no session id (%s)"
        logger.debug(message, _kind(scope), scope["path"][:256], self._sources)

    def listen(self, event: PinEvent) -> None:
        """Tell at DEBUG what became of a request that has a session."""
        logger.debug("%s: %s", event.endpoint, _told(event))


def _kind(scope: Scope) -> str:
    return "POST" if scope["type"] == "http" else "websocket"


def _letters(name: bytes) -> bytes:
    return name.lower().translate(None, b"-_")


def _told(event: PinEvent) -> str:
    if event.status == "hit":
        told = f"pinned to {event.model!r}"
    elif event.status == "wait":
        told = f"pinned to {event.model!r}, for which it waited until another request was routed"
    elif event.status == "off":
        told = "not pinned: the client asked for that by X-Session-Pin: off"
    elif event.status == "ignored":
        told = f"not pinned: {event.reason}"
    else:
        began = "routed" if event.status == "miss" else "routed once more, since its pinned model did not serve"
        unpinned = f"nothing is pinned: {_UNPINNED[event.unpinned]}"
        told = f"{began}; {f'pinned to {event.model!r} from now on' if event.model else unpinned}"
    return f"{told} (store-unavailable)" if event.reason == "store-unavailable" else told
