"""One request with all that is known of it, and what its answer means for the pin."""

import math
from collections.abc import Awaitable
from time import perf_counter
from typing import NamedTuple, TypeVar

from starlette.types import Receive, Scope, Send

from .config import Endpoint
from .events import PinEvent
from .log import Opaque
from .pinning import Pinning
from .pins.table import Pin
from .pins.turns import Turn
from .request.body import inner_scope
from .request.session import AskedModel
from .response.decision import remember, remember_route
from .response.reader import ResponseReader
from .wire.headers import Headers

AnswerT = TypeVar("AnswerT")


class Stated(NamedTuple):
    """A decision that the app's own router stated, with the object to keep of it."""

    model: str
    decision: bytes | None


class Exchange(Opaque):
    """One request on one of our endpoints, with a session as far as its headers tell."""

    pinning: Pinning
    endpoint: Endpoint
    scope: Scope
    server_receive: Receive
    server_send: Send
    headers: Headers  # for the app
    picked: dict[bytes, bytes]
    unusual: bool
    session_id: bytes | None
    decides: bool
    resets: bool = False  # the client has its pin forgotten
    status: bytes = b"miss"
    reason: bytes | None = None
    key: bytes = b""  # empty until the request is known to be one that is pinned
    asked: AskedModel = None
    learns: bool = False  # whether the response is looked at for a decision
    stated: Stated | None = None
    is_stated: bool = False  # and the response has nothing to add to it
    turn: Turn | None = None  # to decide, while others wait
    pin: Pin | None = None
    model: str | None = None  # the pinned one
    used: float = 0.0  # when the pin was, on the timer
    store_until: float | None = None  # when the time is over that the store has before the app is called
    store_seconds: float = 0.0
    waited_seconds: float = 0.0
    drift: bool = False

    def call_app(self, headers: Headers, receive: Receive, send: Send) -> Awaitable[None]:
        """Call the app with *headers*."""
        return self.pinning.app(inner_scope(self.scope, headers, self), receive, send)

    def state(self, model: str, route: str | None) -> None:
        """Take the decision from the app's own router, unless the response has settled it."""
        if not self.pinning.rules.is_usable(model):
            self.pinning.warn.unusable(str(model))
        elif self.learns:
            self.stated = Stated(model, remember_route(model, route))
            self.is_stated = not self.decides

    async def learn(self, reader: ResponseReader) -> None:
        """Record what a routed answer decides, or let others decide."""
        pinning = self.pinning
        if not self.learns:
            if self.is_stated and reader.found is not None and reader.found.model not in (None, self.asked):
                pinning.health.expect(self.key, reader.found)
            return
        self.learns = False
        pin = self._decide(reader)
        if pin is None:
            if reader.failed:
                self.pass_turn()
            else:
                pinning.turns.unnamed(self.key)
                self.turn = None
            return
        self.pin = pin = await (self._record(pin) if pinning.find is None else pinning.table.record(self.key, pin))
        self.model = pin.model
        self.used = pinning.timer()
        pinning.health.begin(self.key, pin.answered if pin.model != self.asked else None)
        pinning.turns.decided(self.key, pin)
        self.turn = None

    def _decide(self, reader: ResponseReader) -> Pin | None:
        """Return a pin on the model that was stated or that the response names."""
        found = reader.found
        if self.stated is not None and not (reader.failed and self.decides):
            model, decision = self.stated
        elif found is None:
            if not reader.failed:
                self.pinning.warn.unnamed()
            return None
        elif found.model is None:
            self.pinning.warn.unusable(found.name)
            return None
        else:
            model, decision = found.model, None
            if model == self.asked:
                self.pinning.rules.check_echo(reader.headers, self.pinning.warn)
        if self.pinning.health.refused and self.pinning.health.is_refused(self.credential, model):
            return None
        now = self.pinning.table.now()
        if self.decides:
            return Pin(model, now, remember(reader.members))
        return Pin(model, now, decision, None if found is None or found.model in (None, self.asked) else found)

    @property
    def credential(self) -> bytes:
        """A digest of the client's credential."""
        return self.pinning.sessions.credential(self.picked)

    def serves(self) -> None:
        """Remember that the pinned model answered."""
        health = self.pinning.health
        if self.model is not None and (self.model not in health.served or health.refused):
            health.serves(self.credential, self.model)
        if health.failures:
            health.succeeded(self.key)

    async def refuse(self, pin: Pin) -> None:
        """Give up a pin whose name the gateway does not take, and make no other one of that name for a while."""
        self.pinning.health.refuse(self.credential, pin.model)
        await self.give_up(pin)

    async def count_failure(self, pin: Pin) -> None:
        """Count a failure of a pin; the last one in a row gives it up."""
        health = self.pinning.health
        if not health.gives_up(self.key):
            return health.failed(self.key)
        health.succeeded(self.key)
        self.pinning.warn.given_up(pin.model)
        return await self.give_up(pin)

    async def look_up(self) -> Pin | None:
        """Return the pin in force; if the store does not say, the one that this process knows."""
        table = self.pinning.table
        try:
            return await self.timed(table.look_up(self.key, self.until()))
        except Exception:
            self.store_failed()
            if self.resets:
                table.void(self.key)
            return table.recall(self.key)

    async def _record(self, pin: Pin) -> Pin:
        table = self.pinning.table
        try:
            return await self.timed(table.record(self.key, pin))
        except Exception:
            self.store_failed()
            return table.recall(self.key) or pin

    async def give_up(self, pin: Pin, until: float | None = None) -> None:
        """Give up a pin, if it still is in force."""
        try:
            await self.timed(self.pinning.table.give_up(self.key, pin, until))
        except Exception:
            self.store_failed()

    def until(self) -> float | None:
        """Return when the time is over that the store has before the app; None: the request waits, each call has it."""
        if self.waited_seconds:
            return None
        if self.store_until is None:
            self.store_until = self.pinning.timer() + self.pinning.config.store.timeout_seconds
        return self.store_until

    def seconds(self) -> float:
        """Return how long ago the pin was used."""
        return self.pinning.timer() - self.used

    def seconds_to_renewal(self) -> float:
        """Return when the answer will have taken so long that its end counts as a use of the pin."""
        return math.inf if self.pin is None else self.pinning.renew_after - self.seconds()

    async def end(self) -> None:
        """Do what is due before the last message of the answer goes on."""
        if self.turn is not None:
            self.pass_turn()
        if self.pin is not None:
            try:
                await self.timed(self.pinning.table.renew(self.key, self.pin, self.seconds()))
                self.used = self.pinning.timer()
            except Exception:
                self.store_failed()

    def pass_turn(self) -> None:
        """Let the next request decide."""
        if self.turn is not None:
            self.pinning.turns.pass_on(self.key, self.turn)
            self.turn = None

    def store_failed(self) -> None:
        """Go on without the store."""
        self.reason = b"store-unavailable"
        self.pinning.warn.failed("the pin store failed; requests go on with the pins that this process knows")

    async def timed(self, asking: Awaitable[AnswerT]) -> AnswerT:
        """Count the time that the store takes."""
        started = perf_counter()
        try:
            return await asking
        finally:
            self.store_seconds += perf_counter() - started

    def tell_listeners(self) -> None:
        """Give the event of this request to each listener."""
        event = PinEvent(
            status=self.status.decode(),
            reason=None if self.reason is None else self.reason.decode(),
            endpoint=self.endpoint.path,
            model=self.model,
            key=self.key.hex() if self.key else None,
            store_seconds=self.store_seconds,
            waited_seconds=self.waited_seconds,
            drift=self.drift,
        )
        for listener in self.pinning.listeners:
            try:
                listener(event)
            except Exception:
                self.pinning.warn.failed("a listener failed")
