"""A table of values that lapse, where the least recently used goes first."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic

import msgspec
from cachetools import Cache, LRUCache

from .base import Lapsed, ValueT

_peek = Cache.__getitem__  # which is no use of the entry


class _Entry(msgspec.Struct, Generic[ValueT], gc=False):
    value: ValueT
    expires: float  # on the timer


class ExpiringLRU(Generic[ValueT]):
    """At most *max_entries* values, each with its expiry beside it. If *sliding*, a use starts its *ttl_seconds* again.

    What has lapsed is told as `Lapsed` for *kept_seconds*, and goes first where there is no room. After that it leaves
    when it is found. No call has to do with more than a few entries: cachetools' TTLCache would stop the event loop for
    all that lapsed meanwhile.
    """

    def __init__(
        self, max_entries: int, *, ttl_seconds: float, sliding: bool, kept_seconds: float, timer: Callable[[], float]
    ) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries: found {max_entries!r}, expected at least 1")
        # Not a subclass: Python is faster where a method sees one class only.
        self._entries: LRUCache[bytes, _Entry[ValueT]] = LRUCache(max_entries)
        # Where a use starts no time again, the least recently used is not the first to lapse: in the order of expiry.
        self._by_expiry: OrderedDict[bytes, None] | None = None if sliding else OrderedDict()
        self._ttl = ttl_seconds
        self._kept = kept_seconds
        self._timer = timer

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: bytes) -> ValueT | Lapsed[ValueT] | None:
        """Return the value of *key*, which is a use of it; or what has lapsed, of which it is none; or None."""
        entries = self._entries
        if key not in entries:  # an exception would cost a miss ten times as much
            return None
        entry = _peek(entries, key)
        now = self._timer()
        if entry.expires <= now:
            return self._find_lapsed(key, entry, now)
        entry = entries[key]  # the use
        if self._by_expiry is None:
            entry.expires = now + self._ttl
        return entry.value

    def peek(self, key: bytes) -> ValueT | None:
        """Return the value of *key*, lapsed or not, which is no use of it; or None."""
        return _peek(self._entries, key).value if key in self._entries else None

    def add(self, key: bytes, value: ValueT) -> ValueT:
        """Put *value* in unless there is one that holds, which is no use of that; return the one that is there."""
        entries = self._entries
        if key in entries:
            entry = _peek(entries, key)
            if entry.expires > self._timer():
                return entry.value
        self.put(key, value)
        return value

    def put(self, key: bytes, value: ValueT, age: float = 0) -> None:
        """Put *value* in, in the place of any other; *age* is how many seconds of its time are over."""
        now = self._timer()
        if self._by_expiry is not None:
            if key not in self._entries and len(self._entries) >= self._entries.maxsize:
                self._make_room(self._by_expiry, now)
            self._by_expiry[key] = None
            self._by_expiry.move_to_end(key)
        self._entries[key] = _Entry(value, now + self._ttl - age)

    def drop(self, key: bytes) -> None:
        """Forget the value of *key*, if there is one."""
        self._entries.pop(key, None)
        if self._by_expiry is not None:
            self._by_expiry.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        if self._by_expiry is not None:
            self._by_expiry.clear()

    def _make_room(self, by_expiry: OrderedDict[bytes, None], now: float) -> None:
        first = next(iter(by_expiry))
        if _peek(self._entries, first).expires <= now:
            del self._entries[first]
        else:
            first, _ = self._entries.popitem()
        del by_expiry[first]

    def _find_lapsed(self, key: bytes, entry: _Entry[ValueT], now: float) -> Lapsed[ValueT] | None:
        overdue = now - entry.expires
        if overdue < self._kept:
            return Lapsed(entry.value, overdue)
        self.drop(key)
        return None
