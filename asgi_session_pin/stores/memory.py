"""Pins in this process's memory."""

import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from ..pins import Pin


class _Entry(msgspec.Struct, gc=False):
    pin: Pin
    expires: float  # on the timer


class MemoryStore:
    """A table of at most *max_entries* pins, the least recently used goes first.

    A pin lapses *ttl_seconds* after its last use, or after its decision if *sliding* is False. The expiry stands in the
    entry and is looked at when the entry is: no sweep ever stops the event loop. Not for several threads.
    """

    def __init__(
        self,
        *,
        ttl_seconds: float = 600,
        sliding: bool = True,
        max_entries: int = 10_000,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl = ttl_seconds
        self._sliding = sliding
        self._max_entries = max_entries
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # the least recently used first
        self._timer = timer

    def __len__(self) -> int:
        """Return how many pins there are, lapsed ones that nobody asked for among them."""
        return len(self._entries)

    async def get(self, key: bytes) -> Pin | None:
        """Return the pin of *key*, or None; see `PinStore.get`."""
        return self.find(key)

    def find(self, key: bytes) -> Pin | None:
        """Do as `get`, without a coroutine: most requests are hits."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        now = self._timer()
        if entry.expires <= now:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        if self._sliding:
            entry.expires = now + self._ttl
        return entry.pin

    async def add(self, key: bytes, pin: Pin) -> Pin:
        """Keep *pin* unless there is one; see `PinStore.add`."""
        entries = self._entries
        now = self._timer()
        entry = entries.get(key)
        if entry is not None and entry.expires > now:
            return entry.pin
        entries[key] = _Entry(pin, now + self._ttl)
        if entry is not None:
            entries.move_to_end(key)
        elif len(entries) > self._max_entries:
            entries.popitem(last=False)
        return pin

    async def discard(self, key: bytes, pin: Pin) -> bool:
        """Give up *pin* if it still holds; see `PinStore.discard`."""
        entry = self._entries.get(key)
        if entry is None or entry.pin != pin:
            return False
        del self._entries[key]
        return True

    async def aclose(self) -> None:
        """Forget all pins."""
        self._entries.clear()
