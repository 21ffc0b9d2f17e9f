"""Clients that connect and send no request, or none to the end of its head: the next ones need their places."""

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from .server_protocol import ServerProtocol

HEAD_SECONDS = 10


class SilentClients:
    """Drops them after *seconds*: uvicorn itself waits without end, unless a request was answered before."""

    def __init__(self, seconds: float = HEAD_SECONDS, clock: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._since: dict[ServerProtocol, float] = {}

    def drop(self, connections: Iterable[ServerProtocol]) -> None:
        """Close those of the *connections* that have waited for too long. To be called every second or so."""
        now = self._clock()
        self._since = {each: self._since.get(each, now) for each in connections if _waits_for_a_head(each)}
        for connection, since in self._since.items():
            if now - since >= self._seconds:
                connection.transport.close()


def _waits_for_a_head(connection: ServerProtocol) -> bool:
    cycle: Any = connection.cycle  # None before the first one
    is_between = cycle is None or cycle.response_complete
    return is_between and connection.timeout_keep_alive_task is None  # which would end it
