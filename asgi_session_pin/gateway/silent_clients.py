"""Clients that hold a place, and send no request for it: the next ones need their places."""

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from .server_protocol import ServerProtocol

HEAD_SECONDS = 10
REST_SECONDS = 300  # in which 32 MiB come at 1 Mbit/s


class SilentClients:
    """Drops them: uvicorn itself waits without end, unless a request was answered before.

    Who sends no request, or none to the end of its head, has *head_seconds*. Who got its answer before it had sent all
    of its body has *rest_seconds* for what is left of it: closing any sooner would take the answer away.
    """

    def __init__(
        self,
        head_seconds: float = HEAD_SECONDS,
        rest_seconds: float = REST_SECONDS,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._head_seconds = head_seconds
        self._rest_seconds = rest_seconds
        self._clock = clock
        self._since: dict[tuple[ServerProtocol, float], float] = {}  # with the seconds that it has

    def drop(self, connections: Iterable[ServerProtocol]) -> None:
        """Close those of the *connections* that have waited for too long. To be called every second or so."""
        now = self._clock()
        waiting = [(each, seconds) for each in connections if (seconds := self._seconds_of(each)) is not None]
        self._since = {each: self._since.get(each, now) for each in waiting}
        for (connection, seconds), since in self._since.items():
            if now - since >= seconds:
                connection.transport.close()

    def _seconds_of(self, connection: ServerProtocol) -> float | None:
        """Return how long a connection may stay as it is; None: somebody else ends it."""
        if connection.is_answered_early:
            return self._rest_seconds
        return self._head_seconds if _waits_for_a_head(connection) else None


def _waits_for_a_head(connection: ServerProtocol) -> bool:
    cycle: Any = connection.cycle  # None before the first one
    is_between = cycle is None or cycle.response_complete
    return is_between and connection.timeout_keep_alive_task is None  # which would end it
