"""Pins in this process's memory."""

import time
from collections.abc import Callable

import msgspec
from cachetools import LRUCache

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
        self._entries: LRUCache[bytes, _Entry] = LRUCache(max_entries)
        self._timer = timer

    def __len__(self) -> int:
        """Return how many pins there are, lapsed ones that nobody asked for among them."""
        return len(self._entries)

    async def get(self, key: bytes) -> Pin | None:
        """Return the pin of *key*, or None; see `PinStore.get`."""
        if key not in self._entries:
            return None
        entry = self._entries[key]
        now = self._timer()
        if entry.expires <= now:
            del self._entries[key]
            return None
        if self._sliding:
            entry.expires = now + self._ttl
        return entry.pin

    async def add(self, key: bytes, pin: Pin) -> Pin:
        """Keep *pin* unless there is one; see `PinStore.add`."""
        now = self._timer()
        if key in self._entries and self._entries[key].expires > now:
            return self._entries[key].pin
        self._entries[key] = _Entry(pin, now + self._ttl)
        return pin

    async def discard(self, key: bytes, pin: Pin) -> bool:
        """Give up *pin* if it still holds; see `PinStore.discard`."""
        if key not in self._entries or self._entries[key].pin != pin:
            return False
        del self._entries[key]
        return True

    async def aclose(self) -> None:
        """Forget all pins."""
        self._entries.clear()
