"""What one process knows of the pins in a shared store."""

import math
import time
from collections.abc import Callable

import msgspec

from ..pin import Pin
from ._lru import ExpiringLRU
from .base import Lapsed


class Known(msgspec.Struct, gc=False):
    """What is known of a key.

    - `pin`: the one that the store said, or that was decided while it did not answer; None: it was given up.
    - `outage`: the number of the last outage when the store said so.
    - `is_told`: False for what the store could not be told: it is told when the key is used again.
    - `voided`: pins that were decided before this are given up, in seconds of the wall clock.
    """

    pin: Pin | None
    outage: int
    is_told: bool = True
    voided: float = 0.0


class LocalCopy:
    """At most *max_entries* keys, the least recently used goes first.

    *ttl_seconds*, *sliding* and *tool_loop_seconds* are as for `MemoryStore`; *timer* is monotonic, *now* the wall
    clock.
    """

    def __init__(
        self,
        *,
        ttl_seconds: float = 600,
        sliding: bool = True,
        tool_loop_seconds: float = 3600,
        max_entries: int = 10_000,
        timer: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ttl = ttl_seconds
        self._sliding = sliding
        self._now = now
        self._table = ExpiringLRU[Known](
            max_entries, ttl_seconds=ttl_seconds, sliding=sliding, kept_seconds=tool_loop_seconds, timer=timer
        )
        self.outage = 0
        """The number of the last outage of the store: it may have lost what it said before."""

    def find(self, key: bytes) -> tuple[Known | None, float | None]:
        """Return what is known of a key, which is a use of it, and how many seconds ago it lapsed, if it has."""
        found = self._table.find(key)
        return (found.value, found.overdue_seconds) if isinstance(found, Lapsed) else (found, None)

    def recall(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        """Return the pin of a key, which is a use of it, as a store would."""
        known, overdue = self.find(key)
        if known is None or known.pin is None:
            return None
        return known.pin if overdue is None else Lapsed(known.pin, overdue)

    def is_in_doubt(self, known: Known) -> bool:
        """Tell whether the store may not know this, not because it was given up there."""
        return not known.is_told or known.outage != self.outage

    def keep(self, key: bytes, found: Pin | Lapsed[Pin] | None) -> None:
        """Take over what the store said."""
        if found is None:
            self._table.drop(key)
        elif isinstance(found, Lapsed):
            self._table.put(key, Known(found.value, self.outage), self._ttl + found.overdue_seconds)
        else:
            self._table.put(key, Known(found, self.outage), self._age(found))

    def decide(self, key: bytes, pin: Pin) -> None:
        """Keep a decision that the store could not be told, unless there is one."""
        known, overdue = self.find(key)
        if known is None or known.pin is None or overdue is not None:
            voided = 0.0 if known is None else known.voided
            self._table.put(key, Known(pin, self.outage, False, voided), self._age(pin))

    def give_up(self, key: bytes, pin: Pin) -> None:
        """Give up *pin* and what was decided before it, which the store could not be told; a younger one stays."""
        known = self._table.peek(key)
        voided = max(0.0 if known is None else known.voided, math.nextafter(pin.created, math.inf))
        if known is None or known.pin is None or known.pin.created < voided:
            self._table.put(key, Known(None, self.outage, False, voided))
        else:
            known.voided = voided

    def void(self, key: bytes) -> None:
        """Give up whatever was decided up to now, which the store could not be told."""
        self._table.put(key, Known(None, self.outage, False, self._now()))

    def drop(self, key: bytes, pin: Pin) -> None:
        """Forget *pin*, which was given up in the store."""
        known = self._table.peek(key)
        if known is not None and known.pin == pin:
            self._table.drop(key)

    def _age(self, pin: Pin) -> float:
        """Return how much of a pin's time is over: without sliding, all since the decision, wherever it was made."""
        return 0 if self._sliding else max(0, self._now() - pin.created)
