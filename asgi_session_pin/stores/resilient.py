"""A shared store's bad day: what a request waits for it is bounded, and this process has a copy to go on with."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .._recent import Recent
from ..pins import Pin
from .base import ClaimingStore, PinStore
from .memory import MemoryStore

ResultT = TypeVar("ResultT")

FIRST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 5.0
CLOSING_SECONDS = 5.0


class StoreUnavailable(Exception):
    """The store failed, did not answer in time, or is not asked for the moment."""


class ResilientStore:
    """Asks a shared store, and remembers what it said for the time in which it does not answer.

    - *store*: the shared store.
    - *copy*: holds the pins that this process knows. It is not read while the store answers, else replicas would each
      hold on to their own.
    - *timeout_seconds*: for each call.

    All methods raise StoreUnavailable where the store fails. While it is out, one call now and then asks it again. What
    was decided and given up meanwhile is told to it when it is back: the first writer wins there.
    """

    def __init__(
        self,
        store: PinStore,
        copy: MemoryStore,
        *,
        timeout_seconds: float,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._claims = store if isinstance(store, ClaimingStore) else None
        self._copy = copy
        self._timeout = timeout_seconds
        self._timer = timer
        self._is_out = False
        self._is_tried = False  # by one call, while it is out
        self._rest_seconds = FIRST_REST_SECONDS
        self._rests_until = 0.0
        self._confirmed: Recent[bytes, None] | None = None  # keys that it answered since it was out; None: it never was
        self._decided: Recent[bytes, None] = Recent()  # what it could not be told
        self._given_up: Recent[bytes, Pin] = Recent()
        self._catching_up: asyncio.Task[None] | None = None

    @property
    def can_claim(self) -> bool:
        """Whether processes agree by this store on who decides."""
        return self._claims is not None

    async def get(self, key: bytes, seconds: float | None = None) -> Pin | None:
        """Return the pin of *key*, within so many *seconds*; see `PinStore.get`."""
        until = self._until(seconds)
        pin = await self._ask(lambda: self._store.get(key), until, is_read=True)
        if pin is not None and self._given_up and self._given_up.get(key) == pin:
            await self._give_up(key, pin, until)
            pin = None
        if pin is None and self._may_have_lost(key):
            pin = await self._offer(key, until)
        await self._keep(key, pin)
        return pin

    async def add(self, key: bytes, pin: Pin) -> Pin:
        """Keep *pin* unless there is one; see `PinStore.add`. If that fails, this process keeps it."""
        try:
            winner = await self._ask(lambda: self._store.add(key, pin), self._until())
        except StoreUnavailable:
            self._decided.remember(key, None)
            await self._copy.add(key, pin)
            raise
        await self._keep(key, winner)
        return winner

    async def discard(self, key: bytes, pin: Pin, seconds: float | None = None) -> bool:
        """Give up *pin* if it still holds, within so many *seconds*; see `PinStore.discard`."""
        self._decided.pop(key, None)
        await self._copy.discard(key, pin)
        try:
            return await self._give_up(key, pin, self._until(seconds))
        except StoreUnavailable:
            self._given_up.remember(key, pin)
            raise

    async def claim(self, key: bytes, lease_seconds: float, seconds: float | None = None) -> bytes | None:
        """Take the right to decide, within so many *seconds*; see `ClaimingStore.claim`."""
        claims = self._claims
        assert claims is not None
        return await self._ask(lambda: claims.claim(key, lease_seconds), self._until(seconds))

    async def release(self, key: bytes, token: bytes) -> None:
        """Give a claim back; see `ClaimingStore.release`."""
        claims = self._claims
        assert claims is not None
        await self._ask(lambda: claims.release(key, token), self._until())

    async def recall(self, key: bytes) -> Pin | None:
        """Return the pin that this process knows, for when the store does not answer."""
        return await self._copy.get(key)

    async def aclose(self) -> None:
        """Close the store."""
        task = self._catching_up
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
        async with asyncio.timeout(CLOSING_SECONDS):
            await self._store.aclose()

    def _until(self, seconds: float | None = None) -> float:
        return self._timer() + (self._timeout if seconds is None else seconds)

    async def _ask(self, call: Callable[[], Awaitable[ResultT]], until: float, is_read: bool = False) -> ResultT:
        is_trial = self._is_out
        if is_trial:
            if self._is_tried or self._timer() < self._rests_until:
                raise StoreUnavailable("the store failed lately and is not asked for the moment")
            self._is_tried = True
        try:
            async with asyncio.timeout(until - self._timer()):
                result = await call()
        except Exception as error:
            # A write that is refused, since the server is full or a replica, says nothing of the reads.
            if is_read or is_trial or isinstance(error, TimeoutError):
                self._let_rest(is_trial)
            raise StoreUnavailable("the store did not answer") from error
        finally:
            if is_trial:
                self._is_tried = False
        if self._is_out or not is_read:
            self._is_out = False
            self._catch_up()
        return result

    def _let_rest(self, is_trial: bool) -> None:
        if self._is_out and not is_trial:
            return  # calls that were under way together are one failure
        self._rest_seconds = min(2 * self._rest_seconds, LONGEST_REST_SECONDS) if is_trial else FIRST_REST_SECONDS
        self._rests_until = self._timer() + self._rest_seconds
        self._is_out = True
        self._confirmed = Recent()

    def _may_have_lost(self, key: bytes) -> bool:
        """Tell whether that the store has no pin may be due to its failure, and not to somebody who gave it up."""
        return key in self._decided or (self._confirmed is not None and key not in self._confirmed)

    async def _keep(self, key: bytes, pin: Pin | None) -> None:
        """Let the copy have what the store said."""
        if self._confirmed is not None:
            self._confirmed.remember(key, None)
        known = await self._copy.get(key)
        if known != pin:
            if known is not None:
                await self._copy.discard(key, known)
            if pin is not None:
                await self._copy.add(key, pin)

    async def _offer(self, key: bytes, until: float) -> Pin | None:
        """Tell the store what this process knows; return the pin that is in force there."""
        pin = await self._copy.get(key)
        if pin is not None:
            offered = pin
            pin = await self._ask(lambda: self._store.add(key, offered), until)
        self._decided.pop(key, None)
        return pin

    async def _give_up(self, key: bytes, pin: Pin, until: float) -> bool:
        held = await self._ask(lambda: self._store.discard(key, pin), until)
        self._given_up.pop(key, None)
        return held

    def _catch_up(self) -> None:
        """Tell the store what it missed: sessions go on in other processes too."""
        if (self._decided or self._given_up) and (self._catching_up is None or self._catching_up.done()):
            self._catching_up = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        try:
            for key, pin in list(self._given_up.items()):
                await self._give_up(key, pin, self._until())
            for key in list(self._decided):
                await self._keep(key, await self._offer(key, self._until()))
        except StoreUnavailable:
            pass  # the next success tries again
