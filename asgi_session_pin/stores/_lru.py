"""A table of values that lapse, where the least recently used goes first."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic

from cachetools import Cache, LRUCache

from ._tenants import Entry, OwnedEntry, TenantLRU
from .base import Lapsed, ValueT

_peek = Cache.__getitem__  # which is no use of the entry


class ExpiringLRU(Generic[ValueT]):
    """At most *max_entries* values, each with its expiry beside it. If *sliding*, a use starts its *ttl_seconds* again.

    What has lapsed is told as `Lapsed` for *kept_seconds*, and goes first where there is no room. After that it leaves
    when it is found. No call has to do with more than a few entries: cachetools' TTLCache would stop the event loop for
    all that lapsed meanwhile.

    With *max_per_tenant* a tenant has so many at most, and its own least recently used one goes first. *on_evict* is
    called for each value that holds and has to go, since there is no room.
    """

    def __init__(
        self,
        max_entries: int,
        *,
        ttl_seconds: float,
        sliding: bool,
        kept_seconds: float,
        timer: Callable[[], float],
        max_per_tenant: int | None = None,
        on_evict: Callable[[], None] = lambda: None,
    ) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries: found {max_entries!r}, expected at least 1")
        self._tenants: TenantLRU[ValueT] | None = None if max_per_tenant is None else TenantLRU(max_entries)
        self._max_per_tenant = max_per_tenant or 0
        self._open_entry: type[Entry[ValueT]] = Entry if self._tenants is None else OwnedEntry
        # Not a subclass, if it can be: Python is faster where a method sees one class only.
        self._entries: LRUCache[bytes, Entry[ValueT]] = (
            LRUCache(max_entries) if self._tenants is None else self._tenants
        )
        # Where a use starts no time again, the least recently used is not the first to lapse: in the order of expiry.
        self._by_expiry: OrderedDict[bytes, None] | None = None if sliding else OrderedDict()
        self._ttl = ttl_seconds
        self._kept = kept_seconds
        self._timer = timer
        self._on_evict = on_evict
        # So that a listing can go on where it was, whatever was used meanwhile. The last one takes the place of one
        # that goes: going through it from its end tells of each key that stays at least once.
        self._keys: list[bytes] = []

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
        entries = self._entries
        if key in entries:
            place = _peek(entries, key).place
        else:
            surplus = None if self._tenants is None else self._tenants.surplus(key, self._max_per_tenant)
            if surplus is not None:
                self._evict(surplus, entries.pop(surplus), now)
            elif len(entries) >= entries.maxsize:
                self._make_room(now)
            place = len(self._keys)
            self._keys.append(key)
        if self._by_expiry is not None:
            self._by_expiry[key] = None
            self._by_expiry.move_to_end(key)
        entries[key] = self._open_entry(value, now + self._ttl - age, place)

    def drop(self, key: bytes) -> None:
        """Forget the value of *key*, if there is one."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._forget(key, entry)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._keys.clear()
        if self._by_expiry is not None:
            self._by_expiry.clear()

    def list_held(self, before: int | None, number: int) -> tuple[list[tuple[bytes, ValueT, float]], int]:
        """Look at so many keys, *before* a place or from the end.

        Return those whose value holds, with the value and the seconds that it has left, and before which place it goes
        on: 0 at the end.
        """
        end = len(self._keys) if before is None else min(before, len(self._keys))
        start = max(0, end - number)
        now = self._timer()
        found = []
        for key in reversed(self._keys[start:end]):
            entry = _peek(self._entries, key)
            if entry.expires > now:
                found.append((key, entry.value, entry.expires - now))
        return found, start

    def find_held(self, key: bytes) -> tuple[bytes, ValueT, float] | None:
        """Return the value of *key* as it is listed, if it holds, which is no use of it."""
        if key not in self._entries:
            return None
        entry = _peek(self._entries, key)
        left = entry.expires - self._timer()
        return (key, entry.value, left) if left > 0 else None

    def _make_room(self, now: float) -> None:
        """Let go of what has lapsed first, else of the least recently used."""
        key = None if self._by_expiry is None else next(iter(self._by_expiry))
        if key is not None and _peek(self._entries, key).expires <= now:
            entry = self._entries.pop(key)
        else:
            key, entry = self._entries.popitem()
        self._evict(key, entry, now)

    def _evict(self, key: bytes, entry: Entry[ValueT], now: float) -> None:
        """Take note that an entry had to go."""
        self._forget(key, entry)
        if entry.expires > now:
            self._on_evict()

    def _forget(self, key: bytes, entry: Entry[ValueT]) -> None:
        """Take what has gone out of the other orders, too."""
        last = self._keys.pop()
        if last is not key and last != key:
            self._keys[entry.place] = last
            _peek(self._entries, last).place = entry.place
        if self._by_expiry is not None:
            del self._by_expiry[key]

    def _find_lapsed(self, key: bytes, entry: Entry[ValueT], now: float) -> Lapsed[ValueT] | None:
        overdue = now - entry.expires
        if overdue < self._kept:
            return Lapsed(entry.value, overdue)
        self.drop(key)
        return None
