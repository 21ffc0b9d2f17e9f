"""A shared store's bad day: what a request waits for it is bounded, and this process has a copy to go on with."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from cachetools import LRUCache

from ..log import logger
from ..pin import Pin, is_pin
from ._time_limit import within
from .base import ClaimingStore, PinStore
from .local_copy import Known, LocalCopy

ResultT = TypeVar("ResultT")

FAILURES_TO_REST = 3  # in a row: one key, or one shard of a cluster, is not the store
FIRST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 5.0
TRIAL_SECONDS = 2.0  # nobody waits for a trial, which may have to connect
PAUSE_SECONDS = 1.0
CLOSING_SECONDS = 5.0
MAX_CLAIMS = 10_000  # that are to be given back


class StoreUnavailable(Exception):
    """The store failed, did not answer in time, or is not asked for the moment."""


class ResilientStore:
    """Asks a shared store, and remembers what it said for the time in which it does not answer.

    - *store*: the shared store.
    - *copy*: what this process knows. It is not read while the store answers, else replicas would each hold on to their
      own.
    - *timeout_seconds*: for each call that is given no other time.

    All methods raise StoreUnavailable where the store fails. After some failures in a row it is left alone, and asked
    again now and then while nobody waits. What was decided and given up meanwhile is told to it when it is back: the
    first writer wins there.
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
        self._failures = 0
        self._is_out = False
        self._rest_seconds = FIRST_REST_SECONDS
        self._rests_until = 0.0
        self._trial: asyncio.Task[None] | None = None
        self._tokens: dict[bytes, bytes] = {}  # of the claims that this process has
        self._unreleased: LRUCache[tuple[bytes, bytes], None] = LRUCache(MAX_CLAIMS)
        self._telling: asyncio.Task[None] | None = None
        self._tells_again_at = 0.0
        self._told = False

    async def get(self, key: bytes, until: float | None = None) -> Pin | None:
        """Return the pin of *key*, by the time *until* on the timer; see `PinStore.get`."""
        until = self._until(until)
        pin = await self._ask(key, lambda: self._read(key), until, is_read=True)
        known = self._copy.find(key)
        if known is not None and self._copy.is_in_doubt(known):
            pin = await self._settle(key, pin, known, until)
        self._copy.keep(key, pin)
        return pin

    async def add(self, key: bytes, pin: Pin) -> Pin:
        """Keep *pin* unless there is one; see `PinStore.add`. If that fails, this process keeps it."""
        until = self._until()
        try:
            winner = await self._ask(key, lambda: self._write(key, pin), until)
            known = self._copy.find(key)
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
            self._copy.void(key)
            raise
        self._copy.drop(key, pin)
        return held

    def recall(self, key: bytes) -> Pin | None:
        """Return the pin that this process knows, for when the store does not answer."""
        known = self._copy.find(key)
        return None if known is None else known.pin

    def void(self, key: bytes) -> None:
        """Give up the pin of *key*, whichever it is, while the store does not answer."""
        self._copy.void(key)

    @property
    def can_claim(self) -> bool:
        """Whether processes agree by this store on who decides."""
        return self._claims is not None

    def has_claim(self, key: bytes) -> bool:
        """Tell whether this process has the right to decide, or at least asked for it and was told nothing."""
        return key in self._tokens

    async def claim(self, key: bytes, lease_seconds: float, until: float | None = None) -> bool:
        """Take the right to decide, by the time *until*; see `ClaimingStore.claim`. It is to be released."""
        claims = self._claims
        assert claims is not None
        token = self._tokens[key] = secrets.token_bytes(16)
        claimed = await self._ask(key, lambda: claims.claim(key, token, lease_seconds), self._until(until))
        if not claimed:
            del self._tokens[key]
        return claimed

    def release(self, key: bytes) -> None:
        """Give the claim back that this process has, if it has one; nobody waits for it."""
        token = self._tokens.pop(key, None)
        if token is not None:
            self._unreleased[key, token] = None
            self._tells_again_at = 0.0
            self._catch_up()

    async def aclose(self) -> None:
        """Close the store."""
        beside = [task for task in (self._telling, self._trial) if task is not None and _is_running(task)]
        for task in beside:
            task.cancel()
        async with asyncio.timeout(CLOSING_SECONDS):
            if beside:
                await asyncio.wait(beside)  # none of them may open again what is closed here
            await self._store.aclose()

    def _until(self, until: float | None = None) -> float:
        return self._timer() + self._timeout if until is None else until

    async def _settle(self, key: bytes, pin: Pin | None, known: Known, until: float) -> Pin | None:
        """Tell the store what it missed of a key, and return the pin that is in force there."""
        if pin is not None and pin.created < known.voided:
            voided = pin
            await self._ask(key, lambda: self._store.discard(key, voided), until)
            pin = None
        if pin is None and known.pin is not None:
            offered = known.pin
            pin = await self._ask(key, lambda: self._write(key, offered), until)
        return pin

    async def _ask(
        self, key: bytes, call: Callable[[], Awaitable[ResultT]], until: float, is_read: bool = False
    ) -> ResultT:
        if self._is_out:
            self._try_again(key)
            raise StoreUnavailable("the store failed lately and is not asked for the moment")
        seconds = until - self._timer()
        try:
            result = await within(seconds, call)
        except Exception as error:
            # That a write is refused, since the server is full or a replica, says nothing of the reads. Nor does it
            # say much that what is left of a request's time was not enough.
            if is_read or isinstance(error, TimeoutError):
                self._failed(is_short=isinstance(error, TimeoutError) and seconds < self._timeout * 0.9)
            raise StoreUnavailable("the store did not answer") from error
        self._failures = 0
        self._catch_up()
        return result

    def _failed(self, is_short: bool) -> None:
        self._failures += not is_short
        if self._failures >= FAILURES_TO_REST and not self._is_out:
            self._is_out = True
            self._copy.outage += 1
            self._rest(FIRST_REST_SECONDS)

    def _rest(self, seconds: float) -> None:
        self._rest_seconds = seconds
        self._rests_until = self._timer() + seconds

    def _try_again(self, key: bytes) -> None:
        if self._timer() >= self._rests_until and not _is_running(self._trial):
            self._trial = asyncio.get_running_loop().create_task(self._try(key))

    async def _try(self, key: bytes) -> None:
        try:
            await within(max(TRIAL_SECONDS, self._timeout), lambda: self._read(key))
        except Exception:
            return self._rest(min(2 * self._rest_seconds, LONGEST_REST_SECONDS))
        self._is_out = False
        self._failures = 0
        self._tells_again_at = 0.0
        return self._catch_up()

    def _catch_up(self) -> None:
        """Tell the store what it missed: sessions go on in other processes too."""
        is_due = (self._unreleased or self._copy.has_untold) and self._timer() >= self._tells_again_at
        if is_due and not self._is_out and not _is_running(self._telling):
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        refused: list[tuple[bytes, bytes]] = []
        while self._unreleased:
            claim, _ = self._unreleased.popitem()
            try:
                await self._give_back(*claim)
            except StoreUnavailable:
                refused.append(claim)
        for key in self._copy.untold():
            with contextlib.suppress(StoreUnavailable):
                await self.get(key)
        for claim in refused:
            self._unreleased[claim] = None
        if refused or self._copy.has_untold:
            self._tells_again_at = self._timer() + PAUSE_SECONDS

    async def _give_back(self, key: bytes, token: bytes) -> None:
        claims = self._claims
        assert claims is not None
        await self._ask(key, lambda: claims.release(key, token), self._until())

    async def _read(self, key: bytes) -> Pin | None:
        pin = await self._store.get(key)
        if pin is None or is_pin(pin):
            return pin
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


def _is_running(task: asyncio.Task[None] | None) -> bool:
    """Tell whether a task goes on, in this event loop: another one may be closed, or be left behind by a fork."""
    return task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()
