"""Pins in this process's memory."""

import asyncio
import time
from collections.abc import Callable

from ..pin import Pin
from ._lru import ExpiringLRU
from .base import Entry, Lapsed, Page

_LOOKS_AT_ONCE = 500  # before others have their turn: a quarter of a millisecond
_MOST_LOOKS = 100


class MemoryStore:
    """A table of at most *max_entries* pins, the least recently used goes first.

    A pin lapses *ttl_seconds* after its last use, or after its decision if *sliding* is False, and is kept for
    *tool_loop_seconds* more. The expiry stands in the entry and is looked at when the entry is: no sweep ever stops the
    event loop. Not for several threads. Raises ValueError if *max_entries* is less than 1.

    With *max_per_tenant*, keys that begin with the same `TENANT_BYTES` are of one tenant. It has so many pins at most,
    and its own least recently used one goes first.
    """

    def __init__(
        self,
        *,
        ttl_seconds: float = 600,
        sliding: bool = True,
        tool_loop_seconds: float = 3600,
        max_entries: int = 10_000,
        max_per_tenant: int | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl = ttl_seconds
        self._note: bytes | None = None
        self.on_evict: Callable[[], None] = lambda: None
        """Called for each pin that holds and has to go, since there is no room."""
        self._table = ExpiringLRU[Pin](
            max_entries,
            ttl_seconds=ttl_seconds,
            sliding=sliding,
            kept_seconds=tool_loop_seconds,
            max_per_tenant=max_per_tenant,
            timer=timer,
            on_evict=lambda: self.on_evict(),
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

    async def peek(self, key: bytes) -> Entry | None:
        """Return the pin of *key*, if it holds; see `OperableStore.peek`."""
        found = self._table.find_held(key)
        return None if found is None else self._entry(*found)

    async def scan(self, after: str | None, limit: int) -> Page:
        """Return some pins; see `OperableStore.scan`."""
        if after is not None and not after.isdecimal():
            raise ValueError("no place of a listing")
        place = None if after is None else int(after)
        entries: list[Entry] = []
        for _ in range(_MOST_LOOKS):
            found, place = self._table.list_held(place, min(limit - len(entries), _LOOKS_AT_ONCE))
            entries += [self._entry(*each) for each in found]
            if len(entries) == limit or place == 0:
                break
            await asyncio.sleep(0)
        return Page(entries, str(place) if place else None)

    async def count(self) -> int:
        """Return how many pins hold; see `OperableStore.count`."""
        number = 0
        place: int | None = None
        while place != 0:
            found, place = self._table.list_held(place, _LOOKS_AT_ONCE)
            number += len(found)
            await asyncio.sleep(0)
        return number

    async def read_note(self) -> bytes | None:
        """Return the note; see `OperableStore.read_note`."""
        return self._note

    async def replace_note(self, old: bytes | None, new: bytes) -> bool:
        """Replace the note if it is *old*; see `OperableStore.replace_note`."""
        is_old = self._note == old
        if is_old:
            self._note = new
        return is_old

    def _entry(self, key: bytes, pin: Pin, left: float) -> Entry:
        return Entry(key, pin, max(0.0, self._ttl - left))

    async def aclose(self) -> None:
        """Forget all pins."""
        self._table.clear()
