"""One timer for all answers that are held back: a timer for each would cost more than the rest of a request."""

import asyncio
from contextvars import Context, copy_context
from typing import Protocol

HOLD_SECONDS = 1.0


class Held(Protocol):
    """An answer that is held back."""

    def time_is_up(self, context: Context) -> None:
        """Hold nothing any longer; *context* is that of the request."""


class HoldTimer:
    """Calls `time_is_up` of what it has for `HOLD_SECONDS`. It runs while there is anything, in one event loop."""

    def __init__(self) -> None:
        self._held: dict[Held, tuple[float, Context]] = {}  # until when, on the loop's clock; the first is due first
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_running = False

    def add(self, answer: Held) -> None:
        """Count from now on."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the other one is over, with all that was held in it
            self._loop = loop
            self._held.clear()
            self._is_running = False
        self._held[answer] = loop.time() + HOLD_SECONDS, copy_context()
        if not self._is_running:
            self._is_running = True
            loop.call_later(HOLD_SECONDS, self._tick, loop)

    def forget(self, answer: Held) -> None:
        """Count no longer."""
        self._held.pop(answer, None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            return
        now = loop.time()
        for answer, (due, context) in list(self._held.items()):
            if due > now:
                break
            del self._held[answer]
            answer.time_is_up(context)
        self._is_running = bool(self._held)
        if self._is_running:
            loop.call_at(next(iter(self._held.values()))[0], self._tick, loop)
