"""A shared store's bad day: what a request waits for it is bounded, and this process has a copy to go on with."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, TypeVar

from ..log import logger
from ..pin import Pin, is_pin
from ._breakers import Breaker, Breakers
from .base import ClaimingStore, Lapsed, PinStore, ShardedStore, value_of
from .local_copy import Known, LocalCopy

ResultT = TypeVar("ResultT")

TRIAL_SECONDS = 2.0  # nobody waits for a trial, which may have to connect
CLOSING_SECONDS = 5.0


class StoreUnavailable(Exception):
    """The store failed, did not answer in time, or is not asked for the moment."""


class ResilientStore:
    """Asks a shared store, and remembers what it said for the time in which it does not answer.

    - *store*: the shared store.
    - *copy*: what this process knows. It is not read while the store answers, else replicas would each hold on to their
      own.
    - *timeout_seconds*: for each call that is given no other time.

    All methods raise StoreUnavailable where the store fails. After some failures in a row it is left alone, or the one
    shard of it that failed, and tried again now and then while nobody waits. What was decided and given up meanwhile is
    told to it when the key is used again: the first writer wins there. For one event loop at a time.
    """

    def __init__(
        self,
        store: PinStore,
        copy: LocalCopy,
        *,
        timeout_seconds: float,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._claims = store if isinstance(store, ClaimingStore) else None
        self._copy = copy
        self._timeout = timeout_seconds
        self._timer = timer
        shard_of: Callable[[bytes], Hashable] = store.shard_of if isinstance(store, ShardedStore) else _the_only_shard
        self._breakers = Breakers(shard_of, timer)
        self._tokens: dict[bytes, bytes] = {}  # of the claims that this process has
        self._beside: set[asyncio.Task[None]] = set()  # trials and releases, for which nobody waits
        self._told = False

    async def get(self, key: bytes, until: float | None = None) -> Pin | Lapsed[Pin] | None:
        """Return the pin of *key*, by the time *until* on the timer; see `PinStore.get`."""
        until = self._until(until)
        found = await self._ask(key, lambda: self._read(key), until, is_read=True)
        known, overdue = self._copy.find(key)
        if known is not None and self._copy.is_in_doubt(known):
            found = await self._settle(key, found, known, overdue, until)
        self._copy.keep(key, found)
        return found

    async def add(self, key: bytes, pin: Pin, until: float | None = None) -> Pin:
        """Keep *pin* unless there is one that holds, by the time *until*; see `PinStore.add`.

        If that fails, this process keeps it.
        """
        until = self._until(until)
        try:
            winner = await self._ask(key, lambda: self._write(key, pin), until)
            known, _ = self._copy.find(key)
            if known is not None and winner.created < known.voided:
                await self._ask(key, lambda: self._store.discard(key, winner), until)
                winner = await self._ask(key, lambda: self._write(key, pin), until)
        except StoreUnavailable:
            self._copy.decide(key, pin)
            raise
        self._copy.keep(key, winner)
        return winner

    async def discard(self, key: bytes, pin: Pin, until: float | None = None) -> bool:
        """Give up *pin* if it still holds, by the time *until*; see `PinStore.discard`."""
        try:
            held = await self._ask(key, lambda: self._store.discard(key, pin), self._until(until))
        except StoreUnavailable:
            self._copy.give_up(key, pin)
            raise
        self._copy.drop(key, pin)
        return held

    def recall(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        """Return the pin that this process knows, for when the store does not answer."""
        return self._copy.recall(key)

    def void(self, key: bytes) -> None:
        """Give up the pin of *key*, whichever it is, while the store does not answer."""
        self._copy.void(key)

    @property
    def can_claim(self) -> bool:
        """Whether processes agree by this store on who decides."""
        return self._claims is not None

    async def claim(self, key: bytes, lease_seconds: float, until: float | None = None) -> bool:
        """Take the right to decide, by the time *until*, or see whether this process still has it.

        See `ClaimingStore.claim`. It is to be released; where it is so while the store is asked, it is not taken.
        """
        claims = self._claims
        assert claims is not None
        token = self._tokens.setdefault(key, secrets.token_bytes(16))
        try:
            claimed = await self._ask(key, lambda: claims.claim(key, token, lease_seconds), self._until(until))
        except asyncio.CancelledError:
            self._let_go(key, token)  # who asked has left, and whoever is next has to ask
            raise
        if self._tokens.get(key) is not token:  # it was released meanwhile, perhaps before the store gave it
            self._let_go(key, token)
            return False
        if not claimed:
            del self._tokens[key]
        return claimed

    def release(self, key: bytes) -> None:
        """Give the claim back that this process has, if it has one; nobody waits for it, and if it fails it lapses."""
        token = self._tokens.get(key)
        if token is not None:
            self._let_go(key, token)

    async def aclose(self) -> None:
        """Close the store; raises what it raises, TimeoutError after 5 seconds."""
        loop = asyncio.get_running_loop()
        beside = [task for task in self._beside if task.get_loop() is loop]
        for task in beside:
            task.cancel()
        async with asyncio.timeout(CLOSING_SECONDS):
            if beside:
                await asyncio.wait(beside)  # none of them may open again what is closed here
            await self._store.aclose()

    def _until(self, until: float | None = None) -> float:
        return self._timer() + self._timeout if until is None else until

    async def _settle(
        self, key: bytes, found: Pin | Lapsed[Pin] | None, known: Known, overdue: float | None, until: float
    ) -> Pin | Lapsed[Pin] | None:
        """Tell the store what it missed of a key, and return what it has then; *overdue* is for what is known."""
        pin = None if found is None else value_of(found)
        if pin is not None and pin.created < known.voided:
            await self._ask(key, lambda: self._store.discard(key, pin), until)
            found = None
        if known.pin is None or isinstance(found, Pin):
            return found
        if overdue is not None:  # whoever goes on in its tool loop will tell the store
            return found or Lapsed(known.pin, overdue)
        offered = known.pin
        return await self._ask(key, lambda: self._write(key, offered), until)

    async def _ask(
        self, key: bytes, call: Callable[[], Awaitable[ResultT]], until: float, is_read: bool = False
    ) -> ResultT:
        breaker = self._breakers.find(key)
        if breaker is not None and breaker.is_out:
            self._try_again(key, breaker)
            raise StoreUnavailable("the store failed lately and is not asked for the moment")
        seconds = until - self._timer()
        try:
            result = await _within(seconds, call)
        except Exception as error:
            # That a write is refused, since the server is full or a replica, says nothing of the reads. Nor does it
            # say much that what is left of a request's time was not enough.
            is_short = isinstance(error, TimeoutError) and seconds < self._timeout * 0.9
            if (is_read or isinstance(error, TimeoutError)) and not is_short and self._breakers.open(key).failed():
                self._copy.outage += 1
            raise StoreUnavailable("the store did not answer") from error
        self._breakers.answered(key)
        return result

    def _try_again(self, key: bytes, breaker: Breaker) -> None:
        seconds = max(TRIAL_SECONDS, self._timeout)
        if breaker.may_try(seconds):
            self._start(self._try(key, seconds, breaker))

    async def _try(self, key: bytes, seconds: float, breaker: Breaker) -> None:
        try:
            await _within(seconds, lambda: self._read(key))
        except Exception:
            breaker.failed_again()
        else:
            breaker.answered()

    def _let_go(self, key: bytes, token: bytes) -> None:
        if self._tokens.get(key) is token:
            del self._tokens[key]
        self._start(self._give_back(key, token))

    async def _give_back(self, key: bytes, token: bytes) -> None:
        claims = self._claims
        assert claims is not None
        with contextlib.suppress(StoreUnavailable):
            await self._ask(key, lambda: claims.release(key, token), self._until())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _read(self, key: bytes) -> Pin | Lapsed[Pin] | None:
        found = await self._store.get(key)
        pin = None if found is None else value_of(found)
        if pin is None or is_pin(pin):
            return found
        with contextlib.suppress(Exception):  # a miss all the same, and no failure of the store
            await self._remove(key, pin)
        return None

    async def _write(self, key: bytes, pin: Pin) -> Pin:
        in_force = await self._store.add(key, pin)
        if not is_pin(in_force):
            await self._remove(key, in_force)
            in_force = await self._store.add(key, pin)
            if not is_pin(in_force):
                raise TypeError("the store keeps what is no pin")
        return in_force

    async def _remove(self, key: bytes, value: Any) -> None:
        """Delete what stands in a session's way and is no pin, if it is still there."""
        if not self._told:
            self._told = True
            logger.warning("the store %s gave what is no pin; such values are deleted", type(self._store).__name__)
        await self._store.discard(key, value)


def _the_only_shard(key: bytes) -> None:
    """Say where the keys are of a store that fails as a whole."""


async def _within(seconds: float, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Return what *call* gives; whatever it fails by, but for a cancellation from outside, is an Exception."""
    if seconds <= 0:
        raise TimeoutError
    task = asyncio.current_task()
    assert task is not None
    cancellations = task.cancelling()
    try:
        async with asyncio.timeout(seconds):
            result = await call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # also what the store's client is cancelled by, or a panic of native code
        _go_on_unless_cancelled(task, cancellations)
        if isinstance(error, Exception):
            raise
        raise RuntimeError("the store's client was cancelled, or broke down") from error
    _go_on_unless_cancelled(task, cancellations)
    return result


def _go_on_unless_cancelled(task: asyncio.Task[Any], cancellations: int) -> None:
    """Raise CancelledError if *task* was cancelled more often, from outside.

    The store's client may have swallowed that: redis-py uses wait_for, which does so before Python 3.12.
    """
    if task.cancelling() > cancellations:
        raise asyncio.CancelledError
