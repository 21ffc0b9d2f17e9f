"""What fails several times in a row is left alone, and tried again now and then."""

from collections.abc import Callable, Hashable

from cachetools import LRUCache

FAILURES_TO_REST = 3  # in a row: one key is not the store
FIRST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 5.0

_MOST_SHARDS = 1000  # that are remembered for their failures


class Breaker:
    """Tells whether a store, or a shard of one, is to be asked; *timer* is in seconds."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer
        self._failures = 0
        self._rest_seconds = FIRST_REST_SECONDS
        self._rests_until = 0.0
        self.is_out = False
        """Whether it failed lately, and is not to be asked."""

    def failed(self) -> bool:
        """Count a failure; tell whether it is out from now on."""
        self._failures += 1
        if self.is_out or self._failures < FAILURES_TO_REST:
            return False
        self.is_out = True
        self._rest(FIRST_REST_SECONDS)
        return True

    def may_try(self, seconds: float) -> bool:
        """Tell whether it may be tried now, for so many *seconds*, in which nobody else may."""
        if self._timer() < self._rests_until:
            return False
        self._rests_until = self._timer() + seconds
        return True

    def answered(self) -> None:
        """Start again: it is there."""
        self.is_out = False
        self._failures = 0

    def failed_again(self) -> None:
        """Let it rest for longer: a trial failed."""
        self._rest(min(2 * self._rest_seconds, LONGEST_REST_SECONDS))

    def _rest(self, seconds: float) -> None:
        self._rest_seconds = seconds
        self._rests_until = self._timer() + seconds


class Breakers:
    """The breakers of those shards of a store that failed, by what *shard_of* says of a key.

    The shards that answer have none: where all do, nobody asks which one a key is in.
    """

    def __init__(self, shard_of: Callable[[bytes], Hashable], timer: Callable[[], float]) -> None:
        self._shard_of = shard_of
        self._timer = timer
        self._failing: LRUCache[Hashable, Breaker] = LRUCache(_MOST_SHARDS)

    def find(self, key: bytes) -> Breaker | None:
        """Return the breaker of the shard of *key*; None: its last answer was one."""
        return self._failing.get(self._shard_of(key)) if self._failing else None

    def open(self, key: bytes) -> Breaker:
        """Return the breaker of the shard of *key*, which failed."""
        shard = self._shard_of(key)
        breaker = self._failing.get(shard)
        if breaker is None:
            breaker = self._failing[shard] = Breaker(self._timer)
        return breaker

    def answered(self, key: bytes) -> None:
        """Forget the failures of the shard of *key*, unless it is to be tried before it is asked."""
        breaker = self.find(key)
        if breaker is not None and not breaker.is_out:
            self._failing.pop(self._shard_of(key), None)
