"""Pins in this process's memory."""

import time
from collections.abc import Callable

from ..pin import Pin
from ._lru import ExpiringLRU
from .base import Lapsed


class MemoryStore:
    """A table of at most *max_entries* pins, the least recently used goes first.

    A pin lapses *ttl_seconds* after its last use, or after its decision if *sliding* is False, and is kept for
    *tool_loop_seconds* more. The expiry stands in the entry and is looked at when the entry is: no sweep ever stops the
    event loop. Not for several threads. Raises ValueError if *max_entries* is less than 1.
    """

    def __init__(
        self,
        *,
        ttl_seconds: float = 600,
        sliding: bool = True,
        tool_loop_seconds: float = 3600,
        max_entries: int = 10_000,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = ExpiringLRU[Pin](
            max_entries, ttl_seconds=ttl_seconds, sliding=sliding, kept_seconds=tool_loop_seconds, timer=timer
        )
        self.find = self._table.find
        """Does as `get`, without a coroutine: most requests are hits."""

    def __len__(self) -> int:
        """Return how many pins there are, lapsed ones that nobody asked for among them."""
        return len(self._table)

    async def get(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        """Return the pin of *key*, or None; see `PinStore.get`."""
        return self.find(key)

    async def add(self, key: bytes, pin: Pin) -> Pin:
        """Keep *pin* unless there is one that holds; see `PinStore.add`."""
        return self._table.add(key, pin)

    async def discard(self, key: bytes, pin: Pin) -> bool:
        """Give up *pin* if it still is there; see `PinStore.discard`."""
        if self._table.peek(key) != pin:
            return False
        self._table.drop(key)
        return True

    async def aclose(self) -> None:
        """Forget all pins."""
        self._table.clear()
