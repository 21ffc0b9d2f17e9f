"""What this process has seen of the pinned models: which names serve or are refused, which pins fail."""

import math
from collections.abc import Callable
from itertools import cycle

import msgspec
from cachetools import LRUCache

from ..config import Config
from ..pin import NamedModel, Pin

REST_SECONDS = 60
LONGEST_REFUSAL_SECONDS = 600
COMPARE_EVERY = 100
DRIFTS_TO_TELL = 3
MAX_REMEMBERED = 10_000


class PinHealth(msgspec.Struct, eq=False):
    """What is known of one pin.

    - `model`, `created`: which pin it is.
    - `first`: what the answer that made it named, with which answers under the pin are compared; None: with nothing.
    - `is_compared`: whether one was, as the first comparable one is.
    - `is_proven`: whether the pin's name has served under a pin, for this credential.
    - `failures`: how many there were in a row.
    - `failed_at`: when the last one was counted that did not overlap with another, on the timer.
    - `rests_until`: until when the request is not routed in place of a failure, on the timer.
    """

    model: str
    created: float
    first: NamedModel | None
    is_compared: bool = False
    is_proven: bool = False
    failures: int = 0
    failed_at: float = -math.inf
    rests_until: float = -math.inf


class Health:
    """Remembers, within bounds, how names and pins have done. All of it is this process's own.

    A name is proven, or refused, for one credential: another one may be allowed to use it, or not.
    """

    def __init__(self, config: Config, timer: Callable[[], float], *, compares_all: bool) -> None:
        self._refusal_seconds = min(config.routing.session_ttl_seconds, LONGEST_REFUSAL_SECONDS)
        self._give_up_after = config.failover.give_up_after
        self._timer = timer
        self._pins: LRUCache[bytes, PinHealth] = LRUCache(MAX_REMEMBERED)
        self._proven: LRUCache[tuple[bytes, str], None] = LRUCache(MAX_REMEMBERED)
        self._refused: LRUCache[tuple[bytes, str], float] = LRUCache(MAX_REMEMBERED)  # until when
        self._doubted: LRUCache[tuple[bytes, str], None] = LRUCache(MAX_REMEMBERED)  # refused once without being named
        self.has_refused = False
        """Whether any name ever was: mostly none is, and nothing need be asked."""
        self._drifts = 0  # pins in a row that drifted at their first comparable answer
        self.samples = cycle([False] * (COMPARE_EVERY - 1) + [True]) if not compares_all else cycle([True])
        """Tells for one answer after the other whether it is compared, where nothing else asks for it."""

    def of(self, key: bytes, pin: Pin) -> PinHealth:
        """Return what is known of the pin that *key* has now: of a new one, what it says itself."""
        try:
            known = self._pins[key]
            if known.created == pin.created and known.model == pin.model:
                return known
        except KeyError:
            pass
        known = self._pins[key] = PinHealth(pin.model, pin.created, pin.answered)
        return known

    def is_proven(self, credential: bytes, model: str) -> bool:
        """Tell whether *model* has served under a pin."""
        return (credential, model) in self._proven

    def prove(self, credential: bytes, model: str) -> None:
        """Remember that *model* has served under a pin."""
        self._proven[credential, model] = None
        self._refused.pop((credential, model), None)
        self._doubted.pop((credential, model), None)

    def refuse(self, credential: bytes, model: str) -> None:
        """Remember for a while that the gateway does not take *model* back."""
        self.has_refused = True
        self._refused[credential, model] = self._timer() + self._refusal_seconds

    def doubt(self, credential: bytes, model: str) -> bool:
        """Remember that *model* may not be taken; tell whether it counts as refused, as it does the second time."""
        is_refused = (credential, model) in self._doubted
        self._doubted[credential, model] = None
        if is_refused:
            self.refuse(credential, model)
        return is_refused

    def is_refused(self, credential: bytes, model: str) -> bool:
        """Tell whether *model* was refused lately."""
        try:
            return self._refused[credential, model] > self._timer()
        except KeyError:
            return False

    def is_last_failure(self, known: PinHealth) -> bool:
        """Tell whether one more failure of this pin is one too many."""
        return 0 < self._give_up_after <= known.failures + 1

    def fail(self, known: PinHealth, began: float) -> bool:
        """Count a failure of a request that *began* then, on the timer; tell whether the pin is to be given up.

        Failures of requests that overlap are one: an outage of a second is no reason, however many it hits.
        """
        if began < known.failed_at:
            return False
        known.failed_at = self._timer()
        if self.is_last_failure(known):
            return True
        known.failures += 1
        return False

    def rest(self, known: PinHealth) -> None:
        """Route no request in place of a failure of this pin for a while: the last attempt did no better."""
        known.rests_until = self._timer() + REST_SECONDS

    def rests(self, known: PinHealth) -> bool:
        """Tell whether routing did no better lately."""
        return known.rests_until > self._timer()

    def compared(self, known: PinHealth, has_drifted: bool) -> bool:
        """Take note of a pin's first comparable answer; tell whether it is time to say that the router heeds no pin."""
        known.is_compared = True
        self._drifts = self._drifts + 1 if has_drifted else 0
        return self._drifts == DRIFTS_TO_TELL
