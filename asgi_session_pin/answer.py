"""The response to one request on its way to the client: it gets our headers and is looked at for its decision."""

import math
from collections.abc import Awaitable, Callable
from functools import lru_cache

from starlette.types import Message, Send

from .exchange import Exchange
from .log import Opaque
from .request.body import PINNED
from .response.reader import RESPONSE_HEADERS, ResponseReader
from .wire.headers import Headers, header_name, without
from .wire.messages import body_of

JSON_TYPE = (b"content-type", b"application/json")
PLAIN = {b"content-type", b"content-length"}
NOT_PINNED = (b"x-session-pinned", b"false")


@lru_cache(maxsize=1024)
def told(status: bytes, reason: bytes | None, model: str | None) -> Headers:
    """Return the headers that tell the client of its pin; they are shared, so never to be changed."""
    headers = [
        PINNED if status in (b"hit", b"wait") else NOT_PINNED,
        (b"x-session-pin-status", status if reason is None else status + b"; reason=" + reason),
    ]
    return headers if model is None else [*headers, (b"x-session-model", model.encode())]


class Answer(Opaque):
    """Stands between the app's `send` and the server's.

    `send` is a plain function that gives an awaitable: once there is nothing more to do, a message costs one check.
    """

    exchange: Exchange
    server_send: Send
    on_look: Callable[[ResponseReader], Awaitable[None]] | None = None  # what follows from a look at a 2xx answer
    reader: ResponseReader | None = None
    settled: bool = False
    started: bool = False  # whether anything of it went to the client
    ends: bool = False  # whether something is to be done at the last message
    renews: bool = False  # whether its end counts as a use of the pin
    watched: bool = False  # whether it is told how time passes

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        if self.settled:
            return self.server_send(message)
        if message["type"] == "http.response.start":
            return self.start(message)
        if message["type"] == "http.response.body":
            reader = self.reader
            if reader is not None:
                reader.feed(body_of(message), message.get("more_body", False))
                if reader.finished or (self.exchange.is_stated and self.exchange.learns):
                    return self.settle(reader, message)
            elif self.ends and not message.get("more_body"):
                return self.end(message)
        return self.server_send(message)

    async def returned(self) -> None:
        """Do what is left when the app has returned."""
        if self.renews and self.exchange.seconds_to_renewal() <= 0:
            await self.exchange.end()

    async def makes_up_for(self, error: Exception) -> bool:
        """Tell whether the client gets another answer than what the app raised."""
        return False

    async def leave(self) -> None:
        """Leave nothing behind."""
        self.close()
        self.exchange.pass_turn()

    def close(self) -> None:
        """Watch the time no longer."""
        if self.watched:
            self.watched = False
            self.exchange.pinning.ticker.forget(self)

    def start(self, message: Message) -> Awaitable[None]:
        """Open the response."""
        exchange = self.exchange
        headers: Headers = message.get("headers", [])
        if type(headers) is not list:  # apps also give iterators, which can be read once
            headers = list(headers)
        if message["status"] // 100 != 2:
            self.ends = exchange.turn is not None  # at its last message the next request decides
            self.settled = not self.ends
        elif self.on_look is not None:
            rules = exchange.pinning.rules
            reader: ResponseReader
            if JSON_TYPE in headers and rules.plain.covers(map(header_name, headers)):
                is_clean = True
                self.reader = reader = rules.open_plain(headers, exchange.asked)
            else:
                picked = rules.headers.pick(headers)
                is_clean = RESPONSE_HEADERS.isdisjoint(picked)
                self.reader = reader = rules.open_reader(picked, exchange.asked, exchange.decides)
                if picked.keys() <= PLAIN:
                    rules.plain.learn(headers)
            if reader.finished or exchange.is_stated:
                return self.settle(reader, {**message, "headers": headers})
            return self.tell(message, headers, is_clean)
        else:
            self.settled = True
            self.renew_late(JSON_TYPE in headers)
        return self.tell(message, headers)

    def tell(self, message: Message, headers: Headers, is_clean: bool = False) -> Awaitable[None]:
        """Send the start of the response with our headers, and none of these names from anybody else."""
        self.started = True
        exchange = self.exchange
        pinning = exchange.pinning
        if not pinning.tells:
            return self.server_send({**message, "headers": headers})
        if not is_clean and not pinning.foreign.covers(map(header_name, headers)):
            headers = without(headers, RESPONSE_HEADERS)
            pinning.foreign.learn(headers)
        headers = headers + told(exchange.status, exchange.reason, exchange.model)
        return self.server_send({**message, "headers": headers})

    async def settle(self, reader: ResponseReader, message: Message) -> None:
        """Learn what there is to learn before the message that reveals it goes on."""
        assert self.on_look is not None
        await self.on_look(reader)
        if reader.finished:
            self.reader = None
            self.settled = not self.ends
        if message["type"] == "http.response.start":
            self.renew_late()
            return await self.tell(message, message["headers"])
        if message.get("more_body"):
            self.renew_late()
        elif self.ends:
            await self.exchange.end()
        return await self.server_send(message)

    def renew_late(self, whole: bool = False) -> None:
        """See to it that a pin's time starts again at the end of an answer that takes long; a *whole* one won't."""
        self.renews = True
        seconds = self.exchange.seconds_to_renewal()
        if seconds <= 0:
            self.ends = True
            self.settled = False
        elif not whole and seconds < math.inf:
            self.watch()

    def watch(self) -> None:
        """Have `on_tick` called from now on."""
        if not self.watched:
            self.watched = True
            self.exchange.pinning.ticker.watch(self)

    def on_tick(self) -> None:
        """Look at how long it takes."""
        self.renew_late()

    async def end(self, message: Message) -> None:
        """Do what is due before the last message goes on."""
        self.settled = True
        await self.exchange.end()
        await self.server_send(message)
