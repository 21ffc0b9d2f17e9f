"""One decision for parallel first requests in several processes: who has the claim decides, the others look for it."""

import asyncio
from random import uniform

from ..exchange import Exchange
from .table import Pin

# A look is two round trips. Routers decide within milliseconds, but gateways tell with the model's first words.
FIRST_DELAY_SECONDS = 0.01
LONGEST_DELAY_SECONDS = 0.25


async def claim(exchange: Exchange, size: int) -> Pin | None:
    """With the turn in hand, get the claim too, or the decision that another process comes to meanwhile.

    Without either the request goes to the router: after `routing.decision_wait_seconds`, where the store fails, or
    where bodies, of which this one has *size* bytes, take all the room for those that wait. The claim goes with the
    turn, and is given back with it.
    """
    pinning = exchange.pinning
    pin = None
    try:
        pin = await _claim_or_wait(exchange, size)
        exchange.used = pinning.timer()
    except Exception:
        exchange.store_failed()
    except BaseException:
        exchange.pass_turn()
        raise
    if pin is not None:
        exchange.status = b"wait" if exchange.waited_seconds else b"hit"
        pinning.turns.decided(exchange.key, pin)
        exchange.turn = None
    return pin


async def _claim_or_wait(exchange: Exchange, size: int) -> Pin | None:
    pinning, key, table = exchange.pinning, exchange.key, exchange.pinning.table
    started = pinning.timer() - exchange.waited_seconds
    waits_until = started + pinning.config.routing.decision_wait_seconds
    delay = FIRST_DELAY_SECONDS
    with pinning.turns.holding(size) as there_is_room:
        while True:
            claimed = await exchange.timed(table.claim(key, exchange.until()))
            if exchange.resets:
                return None
            # Also with the claim: somebody may have decided since this request looked.
            pin = await exchange.timed(table.look_up(key, exchange.until()))
            left = waits_until - pinning.timer()
            if pin is not None or claimed or left <= 0 or not there_is_room:
                return pin
            pause = min(uniform(delay / 2, delay), left)  # noqa: S311  # it spreads the load, and keeps no secret
            await asyncio.sleep(pause)
            exchange.waited_seconds = pinning.timer() - started
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)
