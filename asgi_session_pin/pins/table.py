"""Pins: which model a session is on."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import msgspec

from ..log import logger

if TYPE_CHECKING:
    from ..stores import PinStore, ResilientStore

is_model_name = re.compile(r"[\x21-\x7e]{1,256}").fullmatch
"""Matches what can be sent as a model and shown in a header: visible ASCII of a usual length."""


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
        pin = _decode(data)
        if not is_pin(pin):
            raise ValueError("a model that can't be sent, or no time")
        return pin


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pin).decode


def is_pin(value: object) -> TypeGuard[Pin]:
    """Tell whether *value* is a pin that can be used: whoever makes one in Python may put anything into its fields."""
    return (
        isinstance(value, Pin)
        and type(value.created) in (float, int)
        and math.isfinite(value.created)
        and type(value.model) is str
        and is_model_name(value.model) is not None
        and (value.decision is None or type(value.decision) is bytes)
        and (value.answered is None or type(value.answered) is NamedModel)
    )


class PinTable:
    """The pins of a middleware: looks them up and keeps the first decision of each session.

    - *store*: where they are.
    - *shared*: the same store made resilient, if other processes use it too. Its failures are raised.
    """

    def __init__(
        self,
        store: PinStore,
        shared: ResilientStore | None = None,
        *,
        ttl_seconds: float = 600,
        max_age_seconds: float | None = None,
        lease_seconds: float = 5,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store if shared is None else shared
        self._shared = shared
        self._ttl = ttl_seconds
        self._max_age = math.inf if max_age_seconds is None else max_age_seconds
        self.now = now
        """The wall clock, in seconds."""
        self.record: Callable[[bytes, Pin], Awaitable[Pin]] = self._store.add
        """Keep a decision and return the pin in force, which is another one if somebody decided before."""
        self._lease = lease_seconds
        self.can_claim = shared is not None and shared.can_claim
        """Whether other processes can be kept from deciding for the same session."""

    async def look_up(self, key: bytes, until: float | None = None) -> Pin | None:
        """Return the pin in force for a key; one that is over its maximum age is given up.

        A shared store has time *until* then; None: as the settings say.
        """
        pin = await (self._store.get(key) if self._shared is None else self._shared.get(key, until))
        if pin is not None and self._is_over(pin):
            await self.give_up(key, pin, until)
            return None
        return pin

    def recall(self, key: bytes) -> Pin | None:
        """Return the pin that this process knows, for when a shared store does not answer."""
        assert self._shared is not None
        pin = self._shared.recall(key)
        if pin is not None and self._is_over(pin):
            self._shared.void(key)
            return None
        return pin

    def void(self, key: bytes) -> None:
        """Give up the pin of *key*, whichever it is, while a shared store does not answer."""
        assert self._shared is not None
        self._shared.void(key)

    def _is_over(self, pin: Pin) -> bool:
        return self.now() - pin.created > self._max_age

    async def renew(self, key: bytes, pin: Pin, seconds: float) -> None:
        """Start the time of a sliding pin again after an answer of so many *seconds*, in which it may have lapsed."""
        if await self._store.get(key) is None and seconds >= self._ttl:
            await self._store.add(key, pin)

    def give_up(self, key: bytes, pin: Pin, until: float | None = None) -> Awaitable[bool]:
        """Give *pin* up, if it still is the one in force; tell whether it was. *until* as for `look_up`."""
        return self._store.discard(key, pin) if self._shared is None else self._shared.discard(key, pin, until)

    def has_claim(self, key: bytes) -> bool:
        """Tell whether this process keeps others from deciding for a session."""
        return self._shared is not None and self._shared.has_claim(key)

    async def claim(self, key: bytes, until: float | None = None) -> bool:
        """Keep other processes from deciding for a session; tell whether that is so, and not the other way round."""
        assert self._shared is not None
        return await self._shared.claim(key, self._lease, until)

    def release(self, key: bytes) -> None:
        """Let other processes decide again."""
        if self._shared is not None:
            self._shared.release(key)

    async def forget(self, key: bytes) -> bool:
        """Give the pin up, whichever it is; tell whether there was one. Where the store fails, it is done later."""
        try:
            pin = await self._store.get(key)
            return pin is not None and await self._store.discard(key, pin)
        except Exception:
            if self._shared is not None:
                self._shared.void(key)
            raise

    async def aclose(self) -> None:
        """Close the store. A failure is logged: it must not disturb the app's shutdown."""
        try:
            await self._store.aclose()
        except Exception:
            logger.exception("the pin store could not be closed")
