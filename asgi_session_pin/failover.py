"""A pinned model that does not serve: the request is routed, before the client sees anything of the failure."""

import asyncio
import sys
from collections.abc import Awaitable

from starlette.types import Message, Scope

from .answer import JSON_TYPE
from .held import HeldAnswer, nothing
from .log import logger
from .pins.table import Pin
from .request.body import InnerScope, RequestBody, show_state
from .response.failure import Failure, begins_well, failure_of, has_drifted, names_model
from .response.reader import EventReader, ResponseReader
from .routed import RoutedAnswer
from .wire.headers import EVENTS, JSON, Headers, media_type
from .wire.messages import body_of

GONE_SECONDS = 30.0  # a client that leaves sooner may have changed its mind


class PinnedAnswer(HeldAnswer, kw_only=True):
    """The answer to a request that got a pinned model.

    A failure is held. At its last message, or when the app raises, the request goes to the app once more, as it came.
    """

    pin: Pin
    original: bytes  # the body that the client sent
    body: RequestBody
    before: Scope  # the server's scope as it was before the app got it, with a copy of its `state`
    inner: InnerScope
    failure: Failure | None = None
    routed: RoutedAnswer | None = None
    concluded: bool = False
    blamed: bool = False
    status: bytes = b"hit"

    async def returned(self) -> None:
        """Do what is left when the app has returned: its answer may not be whole, or be replaced by one that raised."""
        if self.held is not None and self.releasing is None and not self.concluded:
            await self.conclude()
        if self.routed is not None and self.routed.error is not None:
            raise self.routed.error
        await super().returned()

    async def makes_up_for(self, error: Exception) -> bool:
        """Tell whether the client gets another answer than what the app raised."""
        if not (self.concluded or self.started or self.releasing is not None or self.body.gone):
            self.failure = self.failure or self._failure_of(500)
            await self.conclude()
        routed = self.routed
        if routed is None or not routed.started or error is routed.error:
            return False
        if routed.error is not None:
            raise routed.error from error
        if routed.whole:
            logger.warning("a pinned model failed and its request was routed; the app raised", exc_info=error)
        return routed.whole

    async def leave(self) -> None:
        """Leave nothing behind."""
        await super().leave()
        if self.routed is not None and self.routed.started:
            show_state(self.exchange.scope, self.before)
        is_gone = self.body.gone or isinstance(sys.exception(), asyncio.CancelledError)
        if is_gone and not self.started and not self.concluded and self.exchange.seconds() >= GONE_SECONDS:
            await self.exchange.count_failure(self.pin)

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        if self.settled:
            return self.server_send(message)
        if self.started or (self.held is not None and self.routed is None):
            return super().send(message)
        if self.routed is not None:
            return nothing()  # the rest of an answer that is replaced
        return self.start(message) if message["type"] == "http.response.start" else self.server_send(message)

    def start(self, message: Message) -> Awaitable[None]:
        """Open the response, or hold it."""
        exchange = self.exchange
        pinning, health = exchange.pinning, exchange.pinning.health
        headers: Headers = message.get("headers", [])
        if type(headers) is not list:
            headers = list(headers)
        if message["status"] // 100 != 2:
            self.failure = self._failure_of(message["status"])
            message = {**message, "headers": headers}
            if self.failure is None or self.body.gone or self.concluded:
                return super().start(message)
            return self.hold(message, is_error=True)
        looks = exchange.key in health.fresh or self.pin.model not in health.served or next(health.glances)
        if not looks and JSON_TYPE in headers:
            self.settled = self.renews = True
            self.original = b""
            if health.failures or health.refused:
                exchange.serves()
            if pinning.timer() - exchange.used >= pinning.renew_after:
                self.renew_late()
            return self.tell(message, headers)
        picked = pinning.rules.headers.pick(headers)
        kind = media_type(picked.get(b"content-type", b""))
        if kind == EVENTS:
            if looks or b"content-encoding" in picked:
                self.on_look = self._compare
                self.reader = pinning.rules.open_first_event(picked, self.pin.model)
            if self.reader is None or not self.reader.finished:  # finished: its coding is not known
                return self.hold({**message, "headers": headers}, is_error=False)
        elif looks:
            self.reader = pinning.rules.open_reader(picked, self.pin.model, False)
        else:
            self.settled = True
            self._succeed()
            self.renew_late(kind == JSON)
            return self.tell(message, headers)
        self.original = b""
        self.on_look = self._compare
        if self.reader.finished:
            return self.settle(self.reader, {**message, "headers": headers})
        return self.tell(message, headers)

    def begins_with_error(self, start: Message, message: Message) -> bool:
        """Tell whether a stream begins with an error; an unfinished event is none, since it is not to be held."""
        if self.reader is None:
            if begins_well(body_of(message)):
                self._succeed()
                self.renew_late()
                return False
            self._look_at_first_event(start)
        assert self.reader is not None
        self.reader.feed(body_of(message), message.get("more_body", False))
        if not self.reader.failed:
            return False
        self.reader = None
        self.failure = self._failure_of(503)
        return True

    async def conclude(self) -> None:
        """Route the request if the failure calls for it, or let the failure go on."""
        self.close()
        self.concluded = True
        if self.failure is Failure.NAMED:
            self.failure = Failure.REFUSED if names_model(self.held or (), self.pin.model) else None
        if self.failure is Failure.UNAVAILABLE and self.exchange.pinning.config.failover.on_unavailable == "pass":
            await self.exchange.count_failure(self.pin)
        elif self.failure is not None and not self.body.gone and await self._route():
            self.held = None
            return
        await self.release()

    async def let_go(self) -> None:
        """Send what is held though nothing is known of it yet."""
        if self.failure in (Failure.REFUSED, Failure.UNAVAILABLE):
            await self.exchange.count_failure(self.pin)  # nobody can tell whether routing would have served
        elif self.held and self.reader is None and not self.is_error:
            self._look_at_first_event(self.held[0])
        await self.release()

    async def release(self) -> None:
        """Send what is held, as it came."""
        self.original = b""
        await super().release()

    def _look_at_first_event(self, start: Message) -> None:
        rules = self.exchange.pinning.rules
        self.on_look = self._compare
        self.reader = rules.open_first_event(rules.headers.pick(start["headers"]), self.pin.model)

    def _failure_of(self, status: int) -> Failure | None:
        exchange, health = self.exchange, self.exchange.pinning.health
        may_be_refused = exchange.pinning.config.failover.on_refused == "reroute" and not health.is_resting(
            exchange.key
        )
        return failure_of(status, may_be_refused=may_be_refused, has_served=self.pin.model in health.served)

    def _succeed(self) -> None:
        self.original = b""  # it may be large, and the answer take minutes
        health = self.exchange.pinning.health
        if health.failures or health.refused:
            self.exchange.serves()

    async def _route(self) -> bool:
        """Send the original request to the app; tell whether its answer goes to the client."""
        exchange, health = self.exchange, self.exchange.pinning.health
        is_refusal = self.failure is Failure.REFUSED
        self.status, exchange.status = exchange.status, b"reroute"
        exchange.learns = is_refusal or health.gives_up(exchange.key)
        exchange.model = None if exchange.learns else self.pin.model
        exchange.pin = None  # this answer is no use of it
        self.routed = RoutedAnswer(
            exchange,
            self.server_send,
            on_look=self._blame,
            original=self.original,
            body=self.body,
            before=self.before,
            inner=self.inner,
            drops_failures=is_refusal,
            on_drop=self._fall_back,
        )
        self.original = b""
        try:
            await self.routed.run()
        except BaseException:
            if not self.routed.started:
                self.routed = self.held = None  # what the app still sends is its answer
                self._take_back()
            raise
        if is_refusal and not self.blamed:
            health.rest(exchange.key)
        if not self.routed.started:
            await self._fall_back()
        return self.routed.started

    def _take_back(self) -> None:
        exchange = self.exchange
        exchange.status, exchange.model, exchange.learns = self.status, self.pin.model, False

    async def _fall_back(self) -> None:
        self._take_back()
        await self.release()

    async def _blame(self, reader: ResponseReader) -> None:
        """Draw the conclusion, if the router's choice serves where the pinned model did not."""
        exchange, found = self.exchange, reader.found
        if not reader.failed and not self.blamed:
            self.blamed = True
            if self.failure is Failure.REFUSED:
                exchange.pinning.warn.refused(self.pin.model)
                await exchange.refuse(self.pin)
            elif found is None or found.model != self.pin.model:  # else it is back by now
                await self.exchange.count_failure(self.pin)
        await exchange.learn(reader)

    async def _compare(self, reader: ResponseReader) -> None:
        exchange, pinning = self.exchange, self.exchange.pinning
        self.ends = self.ends or exchange.seconds_to_renewal() <= 0
        if reader.failed:
            return await self.exchange.count_failure(self.pin) if isinstance(reader, EventReader) else None
        if pinning.rules.is_fallback(reader.headers):
            return None  # which proves nothing of the name
        is_fresh = exchange.key in pinning.health.fresh
        first = pinning.health.fresh.pop(exchange.key, self.pin.answered)
        exchange.drift = has_drifted(reader.found, first, self.pin.model)
        if reader.found is None or not exchange.drift:
            exchange.serves()
        elif is_fresh:
            pinning.warn.misunderstood(self.pin.model, reader.found.name)
            # A name that has served is understood: the gateway fell back on its own.
            has_served = self.pin.model in pinning.health.served
            await (exchange.give_up(self.pin) if has_served else exchange.refuse(self.pin))
        else:
            pinning.warn.drifted(self.pin.model, reader.found.name)
        return None
