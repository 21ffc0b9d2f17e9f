"""What one process knows of the pins in a shared store."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from ..pins import Pin


class Known(msgspec.Struct, gc=False):
    """What is known of a key.

    - `pin`: the one that the store said, or that was decided while it did not answer; None: it was given up.
    - `expires`: when it lapses, on the timer.
    - `outage`: the number of the last outage when the store said so.
    - `is_told`: False for what the store could not be told yet.
    - `voided`: pins that were decided before this are given up, in seconds of the wall clock.
    """

    pin: Pin | None
    expires: float
    outage: int
    is_told: bool = True
    voided: float = 0.0


class LocalCopy:
    """At most *max_entries* keys, the least recently used goes first. For several threads.

    *ttl_seconds* and *sliding* are as for `MemoryStore`; *timer* is monotonic, *now* the wall clock.
    """

    def __init__(
        self,
        *,
        ttl_seconds: float = 600,
        sliding: bool = True,
        max_entries: int = 10_000,
        timer: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ttl = ttl_seconds
        self._sliding = sliding
        self._max_entries = max_entries
        self._timer = timer
        self._now = now
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Known] = OrderedDict()  # the least recently used first
        self._untold: dict[bytes, None] = {}
        self.outage = 0
        """The number of the last outage of the store: it may have lost what it said before."""

    def find(self, key: bytes) -> Known | None:
        """Return what is known of a key, which is a use of it."""
        with self._lock:
            known = self._known.get(key)
            if known is None:
                return None
            now = self._timer()
            if known.expires <= now:
                self._drop(key)
                return None
            self._known.move_to_end(key)
            if self._sliding:
                known.expires = now + self._ttl
            return known

    def is_in_doubt(self, known: Known) -> bool:
        """Tell whether the store may not know this, not because it was given up there."""
        return not known.is_told or known.outage != self.outage

    @property
    def has_untold(self) -> bool:
        """Whether the store is to be told something."""
        return bool(self._untold)

    def untold(self) -> list[bytes]:
        """Return the keys of what the store is to be told."""
        with self._lock:
            return list(self._untold)

    def keep(self, key: bytes, pin: Pin | None) -> None:
        """Take over what the store said."""
        with self._lock:
            self._drop(key)
            if pin is not None:
                self._put(key, Known(pin, self._expiry(pin), self.outage))

    def decide(self, key: bytes, pin: Pin) -> None:
        """Keep a decision that the store could not be told, unless there is one."""
        with self._lock:
            known = self._known.pop(key, None)
            if known is None or known.pin is None:
                known = Known(pin, self._expiry(pin), self.outage, False, 0.0 if known is None else known.voided)
            self._put(key, known)

    def void(self, key: bytes) -> None:
        """Give up whatever was decided up to now, which the store could not be told."""
        with self._lock:
            self._drop(key)
            self._put(key, Known(None, self._timer() + self._ttl, self.outage, False, self._now()))

    def drop(self, key: bytes, pin: Pin) -> None:
        """Forget *pin*, which was given up in the store."""
        with self._lock:
            known = self._known.get(key)
            if known is not None and known.pin == pin:
                self._drop(key)

    def _expiry(self, pin: Pin) -> float:
        """Return when a pin lapses: without sliding, counted from the decision, wherever it was made."""
        return self._timer() + self._ttl - (0 if self._sliding else max(0, self._now() - pin.created))

    def _put(self, key: bytes, known: Known) -> None:
        self._known[key] = known
        if not known.is_told:
            self._untold[key] = None
        if len(self._known) > self._max_entries:
            self._drop(next(iter(self._known)))

    def _drop(self, key: bytes) -> None:
        self._known.pop(key, None)
        self._untold.pop(key, None)
