"""A table of values that lapse, where the least recently used goes first."""

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
from cachetools import Cache, LRUCache

ValueT = TypeVar("ValueT")


class _Entry(msgspec.Struct, Generic[ValueT], gc=False):
    value: ValueT
    expires: float  # on the timer


class ExpiringLRU(Generic[ValueT]):
    """At most *max_entries* values, each with its expiry beside it. If *sliding*, a use starts its *ttl_seconds* again.

    What has lapsed leaves when it is found, else from the least recent end when the table is full: no call has to do
    with more than one entry. cachetools' TTLCache would stop the event loop for all that lapsed meanwhile.
    """

    def __init__(self, max_entries: int, *, ttl_seconds: float, sliding: bool, timer: Callable[[], float]) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries: found {max_entries!r}, expected at least 1")
        # Not a subclass: Python is faster where a method sees one class only.
        self._entries: LRUCache[bytes, _Entry[ValueT]] = LRUCache(max_entries)
        self._ttl = ttl_seconds
        self._sliding = sliding
        self._timer = timer

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: bytes) -> ValueT | None:
        """Return the value of *key*, which is a use of it; or None."""
        entries = self._entries
        if key not in entries:  # an exception would cost a miss ten times as much
            return None
        entry = entries[key]
        now = self._timer()
        if entry.expires <= now:
            del entries[key]
            return None
        if self._sliding:
            entry.expires = now + self._ttl
        return entry.value

    def peek(self, key: bytes) -> ValueT | None:
        """Return the value of *key*, which is no use of it; or None."""
        if key not in self._entries:
            return None
        entry = Cache.__getitem__(self._entries, key)
        return entry.value if entry.expires > self._timer() else None

    def add(self, key: bytes, value: ValueT) -> ValueT:
        """Put *value* in unless there is one, which is no use of that; return the one that is there."""
        entries = self._entries
        if key in entries:
            held = self.peek(key)
            if held is not None:
                return held
        entries[key] = _Entry(value, self._timer() + self._ttl)
        return value

    def put(self, key: bytes, value: ValueT, age: float = 0) -> None:
        """Put *value* in, in the place of any other; *age* is how many seconds of its time are over."""
        self._entries[key] = _Entry(value, self._timer() + self._ttl - age)

    def drop(self, key: bytes) -> None:
        """Forget the value of *key*, if there is one."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
