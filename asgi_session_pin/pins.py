"""Pins: which model a session is on."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ._log import logger

if TYPE_CHECKING:
    from .stores.base import PinStore


class NamedModel(NamedTuple):
    """What a response names as its model.

    - `name`: as it is written there.
    - `model`: what it means, after aliases and without the date of a snapshot; None if it can't be a decision.
    - `source`: where it was found, as in `decisions.sources`.
    - `kind`: of the response: `json`, `events` or None.
    """

    name: str
    model: str | None
    source: str
    kind: str | None


class Pin(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A routing decision that is kept.

    - `model`: the name to send to the gateway.
    - `created`: when it was decided, in seconds of the wall clock.
    - `decision`: the JSON object by which a decision endpoint stated it, if it did.
    - `answered`: what the response that decided it named, to compare later ones with; None if it tells nothing.
    """

    model: str
    created: float
    decision: bytes | None = None
    answered: NamedModel | None = None

    def encode(self) -> bytes:
        """Return the pin as bytes (MessagePack), for a store to keep; equal pins give equal bytes."""
        return _encode(self)

    @staticmethod
    def decode(data: bytes) -> Pin:
        """Return the pin that `encode` made these bytes of; raises ValueError for any others."""
        return _decode(data)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pin).decode


class PinTable:
    """The pins of a middleware: looks them up and keeps the first decision of each session."""

    def __init__(
        self,
        store: PinStore,
        *,
        ttl_seconds: float = 600,
        max_age_seconds: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._ttl = ttl_seconds
        self._max_age = math.inf if max_age_seconds is None else max_age_seconds
        self.now = now
        """The wall clock, in seconds."""
        self.look_up: Callable[[bytes], Awaitable[Pin | None]] = self._look_up
        """Return the pin in force for a key; one that is over its maximum age is given up."""
        if max_age_seconds is None:
            self.look_up = store.get  # no frame in between: most requests are hits
        self.record: Callable[[bytes, Pin], Awaitable[Pin]] = store.add
        """Keep a decision and return the pin in force, which is another one if somebody decided before."""

    async def _look_up(self, key: bytes) -> Pin | None:
        pin = await self._store.get(key)
        if pin is not None and self.now() - pin.created > self._max_age:
            await self._store.discard(key, pin)
            return None
        return pin

    async def renew(self, key: bytes, pin: Pin, seconds: float) -> None:
        """Start the time of a sliding pin again after an answer of so many *seconds*, in which it may have lapsed."""
        if await self._store.get(key) is None and seconds >= self._ttl:
            await self._store.add(key, pin)

    def give_up(self, key: bytes, pin: Pin) -> Awaitable[bool]:
        """Give *pin* up, if it still is the one in force; tell whether it was."""
        return self._store.discard(key, pin)

    async def forget(self, key: bytes) -> bool:
        """Give the pin up, whichever it is; tell whether there was one."""
        pin = await self._store.get(key)
        return pin is not None and await self._store.discard(key, pin)

    async def aclose(self) -> None:
        """Close the store. A failure is logged: it must not disturb the app's shutdown."""
        try:
            await self._store.aclose()
        except Exception:
            logger.exception("the pin store could not be closed")
