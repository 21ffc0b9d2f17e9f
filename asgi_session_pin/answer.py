"""The response to one request on its way to the client: it gets our headers and is looked at for its decision."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import lru_cache
from typing import TYPE_CHECKING

from starlette.types import Message, Send

from ._headers import Headers, header_name, without
from ._log import Opaque
from .request import PINNED
from .response import RESPONSE_HEADERS, ResponseReader

if TYPE_CHECKING:
    from .exchange import Exchange

NOT_PINNED = (b"x-session-pinned", b"false")


@lru_cache(maxsize=1024)
def told(status: bytes, reason: bytes | None, model: str | None) -> Headers:
    """Return the headers that tell the client of its pin; they are shared, so never to be changed."""
    headers = [
        PINNED if status == b"hit" else NOT_PINNED,
        (b"x-session-pin-status", status if reason is None else status + b"; reason=" + reason),
    ]
    return headers if model is None else [*headers, (b"x-session-model", model.encode())]


class Answer(Opaque):
    """Stands between the app's `send` and the server's.

    `send` is a plain function that gives an awaitable: once there is nothing more to do, a message costs one check.
    """

    exchange: Exchange
    server_send: Send
    reader: ResponseReader | None = None
    settled: bool = False

    def send(self, message: Message) -> Awaitable[None]:
        """The app's `send`."""
        if self.settled:
            return self.server_send(message)
        if message["type"] == "http.response.start":
            return self._start(message)
        reader = self.reader
        if reader is not None and message["type"] == "http.response.body":
            reader.feed(message.get("body", b""), message.get("more_body", False))
            if reader.finished or self.exchange.is_stated:
                return self._settle(reader, message)
        return self.server_send(message)

    def _start(self, message: Message) -> Awaitable[None]:
        exchange = self.exchange
        headers: Headers = message.get("headers", [])
        if type(headers) is not list:
            headers = list(headers)
        if exchange.learns and 200 <= message["status"] < 300:
            rules = exchange.pinning.rules
            picked = rules.headers.pick(headers)
            self.reader = reader = rules.open_reader(picked, exchange.asked, exchange.decides)
            if reader.finished or exchange.is_stated:
                return self._settle(reader, {**message, "headers": headers})
        else:
            self.settled = True
        pinning = exchange.pinning
        if pinning.tells:
            if not pinning.foreign.covers(map(header_name, headers)):
                headers = without(headers, RESPONSE_HEADERS)
                pinning.foreign.learn(headers)
            message = {**message, "headers": headers + told(exchange.status, exchange.reason, exchange.model)}
        return self.server_send(message)

    async def _settle(self, reader: ResponseReader, message: Message) -> None:
        """Record the decision before the message that reveals it goes on."""
        exchange = self.exchange
        exchange.learns = False
        decided = exchange.decide(reader)
        if decided is not None:
            try:
                asking = exchange.pinning.table.record(exchange.key, *decided)
                pin = await (exchange.timed(asking) if exchange.pinning.listeners else asking)
                exchange.model = pin.model
            except Exception:
                exchange.store_failed()
        if message["type"] == "http.response.start":
            return await self._start(message)
        self.settled = True
        return await self.server_send(message)
