"""A time limit for a call of a store."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

ResultT = TypeVar("ResultT")

_ROUNDS = 3  # of the event loop, in which what has come in meanwhile gets to whom it is for


async def within(seconds: float, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Return what *call* gives; whatever it fails by, but for a cancellation from outside, is an Exception."""
    if seconds <= 0:
        raise TimeoutError
    task = asyncio.current_task()
    assert task is not None
    cancellations = task.cancelling()
    try:
        async with asyncio.timeout(None) as timeout:
            limit = _TimeLimit(timeout, seconds)
            try:
                return await call()
            finally:
                limit.cancel()
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # also what the store's client is cancelled by, or a panic of native code
        if isinstance(error, asyncio.CancelledError) and task.cancelling() > cancellations:
            raise
        raise RuntimeError("the store's client was cancelled, or broke down") from error


class _TimeLimit:
    """Ends *timeout* after so many *seconds*, but not a call whose answer is there and only has not been looked at.

    Where the event loop itself was busy for a good part of that time, the call gets it once more.
    """

    def __init__(self, timeout: asyncio.Timeout, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        self._seconds = seconds
        self._rounds = _ROUNDS
        self._has_extra_time = False
        self._start()

    def _start(self) -> None:
        self._due = self._loop.time() + self._seconds
        self._handle: asyncio.Handle = self._loop.call_at(self._due, self._is_due)

    def _is_due(self) -> None:
        if not self._has_extra_time and self._loop.time() - self._due > self._seconds / 10:
            self._has_extra_time = True
            self._start()
        elif self._rounds:
            self._rounds -= 1
            self._handle = self._loop.call_soon(self._is_due)
        else:
            self._timeout.reschedule(self._loop.time())

    def cancel(self) -> None:
        """Let the call go on: it is over."""
        self._handle.cancel()
