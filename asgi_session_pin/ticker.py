"""One timer for all answers that are under way, since a timer for each of them would cost more than the rest."""

import asyncio
from typing import Protocol

TICK_SECONDS = 0.5


class Watched(Protocol):
    """What wants to know that time passes."""

    def on_tick(self) -> None:
        """Look at how long it takes."""


class Ticker:
    """Calls `on_tick` of what it watches, twice a second, in the event loop where the watching began."""

    def __init__(self) -> None:
        self._watched: dict[asyncio.AbstractEventLoop, set[Watched]] = {}

    def watch(self, answer: Watched) -> None:
        """Begin to watch."""
        loop = asyncio.get_running_loop()
        if loop not in self._watched:
            self._watched = {other: watched for other, watched in self._watched.items() if not other.is_closed()}
            self._watched[loop] = set()
            loop.call_later(TICK_SECONDS, self._tick, loop)
        self._watched[loop].add(answer)

    def forget(self, answer: Watched) -> None:
        """Watch no longer."""
        self._watched.get(asyncio.get_running_loop(), set()).discard(answer)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        for answer in list(self._watched[loop]):
            answer.on_tick()
        if self._watched[loop]:
            loop.call_later(TICK_SECONDS, self._tick, loop)
        else:
            del self._watched[loop]
