"""A pinned model that does not serve: the request is routed, before the client sees anything of the failure."""

import asyncio
import sys
from collections.abc import Awaitable

from starlette.types import Message, Scope

from ._headers import Headers
from ._log import logger
from .answer import JSON_TYPE, Answer
from .held import HeldAnswer, nothing
from .pins import Pin
from .refusal import Failure, begins_well, failure_of, has_drifted, names_model
from .request import InnerScope, RequestBody, inner_scope, restore
from .response import EVENTS, JSON, EventReader, ResponseReader, media_type

GONE_SECONDS = 30.0  # a client that leaves sooner may have changed its mind


class RoutedAnswer(Answer, kw_only=True):
    """The answer of the router where a pinned model failed."""

    drops_failures: bool  # the client gets the first answer then
    dropped: bool = False

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        return nothing() if self.dropped else super().send(message)

    def start(self, message: Message) -> Awaitable[None]:
        """Open the response, or drop it."""
        self.dropped = self.drops_failures and not 200 <= message["status"] < 300
        return nothing() if self.dropped else super().start(message)


class PinnedAnswer(HeldAnswer, kw_only=True):
    """The answer to a request that got a pinned model.

    A failure is held. At its last message, or when the app raises, the original request goes to the app once more.
    """

    pin: Pin
    original: bytes  # the body that the client sent
    body: RequestBody
    before: Scope  # the server's scope as it was before the app got it, with a copy of its `state`
    inner: InnerScope
    failure: Failure | None = None
    routed: RoutedAnswer | None = None
    routed_error: Exception | None = None

    async def returned(self) -> None:
        """Do what is left when the app has returned: its answer may not be whole, or be replaced by one that raised."""
        if self.held and self.releasing is None:
            await self.conclude()
        if self.routed_error is not None:
            raise self.routed_error

    async def makes_up_for(self, error: Exception) -> bool:
        """Tell whether the client gets another answer than what the app raised."""
        if self.routed is None:
            if self.started or self.releasing is not None or self.body.gone:
                return False
            self.failure = self.failure or self._failure_of(500)
            await self.conclude()
        if self.routed is None or not self.routed.started:
            return False
        logger.warning("a pinned model failed and its request was routed; the app raised", exc_info=error)
        if self.routed_error is not None:
            raise self.routed_error
        return True

    async def leave(self) -> None:
        """Leave nothing behind."""
        await super().leave()
        is_gone = self.body.gone or isinstance(sys.exception(), asyncio.CancelledError)
        if is_gone and not self.started and self.routed is None and self.exchange.seconds() >= GONE_SECONDS:
            await self._count_failure()

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        if self.settled:
            return self.server_send(message)
        if self.started or self.held:
            return super().send(message)
        if self.routed is not None:
            return nothing()  # the rest of an answer that was replaced
        return self.start(message) if message["type"] == "http.response.start" else self.server_send(message)

    def start(self, message: Message) -> Awaitable[None]:
        """Open the response, or hold it."""
        exchange = self.exchange
        pinning = exchange.pinning
        headers: Headers = message.get("headers", [])
        if type(headers) is not list:
            headers = list(headers)
        if not 200 <= message["status"] < 300:
            self.failure = self._failure_of(message["status"])
            if self.failure is None or self.body.gone:
                return super().start(message)
            return self.hold({**message, "headers": headers}, is_error=True)
        health = pinning.health
        looks = exchange.key in health.fresh or self.pin.model not in health.served or next(health.glances)
        if not looks and JSON_TYPE in headers:
            self.settled = True
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
        content = message.get("body", b"")
        if self.reader is None:
            if begins_well(content):
                self._succeed()
                self.renew_late()
                return False
            self.on_look = self._compare
            rules = self.exchange.pinning.rules
            self.reader = rules.open_first_event(rules.headers.pick(start["headers"]), self.pin.model)
        self.reader.feed(content, message.get("more_body", False))
        if not self.reader.failed:
            return False
        self.reader = None
        self.failure = self._failure_of(503)
        return True

    async def conclude(self) -> None:
        """Route the request if the failure calls for it, or let the failure go on."""
        self.close()
        if self.failure is Failure.NAMED:
            self.failure = Failure.REFUSED if names_model(self.held or (), self.pin.model) else None
        if self.failure is Failure.UNAVAILABLE and self.exchange.pinning.config.failover.on_unavailable == "pass":
            await self._count_failure()
        elif self.failure is not None and await self._route():
            self.held = None
            return
        await self.release()

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
        status, exchange.status = exchange.status, b"reroute"
        exchange.learns = is_refusal or health.gives_up(exchange.key)
        exchange.model = None if exchange.learns else self.pin.model
        exchange.pin = None  # this answer is no use of it
        restore(exchange.scope, self.before, self.inner)
        self.routed = routed = RoutedAnswer(exchange, self.server_send, on_look=self._blame, drops_failures=is_refusal)
        request: Message = {"type": "http.request", "body": self.original, "more_body": False}
        body = RequestBody(self.body.server_receive, [request])
        try:
            scope = inner_scope(exchange.scope, exchange.headers, exchange)
            await exchange.pinning.app(scope, body.receive, routed.send)
        except Exception as error:
            if routed.started:
                self.routed_error = error  # for the server, past the first call of the app
            else:
                logger.warning("a pinned model failed, and so did its request as it came", exc_info=error)
        finally:
            routed.close()
        if not routed.started:
            exchange.status, exchange.model, exchange.learns = status, self.pin.model, False
            if is_refusal:
                health.rest(exchange.key)
        return routed.started

    async def _blame(self, reader: ResponseReader) -> None:
        """Draw the conclusion, if the router's choice serves where the pinned model did not."""
        exchange, found = self.exchange, reader.found
        if not reader.failed and self.failure is Failure.REFUSED:
            exchange.pinning.warn.refused(self.pin.model)
            await exchange.refuse(self.pin)
        elif not reader.failed and (found is None or found.model != self.pin.model):  # the same one is back by now
            await self._count_failure()
        await exchange.learn(reader)

    async def _count_failure(self) -> None:
        """Count a failure; the last one in a row gives the pin up."""
        exchange, health = self.exchange, self.exchange.pinning.health
        if not health.gives_up(exchange.key):
            return health.failed(exchange.key)
        health.succeeded(exchange.key)
        exchange.pinning.warn.given_up(self.pin.model)
        return await exchange.give_up(self.pin)

    async def _compare(self, reader: ResponseReader) -> None:
        exchange, pinning = self.exchange, self.exchange.pinning
        self.ends = self.ends or exchange.seconds_to_renewal() <= 0
        if reader.failed:
            return await self._count_failure() if isinstance(reader, EventReader) else None
        is_fresh = exchange.key in pinning.health.fresh
        first = pinning.health.fresh.pop(exchange.key, self.pin.answered)
        exchange.drift = has_drifted(reader.found, first, self.pin.model)
        if reader.found is None or not exchange.drift:
            exchange.serves()
        elif is_fresh:
            pinning.warn.misunderstood(self.pin.model, reader.found.name)
            await exchange.refuse(self.pin)
        else:
            pinning.warn.drifted(self.pin.model, reader.found.name)
        return None
