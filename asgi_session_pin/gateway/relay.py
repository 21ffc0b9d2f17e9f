"""One request on its way to the upstream, and its answer on the way back."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from enum import Enum

import aiohttp
from starlette.types import Message, Receive, Scope, Send

from ..log import names_of
from .forwarding import FAILURES, has_body, no_answer, not_sent
from .sending import Body
from .upstream import Upstream

logger = logging.getLogger("asgi_session_pin.gateway")

_UNWATCHED_SECONDS = 0.05  # most plain answers are there by then, without a task that waits for the client to leave
_WHOLE_BYTES = 1_048_576  # of more in one piece aiohttp warns
_PIECE_BYTES = 65_536  # each of which has its time to be taken


class UpstreamBroke(Exception):
    """The upstream's response broke off: the connection to the client has to be cut, since its status is out."""


class _Reason(Enum):
    """Why a request is given up."""

    LEFT = "the client left"
    STALLED = "the upstream does not take the body"
    OVER = "the request is over"  # what comes too late would hit what its task does by then


class _ClientLeft(Exception):
    """While it sent its body."""


class Relay:
    """Forwards one request and streams both ways, until the client leaves."""

    def __init__(
        self, upstream: Upstream, stall_seconds: float | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._upstream = upstream
        self._stall_seconds = stall_seconds
        self._scope = scope
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._given_up: _Reason | None = None
        self._has_answered = False
        self._watch_timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Forward."""
        task = asyncio.current_task()
        assert task is not None
        self._cancel = task.cancel
        cancelled_before = task.cancelling()
        try:
            await self._forward()
        except _ClientLeft:
            pass
        except asyncio.CancelledError:
            if self._given_up is None or task.uncancel() > cancelled_before:
                raise
            if self._given_up is _Reason.STALLED:
                await self._fail(TimeoutError())
        finally:
            self._given_up = _Reason.OVER
            self._stop_watching()

    async def _forward(self) -> None:
        try:
            answer, headers = await self._upstream.ask(self._scope, await self._body())
        except FAILURES as error:  # some of which are ValueErrors, too
            return await self._fail(error)
        except ValueError:
            self._stop_watching()
            return await not_sent()(self._scope, self._receive, self._send)
        self._has_answered = True
        try:
            await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await self._pass_on(answer.content)
        finally:
            answer.close()

    async def _pass_on(self, content: aiohttp.StreamReader) -> None:
        more = True
        while more:
            try:
                chunk = await content.readany()
            except FAILURES as error:
                return await self._fail(error)
            more = not content.at_eof()
            if not more:
                self._stop_watching()  # servers tell the end of a response like a client that leaves
            await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def _fail(self, error: Exception) -> None:
        """Answer for an upstream that did not, or not to the end."""
        self._stop_watching()
        if self._has_answered:
            raise UpstreamBroke(names_of(error)) from None  # the server logs it, with all that is chained to it
        logger.warning("the upstream did not answer: %s", names_of(error))
        await no_answer(error)(self._scope, self._receive, self._send)

    async def _body(self) -> Body:
        if not has_body(self._scope):
            self._watch_soon()
            return None
        message = await self._receive()
        if message["type"] != "http.request":
            raise _ClientLeft
        body: bytes = message.get("body", b"")
        if message.get("more_body") or len(body) > _WHOLE_BYTES:
            return self._pieces(message)
        self._watch_soon()
        return bytes(body)

    async def _pieces(self, message: Message) -> AsyncIterator[bytes | memoryview]:
        more = True
        while more:
            if message["type"] != "http.request":
                self._give_up(_Reason.LEFT)
                raise _ClientLeft
            more = message.get("more_body", False)
            if not more:
                self._watch_soon()
            body = message.get("body", b"")
            for piece in (body,) if len(body) <= _PIECE_BYTES else _cut(body):
                self._start_stall_timer()
                yield piece
                self._stop_stall_timer()
            if more:
                if self._watching is not None:  # it has what the upstream did not take, and ends when the client leaves
                    await self._watching
                message = await self._receive()

    def _start_stall_timer(self) -> None:
        if self._stall_seconds is not None:
            self._stall_timer = self._loop.call_later(self._stall_seconds, self._stall)

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def _stall(self) -> None:
        """Give up an upstream that takes nothing. One that answers may leave the rest of the body."""
        if not self._has_answered:
            self._give_up(_Reason.STALLED)
        elif self._watch_timer is None:  # the client may leave before it has sent that
            self._watch()

    def _give_up(self, reason: _Reason) -> None:
        if self._given_up is None:
            self._given_up = reason
            self._cancel()

    def _watch_soon(self) -> None:
        """Give up as soon as the client leaves."""
        self._watch_timer = self._loop.call_later(_UNWATCHED_SECONDS, self._watch)

    def _watch(self) -> None:
        self._watching = self._loop.create_task(self._wait_for_disconnect())

    def _stop_watching(self) -> None:
        self._stop_stall_timer()
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass  # the empty body of a request without one
        self._give_up(_Reason.LEFT)


def _cut(body: bytes) -> Iterator[memoryview]:
    whole = memoryview(body)
    for start in range(0, len(whole), _PIECE_BYTES):
        yield whole[start : start + _PIECE_BYTES]
