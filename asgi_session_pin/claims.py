"""One decision for parallel first requests in several processes: who has the claim decides, the others look for it."""

import asyncio
from random import uniform

from .exchange import Exchange
from .pins import Pin

# A look is two round trips. Routers decide within milliseconds, but gateways tell with the model's first words.
FIRST_DELAY_SECONDS = 0.01
LONGEST_DELAY_SECONDS = 0.25


async def claim(exchange: Exchange, size: int) -> Pin | None:
    """With the turn in hand, get the claim too, or the decision that another process comes to meanwhile.

    Without either the request goes to the router: after `routing.decision_wait_seconds`, where the store fails, or
    where bodies, of which this one has *size* bytes, take all the room for those that wait.
    """
    pinning, turn = exchange.pinning, exchange.turn
    assert turn is not None
    pin = None
    try:
        pin = await _claim_or_wait(exchange, size)
        exchange.used = pinning.timer()
        if pin is not None and turn.token is not None:
            await pinning.table.release(exchange.key, turn.token)
            turn.token = None
    except Exception:
        exchange.store_failed()
    except BaseException:
        exchange.pass_turn()
        raise
    if pin is not None:
        exchange.status = b"wait" if exchange.waited_seconds else b"hit"
        pinning.turns.decided(exchange.key, pin)
        exchange.drop_turn()
    return pin


async def _claim_or_wait(exchange: Exchange, size: int) -> Pin | None:
    pinning, key, turn = exchange.pinning, exchange.key, exchange.turn
    table, limit = pinning.table, pinning.config.routing.decision_wait_seconds
    assert turn is not None
    started = pinning.timer() - exchange.waited_seconds
    delay = FIRST_DELAY_SECONDS
    with pinning.turns.holding(size) as there_is_room:
        while True:
            turn.token = await exchange.timed(table.claim(key, limit, exchange.seconds_for_store()))
            if exchange.resets:
                return None
            # Also with the claim: somebody may have decided since this request looked.
            pin = await exchange.timed(table.look_up(key, exchange.seconds_for_store()))
            left = limit - exchange.waited_seconds
            if pin is not None or turn.token is not None or left <= 0 or not there_is_room:
                return pin
            await asyncio.sleep(min(uniform(delay / 2, delay), left))  # noqa: S311  # spreads the load, keeps no secret
            exchange.waited_seconds = pinning.timer() - started
            delay = min(2 * delay, LONGEST_DELAY_SECONDS)
