"""Events as they come, for whoever watches: server-sent events."""

import asyncio
from collections import deque
from contextlib import suppress

import msgspec
from starlette.types import Receive, Send

from ..events import PinEvent
from ..wire.headers import Headers

MOST_WAITING = 1_000  # events for a reader that is slow
_MOST_AT_ONCE = 100
_QUIET_SECONDS = 15.0  # then a comment tells proxies in between that there still is somebody
_LONGEST_SECONDS = 300.0  # a worker that is to end waits for no reader for longer; who still reads comes again
_LAST_SECONDS = 1.0  # for the end of an answer

_QUIET = b":\n\n"
_encode = msgspec.json.Encoder().encode


class EventStream:
    """One reader's events. What it is too slow for is lost, and it is told how many."""

    def __init__(self) -> None:
        self._waiting: deque[PinEvent] = deque(maxlen=MOST_WAITING)
        self._lost = 0
        self._news = asyncio.Event()

    def put(self, event: PinEvent) -> None:
        """Take an event. It is a listener."""
        self._lost += len(self._waiting) == MOST_WAITING
        self._waiting.append(event)
        self._news.set()

    async def run(self, receive: Receive, send: Send, headers: Headers) -> None:
        """Send events until the reader leaves, or for five minutes.

        Raises TimeoutError for one that has stalled: it would not take the end either, and the server is to close its
        connection.
        """
        leaving = asyncio.ensure_future(_wait_for_disconnect(receive))
        leaving.add_done_callback(lambda _: self._news.set())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_SECONDS):
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    await _send_more(send, _QUIET)
                    while not leaving.done():
                        await _send_more(send, await self._next())
            if not leaving.done():
                async with asyncio.timeout(_LAST_SECONDS):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()

    async def _next(self) -> bytes:
        """Return what is to be sent next."""
        if not self._waiting:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), _QUIET_SECONDS)
            except TimeoutError:
                return _QUIET
        lost, self._lost = self._lost, 0
        lines = [b'event: lost\ndata: {"lost":%d}\n\n' % lost] if lost else []
        while self._waiting and len(lines) < _MOST_AT_ONCE:
            lines.append(b"data: %b\n\n" % _encode(self._waiting.popleft()))
        return b"".join(lines)


async def _send_more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
