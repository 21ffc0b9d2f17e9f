"""The place of one request in the pin table: what it asks for there, and what it cost."""

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TypeVar

from ..log import Opaque
from ..pin import Pin
from .turns import Turn

AnswerT = TypeVar("AnswerT")


def _never(pin: Pin | None = None) -> bool:
    return False


class Slot(Opaque):
    """The place of one request in the pin table.

    - `key`: of its pin.
    - `hold`: has its body count among those that are held, and tells whether there is room for it to wait.
    - `is_void`: tells whether a pin that is found is to be given up.
    - `resets`: whether any pin is, so that it waits for nobody.
    - `is_multiplexed`: whether it is one of several of a task, which are answered at the same time: on a websocket.
    - `turn`: to lead, while others wait; it has to be given back.
    - `has_waited`: whether its pin is another request's choice that it waited for.
    - `waited_seconds`, `store_seconds`: how long it waited for that, and for the store.
    - `failed`: whether the store did not answer.
    - `until`: when the time is over that the store has before the app is called, on the timer.
    """

    key: bytes
    hold: Callable[[], bool] = _never
    is_void: Callable[[Pin], bool] = _never
    resets: bool = False
    is_multiplexed: bool = False
    turn: Turn | None = None
    has_waited: bool = False
    waited_seconds: float = 0.0
    store_seconds: float = 0.0
    failed: bool = False
    until: float | None = None

    async def timed(self, asking: Awaitable[AnswerT]) -> AnswerT:
        """Count the time that the store takes."""
        started = perf_counter()
        try:
            return await asking
        finally:
            self.store_seconds += perf_counter() - started
