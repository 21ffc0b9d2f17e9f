"""The pin of a request as the app sees it: for routers that run inside of the app."""

from starlette.requests import HTTPConnection
from starlette.types import Scope

from .exchange import Exchange
from .request.scope import SCOPE_KEY


class SessionPin:
    """A request's session and its pin."""

    __slots__ = ("_exchange", "session_id")

    session_id: str
    """The session's id, as the client sent it."""

    def __init__(self, exchange: Exchange, session_id: bytes) -> None:
        self._exchange = exchange
        self.session_id = session_id.decode(errors="surrogateescape")

    @property
    def model(self) -> str | None:
        """The pinned model, or None while there is no pin."""
        return self._exchange.model

    @property
    def pinned(self) -> bool:
        """Whether the model of this request comes from the pin. A router has to heed it, or it goes on routing."""
        return self._exchange.status in (b"hit", b"wait")

    def record(self, model: str, route: str | None = None) -> None:
        """State the decision: the *model* to send on later requests, and the name of the *route*, if there is one.

        It beats whatever the response says. Like any decision it makes a pin only if the answer is 2xx, and only if the
        session has none; on a pinned request it does nothing. No I/O happens here.
        """
        self._exchange.state(model, route)


def get_session_pin(request: HTTPConnection | Scope) -> SessionPin | None:
    """Return the pin of a Starlette or FastAPI request, or of an ASGI scope.

    None where nothing is pinned: no session, another path, `X-Session-Pin: off`, or a request that is ignored.
    """
    exchange: Exchange | None = request.get(SCOPE_KEY)  # a request reads like its scope
    return SessionPin(exchange, exchange.session_id) if exchange and exchange.session_id and exchange.key else None
