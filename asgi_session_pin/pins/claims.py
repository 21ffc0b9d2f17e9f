"""One choice for parallel first requests in several processes: who has the claim leads, the others look for a pin."""

import asyncio
from collections.abc import Awaitable, Callable
from random import uniform

from ..pin import Pin
from .slot import Slot

# A look is two round trips. Routers decide within milliseconds, but gateways tell with the model's first words.
FIRST_DELAY_SECONDS = 0.01
LONGEST_DELAY_SECONDS = 0.25


async def claim_or_find(
    slot: Slot,
    *,
    claim: Callable[[], Awaitable[bool]],
    is_over: Callable[[], bool],
    look_up: Callable[[], Awaitable[Pin | None]],
    timer: Callable[[], float],
    waits_until: float,
    may_wait: bool,
) -> Pin | None:
    """With the turn in hand, get the claim too, or the pin that another process comes to meanwhile.

    Once the turn *is_over* there is nothing to claim: somebody here has chosen, or nobody will.

    Without either the request goes to the router: at *waits_until* on the timer, or at once if it may not wait.
    """
    started = timer() - slot.waited_seconds
    delay = FIRST_DELAY_SECONDS
    while True:
        may_go = is_over() or await claim()
        if slot.resets:
            return None
        # Also with the claim: somebody may have chosen since this request looked.
        pin = await look_up()
        left = waits_until - timer()
        if pin is not None or may_go or left <= 0 or not may_wait:
            return pin
        pause = min(uniform(delay / 2, delay), left)  # noqa: S311  # it spreads the load, and keeps no secret
        await asyncio.sleep(pause)
        slot.waited_seconds = timer() - started
        delay = min(2 * delay, LONGEST_DELAY_SECONDS)
