"""One choice for parallel first requests: one of them goes to the router, the others wait for what it chooses."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar

from cachetools import LRUCache

from ..log import Opaque
from ..pin import Pin

MAX_REMEMBERED = 10_000
MAX_WAITING = 10_000  # requests, of all sessions; a quarter of them of one


class Turn(Opaque):
    """The right to lead for a session, and those that wait for the choice."""

    waiting: deque[Outcome] | None = None
    ran_out: bool = False  # somebody waited in vain


Outcome = asyncio.Future[Pin | Turn | None]
_current: ContextVar[Turn | None] = ContextVar("current_turn", default=None)


class Turns:
    """Gives turns, and takes them back. Waiting is this process's own affair, and that of one event loop at a time."""

    def __init__(self, *, wait_seconds: float, on_end: Callable[[bytes], None] = lambda key: None) -> None:
        self._wait_seconds = wait_seconds
        self._on_end = on_end  # called when nobody here leads for a session any longer
        self.choices = 0
        """How many there were: tells whether one was made while a slow store was asked."""
        self._waiting = 0
        self._turns: dict[bytes, Turn] = {}
        self._unnamed: LRUCache[bytes, None] = LRUCache(MAX_REMEMBERED)  # sessions whose answers name no model
        self._loop: asyncio.AbstractEventLoop | None = None

    def take(self, key: bytes) -> Turn | None:
        """Return the turn to lead, which has to be given back; None if somebody else has it."""
        if not self._wait_seconds or key in self._unnamed:
            return None
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # whoever had a turn in another one is over with it
            self._loop = loop
            self._turns = {}
            self._waiting = 0
        if key in self._turns:
            return None
        turn = self._turns[key] = Turn()
        self.enter(turn)
        return turn

    def is_over(self, key: bytes, turn: Turn) -> bool:
        """Tell whether *turn* is not in force any more: somebody else has chosen for *key*, or nobody will."""
        return self._turns.get(key) is not turn

    def enter(self, turn: Turn) -> None:
        """Have this task have the turn."""
        _current.set(turn)

    async def wait(self, key: bytes, hold: Callable[[], bool], *, is_multiplexed: bool = False) -> Pin | Turn | None:
        """Wait for the choice, if *hold* tells that there is room for the body, which is held meanwhile.

        With *is_multiplexed* also for one of this very task.

        Returns the pin; or the turn to lead, which has to be given back; or None if there is nothing to wait for, or
        too many do.
        """
        turn = self._turns.get(key)
        if turn is None or turn.ran_out:
            return None
        if _current.get() is turn and not is_multiplexed:
            return None  # the app calls itself: this would wait for itself
        if turn.waiting is None:
            turn.waiting = deque()
        if self._waiting >= MAX_WAITING or len(turn.waiting) >= MAX_WAITING // 4 or not hold():
            return None
        loop = asyncio.get_running_loop()
        outcome: Outcome = loop.create_future()
        turn.waiting.append(outcome)
        timer = loop.call_later(self._wait_seconds, self._run_out, key, outcome)
        self._waiting += 1
        try:
            result = await outcome
            if isinstance(result, Turn):
                self.enter(result)
            return result
        except asyncio.CancelledError:
            if outcome.done() and not outcome.cancelled():
                given = outcome.result()
                if isinstance(given, Turn):  # at this very moment
                    self.pass_on(key, given)
            raise
        finally:
            timer.cancel()
            if loop is self._loop:
                self._waiting -= 1

    def chosen(self, key: bytes, pin: Pin) -> None:
        """Tell everybody who waits for *key* which pin it is."""
        self.choices += 1
        if self._unnamed:
            self._unnamed.pop(key, None)
        self._dissolve(key, pin)

    def unnamed(self, key: bytes) -> None:
        """Let everybody go on: an answer named no model, and the next one would not either."""
        if self._wait_seconds:
            self._unnamed[key] = None
        self._dissolve(key, None)

    def pass_on(self, key: bytes, turn: Turn) -> None:
        """Give the turn to the next who waits: there was no choice."""
        if self.is_over(key, turn):
            return  # somebody else has chosen
        del self._turns[key]
        while turn.waiting:
            outcome = turn.waiting.popleft()
            if not outcome.done():
                self._turns[key] = following = Turn(waiting=turn.waiting)
                outcome.set_result(following)
                return
        self._on_end(key)

    def _dissolve(self, key: bytes, result: Pin | None) -> None:
        turn = self._turns.pop(key, None)
        if turn is None:
            return
        for outcome in turn.waiting or ():
            if not outcome.done():
                outcome.set_result(result)
        self._on_end(key)

    def _run_out(self, key: bytes, outcome: Outcome) -> None:
        if not outcome.done():
            with contextlib.suppress(KeyError):
                self._turns[key].ran_out = True
            outcome.set_result(None)
