"""The pins of a middleware: which one is in force for a session, and who leads where there is none."""

import time
from collections.abc import Awaitable, Callable

from cachetools import LRUCache

from ..config import Config
from ..events import Cause
from ..log import logger
from ..pin import Pin
from ..stores import Lapsed, PinStore, ResilientStore, value_of
from .claims import claim_or_find
from .slot import Slot
from .turns import MAX_REMEMBERED, Turn, Turns

EndsBy = Callable[[Pin, float | None], Cause | None]
"""Returns by what a pin that was found ends at a request, or None; of one that lapsed, with the seconds since then."""

_MOST_TRIES = 20  # to replace a pin that others replace too
LONGEST_LEASE_SECONDS = 30  # a process that dies while it leads holds the others up for no longer


class PinTable:
    """Looks pins up, keeps the first choice of each session, and gives pins up.

    - *store*: where they are.
    - *shared*: the same store made resilient, if other processes use it too.
    - *on_failure*: called where the store failed. But for `forget` no failure of it is raised: the request goes on with
      what this process knows.
    - *timer* is monotonic, *now* the wall clock, both in seconds.
    """

    def __init__(
        self,
        store: PinStore,
        shared: ResilientStore | None,
        config: Config,
        *,
        on_failure: Callable[[], None],
        timer: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        routing = config.routing
        self._store = store if shared is None else shared
        self._shared = shared
        self._on_failure = on_failure
        self._timer = timer
        self.now = now
        self._ttl = routing.session_ttl_seconds
        self._kept = routing.tool_loop_seconds  # after that
        self._wait_seconds = routing.decision_wait_seconds
        self._lease = min(routing.decision_wait_seconds, LONGEST_LEASE_SECONDS)
        self._timeout = config.store.timeout_seconds
        self._can_claim = shared is not None and shared.can_claim
        self._unpinned: LRUCache[bytes, Pin] = LRUCache(MAX_REMEMBERED)  # which no answer under way brings back
        self._turns = Turns(
            wait_seconds=routing.decision_wait_seconds,
            on_end=self._release,
        )

    async def find_or_lead(self, slot: Slot, ends_by: EndsBy, *, is_absent: bool = False) -> Pin | None:
        """Return the pin in force. None: this request leads, and has the turn if others may wait for its choice.

        A pin that *ends_by* nothing holds, and goes on if it has lapsed; any other one is given up. With *is_absent* it
        is known that there is no pin now, lapsed or not.
        """
        choices = self._turns.choices
        found = None if is_absent else await self._look_up(slot)
        if found is not None:
            pin, overdue = value_of(found), found.overdue_seconds if isinstance(found, Lapsed) else None
            cause = ends_by(pin, overdue)
            if cause is None:
                return pin if overdue is None else await self._go_on(slot, pin)
            if overdue is None or cause == "reset":
                await self._unpin(slot, pin, cause, self._until(slot))
            else:  # the choice that is made now takes its place
                slot.changed("lapsed")
        outcome: Pin | Turn | None = self._turns.take(slot.key)
        if outcome is None and not slot.resets:
            outcome = await self._wait(slot)
        if not isinstance(outcome, Turn):
            return outcome
        slot.turn = outcome
        if self._shared is not None and self._can_claim:
            return await self._claim(slot, outcome, self._shared)
        # Somebody may have chosen while the store was asked, or another process while this request waited.
        if not slot.resets and (slot.waited_seconds or self._turns.choices != choices):
            return await self._leading(slot, self._look_for_choice(slot))
        return None

    async def record(self, slot: Slot, pin: Pin) -> Pin:
        """Keep a choice, and tell those that wait; return the pin in force, another one if somebody chose before."""
        chosen = pin
        try:
            pin = await slot.timed("add", self._store.add(slot.key, pin))
        except Exception:
            self._failed(slot)
            recalled = self._recall(slot)
            pin = recalled if isinstance(recalled, Pin) else pin
        if pin == chosen:
            slot.changed("made")
        self._turns.chosen(slot.key, pin)
        slot.turn = None
        return pin

    def enter(self, slot: Slot) -> None:
        """Have calls of the app to itself, by this task, not wait for its own choice; another task took the turn."""
        if slot.turn is not None:
            self._turns.enter(slot.turn)

    def unnamed(self, slot: Slot) -> None:
        """Let everybody who waits go on: the answer named no model, and the next one would not either."""
        self._turns.unnamed(slot.key)
        slot.turn = None

    def pass_turn(self, slot: Slot) -> None:
        """Let the next request lead."""
        if slot.turn is not None:
            self._turns.pass_on(slot.key, slot.turn)
            slot.turn = None

    async def unpin(self, slot: Slot, pin: Pin, cause: Cause) -> None:
        """Give a pin up, if it still is in force."""
        await self._unpin(slot, pin, cause, None)

    async def renew(self, slot: Slot, pin: Pin, seconds: float) -> None:
        """Start the time of a sliding pin again after an answer of so many *seconds*, in which it may have lapsed."""
        try:
            found = await slot.timed("get", self._store.get(slot.key))
            has_lapsed = isinstance(found, Lapsed) and found.value == pin
            is_past = found is None and seconds >= self._ttl + self._kept  # where it is gone sooner, it was given up
            if (has_lapsed or is_past) and seconds >= self._ttl and self._unpinned.get(slot.key) != pin:
                await slot.timed("add", self._store.add(slot.key, pin))
        except Exception:
            self._failed(slot)

    async def forget(self, key: bytes) -> bool:
        """Give the pin up, whichever it is; tell whether there was one. Where the store fails, it is done later.

        Raises what the store raises.
        """
        try:
            found = await self._store.get(key)
        except Exception:
            if self._shared is not None:
                self._shared.void(key)
            raise
        if found is None:
            return False
        pin = self._unpinned[key] = value_of(found)
        return await self._store.discard(key, pin) and not isinstance(found, Lapsed)

    async def put(self, key: bytes, pin: Pin) -> None:
        """Put a pin in the place of any other, and tell those that wait. Raises what the store raises."""
        for _ in range(_MOST_TRIES):
            found = await self._store.get(key)
            if found is not None:
                self._unpinned[key] = other = value_of(found)
                await self._store.discard(key, other)
            if await self._store.add(key, pin) == pin:
                return self._turns.chosen(key, pin)
        raise TimeoutError("others were faster each time")

    async def does_store_answer(self) -> bool:
        """Tell whether the store does, within its time."""
        try:
            await self._store.get(bytes(16))  # nobody's key
        except Exception:
            return False
        return True

    async def aclose(self) -> None:
        """Close the store. A failure is logged: it must not disturb the app's shutdown."""
        try:
            await self._store.aclose()
        except Exception:
            logger.exception("the pin store could not be closed")

    async def _look_up(self, slot: Slot) -> Pin | Lapsed[Pin] | None:
        """Return the pin that the store has; if it does not say, the one that this process knows."""
        try:
            return await slot.timed("get", self._ask(slot))
        except Exception:
            self._failed(slot)
            if slot.resets and self._shared is not None:
                self._shared.void(slot.key)
            return self._recall(slot)

    def _ask(self, slot: Slot) -> Awaitable[Pin | Lapsed[Pin] | None]:
        return self._store.get(slot.key) if self._shared is None else self._shared.get(slot.key, self._until(slot))

    async def _look_for_choice(self, slot: Slot) -> Pin | None:
        """Return the pin that was made since this request has looked, if the store says so."""
        found = await slot.timed("get", self._ask(slot))
        return found if isinstance(found, Pin) else None

    def _recall(self, slot: Slot) -> Pin | Lapsed[Pin] | None:
        """Return the pin that this process knows, for when a shared store does not answer."""
        return None if self._shared is None else self._shared.recall(slot.key)

    async def _go_on(self, slot: Slot, pin: Pin) -> Pin:
        """Start the time of a pin that lapsed again; return the pin in force, another one if somebody chose before."""
        key, shared = slot.key, self._shared
        try:
            add = self._store.add(key, pin) if shared is None else shared.add(key, pin, self._until(slot))
            return await slot.timed("add", add)
        except Exception:
            self._failed(slot)
            return pin

    async def _wait(self, slot: Slot) -> Pin | Turn | None:
        """Wait for the choice that another request is getting, or for the turn to get it."""
        started = self._timer()
        outcome = await self._turns.wait(slot.key, slot.hold, is_multiplexed=slot.is_multiplexed)
        slot.waited_seconds = self._timer() - started
        slot.has_waited = isinstance(outcome, Pin)
        return outcome

    async def _claim(self, slot: Slot, turn: Turn, shared: ResilientStore) -> Pin | None:
        found = claim_or_find(
            slot,
            claim=lambda: slot.timed("claim", shared.claim(slot.key, self._lease, self._until(slot))),
            is_over=lambda: self._turns.is_over(slot.key, turn),
            look_up=lambda: self._look_for_choice(slot),
            timer=self._timer,
            waits_until=self._timer() - slot.waited_seconds + self._wait_seconds,
            may_wait=slot.hold(),
        )
        return await self._leading(slot, found)

    async def _leading(self, slot: Slot, finding: Awaitable[Pin | None]) -> Pin | None:
        """Look for a pin with the turn in hand; a pin ends the turn, and so does a cancellation."""
        try:
            pin = await finding
        except Exception:
            self._failed(slot)
            return None
        except BaseException:
            self.pass_turn(slot)
            raise
        if pin is not None:
            self._turns.chosen(slot.key, pin)
            slot.turn = None
            slot.has_waited = slot.waited_seconds > 0
        return pin

    async def _unpin(self, slot: Slot, pin: Pin, cause: Cause, until: float | None) -> None:
        if pin.by_operator:
            return
        try:
            if await slot.timed("discard", self._discard(slot, pin, until)):
                slot.changed(cause)
        except Exception:
            self._failed(slot)
            slot.changed(cause)  # it is, for this process

    def _discard(self, slot: Slot, pin: Pin, until: float | None) -> Awaitable[bool]:
        self._unpinned[slot.key] = pin
        if self._shared is None:
            return self._store.discard(slot.key, pin)
        return self._shared.discard(slot.key, pin, until)

    def _until(self, slot: Slot) -> float | None:
        """Return when the time is over that the store has before the app; None: the request waits, each call has it."""
        if slot.waited_seconds:
            return None
        if slot.until is None:
            slot.until = self._timer() + self._timeout
        return slot.until

    def _failed(self, slot: Slot) -> None:
        slot.failed = True
        self._on_failure()

    def _release(self, key: bytes) -> None:
        """Let other processes lead again."""
        if self._shared is not None:
            self._shared.release(key)
