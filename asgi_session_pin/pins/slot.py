"""The place of one request in the pin table: what it asks for there, and what it cost."""

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TypeVar

from ..events import Cause, Operation, StoreCall
from ..log import Opaque
from .turns import Turn

AnswerT = TypeVar("AnswerT")


class Slot(Opaque):
    """The place of one request in the pin table.

    - `key`: of its pin.
    - `hold`: has its body count among those that are held, and tells whether there is room for it to wait.
    - `resets`: whether it gives any pin up, so that it waits for nobody.
    - `is_multiplexed`: whether it is one of several of a task, which are answered at the same time: on a websocket.
    - `turn`: to lead, while others wait; it has to be given back.
    - `has_waited`: whether its pin is another request's choice that it waited for.
    - `waited_seconds`: how long it waited for that.
    - `calls`: of the store.
    - `changes`: of the pin.
    - `failed`: whether the store did not answer.
    - `until`: when the time is over that the store has before the app is called, on the timer.
    """

    key: bytes
    hold: Callable[[], bool] = bool  # which is False: there is no room
    resets: bool = False
    is_multiplexed: bool = False
    turn: Turn | None = None
    has_waited: bool = False
    waited_seconds: float = 0.0
    calls: tuple[StoreCall, ...] = ()
    changes: tuple[Cause, ...] = ()
    failed: bool = False
    until: float | None = None

    async def timed(self, operation: Operation, asking: Awaitable[AnswerT]) -> AnswerT:
        """Take note of the time that the store takes."""
        started = perf_counter()
        failed = True
        try:
            answer = await asking
            failed = False
            return answer
        finally:
            self.calls += (StoreCall(operation, perf_counter() - started, failed),)

    def changed(self, cause: Cause) -> None:
        """Take note of what became of the pin."""
        self.changes += (cause,)
