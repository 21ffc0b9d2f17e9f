"""Connections to the upstream, each of which is used again only after an answer that was whole, and nothing else."""

import asyncio
import math
import select
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
from aiohttp import ClientTimeout
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection

_SWEEP_SECONDS = 1


def _watch(transport: asyncio.BaseTransport) -> Callable[[], object]:
    """Return what tells whether there is something to read at the moment, the end of the connection for example."""
    number = transport.get_extra_info("socket").fileno()
    if not hasattr(select, "poll"):  # on Windows, where numbers are not limited
        return lambda: select.select([number], [], [], 0)[0]
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return partial(poll.poll, 0)


class UpstreamConnection(ResponseHandler):
    """A connection that ends itself where what comes is not what was asked for.

    aiohttp looks at a connection when it is given back, and not at what comes afterwards; it takes an answer for broken
    where more than the answer comes with it; for whole where one that ends with the connection is cut off by a reset;
    and forgets to tell who reads one of broken chunks.
    """

    def __init__(self, connections: "set[UpstreamConnection]", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._connections = connections
        self._answer: Any = None  # its head, as aiohttp has parsed it, and its body
        self._idle_since: float | None = math.inf  # None while there is a request, infinite before the first one
        self._last_bytes = b""  # of a part of a head, whose end may be cut in two

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self._connections.add(self)
        self._has_something_to_read = _watch(transport)

    def is_connected(self) -> bool:
        """Tell whether a request can be sent. An end that the event loop has not come to see yet is one."""
        return super().is_connected() and (self._idle_since is None or not self._has_something_to_read())

    def connection_lost(self, exc: BaseException | None) -> None:
        """End, and with it the answer that came."""
        self._connections.discard(self)
        if exc is not None:
            self._break_answer(exc)
        super().connection_lost(exc)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Fail, and with it the answer that comes."""
        super().set_exception(exc, *cause)
        self._break_answer(exc)

    def set_response_params(self, **params: Any) -> None:
        """Be ready for an answer: a request is about to be sent."""
        self._answer = self._idle_since = None
        self._last_bytes = b""
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take the head of an answer. Its body, which comes with it, is filled later."""
        if self._answer is not None:
            return self.force_close()  # this one is nobody's
        if data[0].code >= 200:
            self._answer = data
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Take what the upstream sent, or nothing: then reading goes on with what is left."""
        if self._idle_since is not None:
            if data:
                self.close()
            return
        if self.upgraded:
            return super().data_received(data)
        rest = self._read_head(data) if data and self._answer is None else data
        if self._answer is None:
            if rest and self.exception() is None:
                self._receive_part(rest)
            return
        head, body = self._answer
        if body.is_eof():
            return self._end(not rest)
        read_before = body.total_bytes
        if rest or not data:
            super().data_received(rest)
        if body.is_eof():  # so as not to miss the beginning of another answer: where this one ends has to be seen
            is_exact = rest.endswith(b"\r\n\r\n") if head.chunked else len(rest) == body.total_bytes - read_before
            self._end(is_exact and bool(data))

    def is_stale(self, oldest: float) -> bool:
        """Tell whether the last answer ended before *oldest* (the event loop's time), and nothing was asked since."""
        return self._idle_since is not None and self._idle_since < oldest

    def _read_head(self, data: bytes) -> bytes:
        """Take a head by itself, since the rest could spoil it. Return the rest."""
        while self._answer is None and self.exception() is None and not self.upgraded:
            found = (self._last_bytes + data).find(b"\r\n\r\n")
            if found < 0:
                break
            end = found + 4 - len(self._last_bytes)
            self._last_bytes = b""
            super().data_received(data[:end])
            data = data[end:]
        return data

    def _receive_part(self, data: bytes) -> None:
        """Take a part of a head, or one of bare line feeds, with what comes behind it."""
        self._last_bytes = (self._last_bytes + data)[-3:]
        super().data_received(data)
        if self._answer is not None and self._answer[1].is_eof():
            self._end(False)  # how long its head was is not known, and so neither whether more came

    def _break_answer(self, error: BaseException) -> None:
        if self._answer is not None and not self._answer[1].is_eof():
            broken = aiohttp.ClientPayloadError()
            broken.__cause__ = error
            self._answer[1].set_exception(broken)

    def _end(self, is_reusable: bool) -> None:
        is_reusable = is_reusable and self._answer[0].code < 500  # servers close after what they didn't expect
        self._answer = None
        self._idle_since = self._loop.time()
        if not is_reusable:
            self.force_close()
            self.close()


class Connector(aiohttp.TCPConnector):
    """Keeps connections for *keepalive_seconds*, and tries one that can't be made once more."""

    def __init__(self, keepalive_seconds: float, **options: Any) -> None:
        super().__init__(keepalive_timeout=keepalive_seconds, **options)
        self._keepalive_seconds = keepalive_seconds
        self._connections: set[UpstreamConnection] = set()
        self._factory: Any = partial(UpstreamConnection, self._connections, loop=self._loop)
        self._sweeping: asyncio.TimerHandle | None = None

    async def connect(self, req: ClientRequest, traces: list[Any], timeout: ClientTimeout) -> Connection:  # noqa: ASYNC109
        """Return a connection, kept or new."""
        try:
            connection = await super().connect(req, traces, timeout)
        except (aiohttp.ClientConnectorError, TimeoutError):
            connection = await super().connect(req, traces, timeout)
        if connection.transport is None:  # it ended before the event loop came to use it
            connection.close()
            connection = await super().connect(req, traces, timeout)
        if self._sweeping is None:
            self._sweep()
        return connection

    def _sweep(self) -> None:
        """Close what is idle for too long: aiohttp itself takes up to twice the time."""
        self._sweeping = None
        if self._connections:
            self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        oldest = self._loop.time() - self._keepalive_seconds
        for connection in [each for each in self._connections if each.is_stale(oldest)]:
            connection.close()
