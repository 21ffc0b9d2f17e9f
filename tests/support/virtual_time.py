"""An event loop whose time is no one's: where everybody waits, the next timer is due at once."""

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

_GRID = 1024  # parts of a second: sums of them are exact


class Deadlock(Exception):
    """Everybody waits, and no timer is left that could end it."""


class _Skipping(selectors.SelectSelector):
    """Waits for nothing. There is nobody to wait for but the timers: no sockets, no threads."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rounds = 0
        self.each_round: Callable[[], None] = lambda: None
        self.at_rest: asyncio.Event | None = None

    def select(self, timeout: float | None = None) -> list[Any]:
        self.rounds += 1
        self.each_round()
        if timeout is None:
            if self.at_rest is None or self.at_rest.is_set():
                raise Deadlock
            self.at_rest.set()
        elif timeout > 0:
            self.now = math.ceil((self.now + timeout) * _GRID) / _GRID
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs what needs no I/O as fast as it can, the same way each time. Raises Deadlock instead of hanging."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now

    async def rest(self) -> float:
        """Wait until no task has anything to do and no timer is left; return when the last one was due."""
        self._skipping.at_rest = asyncio.Event()
        await self._skipping.at_rest.wait()
        return self.time()

    def cancel_after(self, rounds: int, task: asyncio.Task[Any]) -> None:
        """Cancel *task* so many rounds of the loop from now."""
        due = self._skipping.rounds + rounds

        def cancel() -> None:
            if self._skipping.rounds == due:
                task.cancel()

        self._skipping.each_round = cancel


def run(work: Callable[[VirtualLoop], Coroutine[Any, Any, ResultT]]) -> ResultT:
    """Run a coroutine in a loop of its own."""
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(loop))
